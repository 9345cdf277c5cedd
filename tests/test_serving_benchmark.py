"""The benchmarks of the server and of the page, on a case small enough for a test."""

import json

from page_helpers import require_browser
from small_networks import save_student

from benchmarks import page_drawing, serving


def test_clicks_of_one_and_of_two_sessions_are_timed(tmp_path):
    student = save_student(tmp_path / "student.pth")
    flags = ["--checkpoint", student, "--shape", 20, 24, 28, "--targets", 1, 2, "--clicks", 2]
    flags += ["--all-clicks", 9]
    flags += ["--device", "cpu", "--json", tmp_path / "serving.json"]
    report = serving.run(serving.parse_args(list(map(str, flags))))
    assert {n: len(times["first"]) for n, times in report["targets"].items()} == {1: 1, 2: 2}
    assert all(len(times["further"]) == 2 for times in report["targets"].values())
    assert report["upload_mb_s"] > 0
    assert report["clicks"] == 9
    assert report["memory_mib"]["VmHWM"] >= report["memory_mib"]["VmRSS"] > 50
    assert len(json.loads((tmp_path / "serving.json").read_text())["two sessions"]) == 2
    assert "further click, two sessions" in serving.report_text(report)


def test_the_pages_own_time_and_its_drawing_are_told_apart(tmp_path):
    require_browser()
    student = save_student(tmp_path / "student.pth")
    flags = ["--checkpoint", student, "--shape", 20, 24, 28, "--clicks", 2, "--device", "cpu"]
    found = page_drawing.run(page_drawing.parse_args(list(map(str, flags))))
    assert found.shape == (2, 3)
    there, network, drawing = found.T
    assert (there > network).all()
    assert (drawing > 0).all()
