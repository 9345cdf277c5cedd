"""The benchmarks of the server and of the page, on a case small enough for a test."""

import importlib.util
import json
from pathlib import Path

from matplotlib.image import imread
from page_helpers import require_browser
from small_networks import save_student

from benchmarks import page_drawing, serving

DRAW_PAGE = Path(__file__).parent.parent / "docs" / "draw_page.py"


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


def test_the_page_is_drawn_in_every_state(tmp_path):
    require_browser()
    spec = importlib.util.spec_from_file_location("draw_page", DRAW_PAGE)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    student, out = save_student(tmp_path / "student.pth"), tmp_path / "pictures"
    words = ["--checkpoint", student, "--out", out, "--looks", "tablet"]
    script.draw(script.parse_args(list(map(str, words))))
    pictures = [imread(path) for path in sorted(out.glob("*_tablet.png"))]
    assert len(pictures) == 12
    assert all(picture.shape[:2] == (1180, 820) for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 12  # no two states look alike
