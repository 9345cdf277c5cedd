"""Both validation scripts with --protocol challenge, on small cases."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cases import ball
from small_networks import RULE, save_student, save_teacher, small_student
from validation_helpers import fail_once, rows, run

import validation
import validation_student
from segment_anything import student_payload
from utils.cases.phantoms import boxes_of
from utils.errors import InputError
from utils.files.atomic import WriteError
from utils.results.metrics import dsc
from utils.validation.arguments import show
from utils.validation.run_challenge import find_challenge_cases

CLASSES = {"CT_A": {"1": ["Liver"], "4": ["Spleen"], "instance_label": 0}}


def write_cases(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        truth = np.where(ball(), 1, 0) + 4 * ball(centre=(4, 4, 24), radius=3.0)
        image = 40 + 30 * truth + rng.integers(0, 30, truth.shape)
        arrays = {"imgs": image.astype(np.uint8), "gts": truth.astype(np.uint8)}
        if number:
            arrays["boxes"] = np.array(boxes_of(arrays["gts"], rng), dtype=object)
        np.savez_compressed(folder / f"CT_A_{number}.npz", spacing=(1.0, 1.1, 1.2), **arrays)
    return folder


@pytest.fixture
def flags(tmp_path) -> list:
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return [
        *("--protocol", "challenge", "--images", write_cases(tmp_path / "npz")),
        *("--json", tmp_path / "classes.json", "--pictures", 1, "--num-clicks", 2),
        *("--checkpoint", save_student(tmp_path / "student.pth"), "--out-dir", tmp_path / "out"),
    ]


def test_it_leaves_tables_predictions_and_a_report(flags, tmp_path, capsys):
    summary = run(validation_student, flags)
    assert show(summary) == 0
    out = tmp_path / "out"
    names = {"challenge.csv", "targets.csv", "groups.csv", "report.html", "args.json"}
    assert names <= {path.name for path in out.iterdir()}
    table = rows(out / "challenge.csv")
    assert [row["CaseName"] for row in table] == ["CT_A_0", "CT_A_1", "CT_A_2"]
    assert [row["num_class"] for row in table] == ["2", "2", "2"]
    assert [float(row["DSC_1"]) > 0 for row in table] == [False, True, True]
    printed = capsys.readouterr().out
    assert "box + 2 points" in printed
    assert "with box        2 cases" in printed


def test_predictions_have_the_truths_ids_and_the_scores_that_are_written(flags, tmp_path):
    run(validation_student, flags)
    truth = np.load(tmp_path / "npz" / "CT_A_1.npz")["gts"]
    segs = np.load(tmp_path / "out" / "predictions" / "CT_A_1.npz")["segs"]
    assert set(np.unique(segs)) <= {0, 1, 4}
    written = [row for row in rows(tmp_path / "out" / "targets.csv") if row["case"] == "CT_A_1"]
    for row in written:
        value = int(row["class_id"])
        assert float(row["DSC_3"]) == pytest.approx(dsc(truth == value, segs == value), abs=1e-6)


def test_a_second_run_scores_nothing_again_and_says_the_same(flags, tmp_path):
    run(validation_student, flags)
    files = sorted((tmp_path / "out" / "cases").iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    table = (tmp_path / "out" / "challenge.csv").read_bytes()
    report = (tmp_path / "out" / "report.html").read_bytes()
    run(validation_student, flags)
    assert [path.stat().st_mtime_ns for path in files] == times
    assert (tmp_path / "out" / "challenge.csv").read_bytes() == table
    assert (tmp_path / "out" / "report.html").read_bytes() == report


def test_a_stopped_run_does_what_is_missing(flags, tmp_path):
    run(validation_student, flags)
    cases = tmp_path / "out" / "cases"
    kept = (cases / "CT_A_0.json").stat().st_mtime_ns
    (cases / "CT_A_1.json").unlink()
    (cases / "CT_A_2.json").write_text('{"half a fi')
    summary = run(validation_student, flags)
    assert len(summary.scores) == 3
    assert (cases / "CT_A_0.json").stat().st_mtime_ns == kept


def test_another_network_or_case_is_scored_anew(flags, tmp_path):
    first = run(validation_student, flags).scores
    torch.save(
        student_payload(small_student(7), crop_rule=RULE.to_dict()), tmp_path / "student.pth"
    )
    second = run(validation_student, flags).scores
    assert [score.scores.dsc.tolist() for score in first] != [
        score.scores.dsc.tolist() for score in second
    ]


def test_scores_do_not_depend_on_the_number_of_workers(flags, tmp_path):
    alone = run(validation_student, flags).scores
    together = run(validation_student, [*flags, "--workers", 2, "--out-dir", tmp_path / "two"])
    for one, other in zip(alone, together.scores, strict=True):
        assert one.targets == other.targets


def test_boxes_can_be_left_out(flags):
    scores = run(validation_student, [*flags, "--no-boxes"]).scores
    assert not any(score.has_box for score in scores)


def test_a_damaged_case_is_named_and_the_rest_goes_on(flags, tmp_path, capsys):
    (tmp_path / "npz" / "CT_A_1.npz").write_bytes(b"PK\x03\x04 no archive")
    summary = run(validation_student, flags)
    assert [score.case for score in summary.scores] == ["CT_A_0", "CT_A_2"]
    assert show(summary) == 1
    assert "CT_A_1" in capsys.readouterr().err


def test_truth_with_another_number_of_classes_than_boxes_is_a_failure(flags, tmp_path):
    path = tmp_path / "npz" / "CT_A_2.npz"
    with np.load(path, allow_pickle=True) as case:
        arrays = dict(case)
    arrays["boxes"] = arrays["boxes"][:1]
    np.savez_compressed(path, **arrays)
    summary = run(validation_student, flags)
    assert "has prompts for 1 classes" in summary.failures["CT_A_2"]


def test_the_teacher_is_validated_the_same_way(flags, tmp_path):
    checkpoint = save_teacher(tmp_path / "teacher.pt")
    summary = run(validation, [*flags, "--checkpoint", checkpoint])
    assert len(summary.scores) == 3


def test_without_images_it_says_what_it_needs(flags):
    with pytest.raises(InputError, match="needs --images"):
        run(validation_student, ["--protocol", "challenge"])


def test_labels_may_lie_in_a_folder_of_their_own(tmp_path):
    images, labels = write_cases(tmp_path / "a"), write_cases(tmp_path / "b", count=2)
    assert len(find_challenge_cases(images, None)) == 3
    with pytest.raises(InputError, match=r"CT_A_2\.npz: no such file"):
        find_challenge_cases(images, labels)


def test_what_the_checkpoint_was_trained_on_tells_seen_lesions(flags, tmp_path):
    content = {"CT_A": {"1": ["Liver tumors"], "4": ["Spleen"], "instance_label": 0}}
    (tmp_path / "classes.json").write_text(json.dumps(content))
    payload = student_payload(small_student(), crop_rule=RULE.to_dict())
    torch.save(payload | {"trained_on": ["liver_tumors/CT_A"]}, tmp_path / "student.pth")
    run(validation_student, flags)
    groups = {row["organ"]: row["group"] for row in rows(tmp_path / "out" / "targets.csv")}
    assert groups["liver_tumors"] == "seen lesion"
    run(validation_student, [*flags, "--trained-on", "tree/spleen/CT_A"])
    groups = {row["organ"]: row["group"] for row in rows(tmp_path / "out" / "targets.csv")}
    assert groups["liver_tumors"] == "unseen lesion"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_case_without_memory_is_named_and_the_others_are_scored(
    flags, tmp_path, monkeypatch, caplog, error
):
    fail_once(monkeypatch, np, "savez_compressed", error)
    summary = run(validation_student, flags)
    assert show(summary) == 1
    (failure,) = summary.failures.values()
    assert "there is not enough memory" in failure
    assert "\n" not in failure
    assert [score.case for score in summary.scores] == ["CT_A_1", "CT_A_2"]
    log = tmp_path / "out" / "cases" / "CT_A_0.log"
    assert str(log) in failure
    assert "Traceback (most recent call last)" in log.read_text()
    assert not any(record.exc_info for record in caplog.records)
    assert run(validation_student, flags).failures == {}
    assert not log.exists()


def test_predictions_never_replace_the_images(flags, tmp_path):
    """The images lie where the predictions would be written."""
    folder = tmp_path / "out" / "predictions"
    folder.parent.mkdir()
    (tmp_path / "npz").rename(folder)
    flags[flags.index("--images") + 1] = folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="is the same file as the input"):
        run(validation_student, flags)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions"]


def test_endings_count_in_any_case(tmp_path):
    folder = write_cases(tmp_path / "npz", 2)
    (folder / "CT_A_1.npz").rename(folder / "CT_A_1.NPZ")
    found = find_challenge_cases(folder, None)
    assert [image.name for image, _ in found] == ["CT_A_0.npz", "CT_A_1.NPZ"]
    assert all(image == label for image, label in found)


def test_a_full_disk_ends_the_run(flags, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    fail_once(monkeypatch, np, "savez_compressed", full)
    with pytest.raises(WriteError, match="No space left"):
        run(validation_student, flags)
