"""The three data scripts on bad cases, bad folders and full disks."""

import argparse
import errno
import json
import time
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import (
    CLASSES,
    SCRIPTS,
    categorize_all,
    classify_all,
    reallocate_all,
    run_script,
    state_of,
)

from utils.errors import InputError
from utils.files.atomic import WriteError, atomic_path
from utils.preparation.ledger import CaseJob, Ledger
from utils.preparation.loop import Step, add_preparation_arguments, prepare

pytestmark = pytest.mark.usefixtures("workplace")

BAD_LABELS = {
    "2-D": ({"gts": np.ones((6, 9))}, "'gts' has shape (6, 9)"),
    "4-D": ({"gts": np.ones((1, 4, 6, 9))}, "'gts' has shape (1, 4, 6, 9)"),
    "NaN": ({"gts": np.full((4, 6, 9), np.nan)}, "216 voxels that are NaN"),
    "negative": ({"gts": np.full((4, 6, 9), -1)}, "negative values, -1"),
    "fraction": ({"gts": np.full((4, 6, 9), 0.5)}, "fractions, 0.5"),
    "no gts": ({"gts": None}, "lacks 'gts'"),
    "no spacing": ({"spacing": None}, "lacks 'spacing'"),
    "zero spacing": ({"spacing": (1, 1, 0)}, "'spacing' is [1, 1, 0]"),
    "two spacings": ({"spacing": (1, 1)}, "'spacing' is [1, 1]"),
    "other shape": ({"gts": np.ones((4, 9, 6), int)}, "(D, H, W) (4, 9, 6)"),
}


@pytest.mark.parametrize(("changes", "found"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_label_is_named_and_the_others_are_done(make_case, changes, found):
    bad = make_case(Path("data/npz"), "CT_A_1", **changes)
    make_case(Path("data/npz"), "CT_A_2")

    summary = classify_all()

    assert (summary.done, summary.exit_code) == (1, 1)
    assert str(bad) in summary.failures[0]
    assert found in summary.failures[0]
    assert [path.name for path in Path("data/classified").rglob("*.gz")] == ["CT_A_2.nii.gz"]


def test_truncated_file_is_named_and_the_others_are_done(make_case):
    bad = make_case(Path("data/npz"), "CT_A_1")
    bad.write_bytes(bad.read_bytes()[:200])
    make_case(Path("data/npz"), "CT_A_2")

    summary = classify_all()

    assert summary.done == 1
    assert summary.failures[0].startswith(f"{bad}: cannot be read")


def test_case_of_no_data_set_is_named_and_the_others_are_done(make_case):
    make_case(Path("data/npz"), "MR_CT_A_1")
    make_case(Path("data/npz"), "CT_A_2")

    summary = classify_all()

    assert summary.done == 1
    assert summary.failures[0].startswith("MR_CT_A_1: starts with no data set of CVPR25.json")


def test_value_without_a_class_fails_the_case_before_anything_is_written(make_case):
    make_case(Path("data/npz"), "CT_A_1", gts=np.arange(216).reshape(4, 6, 9) // 40)
    make_case(Path("data/npz"), "CT_A_2")
    classify_all()

    summary = categorize_all()

    assert summary.done == 1
    assert "CT_A_1.nii.gz: holds the values [3, 4, 5]" in summary.failures[0]
    assert "not classes of data set CT_A" in summary.failures[0]
    assert not list(Path("data/medical_preprocessed").rglob("CT_A_1*.gz"))


def test_data_set_folder_that_the_class_file_lacks_is_reported(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    classify_all()
    Path("other.json").write_text(json.dumps({"MR_B": CLASSES["CT_A"]}))

    failures = categorize_all("--json", "other.json").failures

    assert "CT_A: not a data set of other.json" in failures[0]


def test_label_without_image_is_listed_and_the_others_are_done(make_case):
    for name in ("CT_A_1", "CT_A_2"):
        make_case(Path("data/npz"), name)
    classify_all()
    categorize_all()
    make_case(Path("images"), "CT_A_2")

    summary = reallocate_all("--images", "images")

    assert summary.done == 1
    assert "CT_A_1.nii.gz: has no image" in summary.failures[0]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"imgs": np.zeros((4, 9, 6), np.uint8)}, "shape (D, H, W) (4, 9, 6)"),
        ({"spacing": (0.9, 0.7, 5.0)}, "spacing_zyx (5, 0.7, 0.9) mm"),
    ],
)
def test_image_on_another_grid_is_not_linked(make_case, changes, found):
    make_case(Path("data/npz"), "CT_A_1")
    classify_all()
    categorize_all()
    make_case(Path("images"), "CT_A_1", **changes)

    failures = reallocate_all("--images", "images").failures

    assert failures[0].startswith("CT_A_1: label and image are on different grids")
    assert found in failures[0]
    assert not list(Path("data/medical_preprocessed").rglob("imagesTr/*"))


@pytest.mark.parametrize("step", [classify_all, categorize_all, reallocate_all])
def test_missing_folder_is_an_input_error(step):
    with pytest.raises(InputError, match="no such folder"):
        step()


@pytest.mark.parametrize(
    ("step", "folder"),
    [
        (classify_all, "data/npz"),
        (categorize_all, "data/classified"),
        (reallocate_all, "data/medical_preprocessed"),
    ],
)
def test_folder_without_cases_is_an_input_error(step, folder):
    Path(folder).mkdir(parents=True)
    Path(folder, "readme.txt").touch()

    with pytest.raises(InputError, match=f"{folder}: holds no "):
        step()


def test_two_files_of_one_case_are_a_failure_of_that_case(make_case):
    for folder in ("a", "b"):
        make_case(Path("data/npz", folder), "CT_A_1")
    make_case(Path("data/npz"), "CT_A_2")

    summary = classify_all()

    assert summary.done == 1
    assert summary.failures[0].startswith("CT_A_1: has 2 files for its label")


def test_output_below_a_file_stops_the_run(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    Path("occupied").touch()

    with pytest.raises(WriteError, match=r"occupied/classified/.*: cannot be written"):
        classify_all("--out", "occupied/classified")


def test_no_workers_are_refused(make_case, capsys):
    make_case(Path("data/npz"), "CT_A_1")

    with pytest.raises(SystemExit):
        classify_all("--workers", "0")
    assert "--workers: found 0, expected 1 or more" in capsys.readouterr().err


def test_failed_case_gives_one_message_the_summary_and_exit_code_1(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    make_case(Path("data/npz"), "CT_A_2", gts=None)

    result = run_script("classify.py")

    assert result.returncode == 1
    assert result.stdout == "done 1, skipped 0, failed 1\n"
    assert result.stderr.startswith("FAILED data/npz/CT_A_2.npz: lacks 'gts'")


def test_missing_folder_gives_a_message_and_no_traceback():
    result = run_script("reallocate.py")

    assert result.returncode == 1
    assert result.stderr.startswith("InputError: data/medical_preprocessed: no such folder")


@pytest.mark.parametrize("script", SCRIPTS)
def test_full_disk_stops_with_one_message_and_leaves_nothing_half_written(make_case, script):
    noise = np.random.default_rng(0).integers(0, 200, (20, 40, 40), np.uint8)
    label = noise % 3
    for number in range(3):
        make_case(Path("data/npz"), f"CT_A_{number}", imgs=noise, gts=label)
    steps = dict(zip(SCRIPTS, (classify_all, categorize_all, reallocate_all), strict=True))
    for earlier in SCRIPTS[: SCRIPTS.index(script)]:
        steps[earlier]()
    before = state_of("data")
    # A limit on the size of files fails writes as a full disk does, and needs no root.
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (2000, 2000))"

    result = run_script(script, prelude=limit)

    assert result.returncode == 1
    assert result.stderr.startswith("WriteError: data/")
    assert result.stderr.count("cannot be written") == 1
    assert "MiB are free" in result.stderr
    assert before.items() <= state_of("data").items()
    new = [Path(name).name for name in state_of("data").keys() - before.keys()]
    assert new == [f"manifest_{script.removesuffix('.py')}.csv"]


def write_half(job, entry):
    """Write a part of an output: case ``full`` meets a full disk, case ``slow`` takes long."""
    output = Path("out", f"{job.case_id}.nii.gz")
    entry.claim([output])
    with atomic_path(output) as temporary:
        temporary.write_bytes(b"half")
        if job.case_id == "slow":
            time.sleep(60)
        while len(list(output.parent.glob(".tmp-*.nii.gz"))) < 2:
            time.sleep(0.01)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_worker_that_is_ended_by_a_full_disk_leaves_no_half_written_file():
    sources = [Path("in", name) for name in ("full", "slow")]
    sources[0].parent.mkdir()
    for source in sources:
        source.touch()
    jobs = [CaseJob(source.name, "CT", {"text": source}) for source in sources]
    parser = argparse.ArgumentParser()
    add_preparation_arguments(parser)
    args = parser.parse_args(["--workers", "2"])
    step = Step("copy", Ledger(Path("out"), "copy", [Path("in")], ["*"]), write_half, lambda _: 9)

    with pytest.raises(WriteError, match=r"full\.nii\.gz: cannot be written"):
        prepare(step, jobs, [], args)

    assert not list(Path("out").rglob(".tmp-*"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_the_step(script):
    result = run_script(script, "--help")

    assert result.returncode == 0
    for part in ("Reads", "Writes", "--workers", f"python {script}"):
        assert part in result.stdout
