"""The benchmark of methods without a network: protocols, tables and clicks of the validations."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from small_cases import ball, write_prepared
from small_networks import save_student
from validation_helpers import rows, run

import validation_student
from benchmarks import without_network
from utils.cases.phantoms import boxes_of
from utils.errors import InputError
from utils.files.nifti import read_nifti
from utils.prompts.click_method import challenge_click
from utils.validation import compare

CLASSES = {"CT_A": {"1": ["Liver"], "4": ["Spleen"], "instance_label": 0}}


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_prepared(tmp_path / "tree", cases=1)


@pytest.fixture
def challenge(tmp_path) -> list:
    """Return flags for one challenge case: two bright balls, each with a box."""
    rng = np.random.default_rng(0)
    truth = np.where(ball(), 1, 0) + 4 * ball(centre=(4, 4, 24), radius=3.0)
    image = 40 + 90 * (truth > 0) + rng.integers(0, 30, truth.shape)
    arrays = {"imgs": image.astype(np.uint8), "gts": truth.astype(np.uint8)}
    arrays["boxes"] = np.array(boxes_of(arrays["gts"], rng), dtype=object)
    (tmp_path / "npz").mkdir()
    np.savez_compressed(tmp_path / "npz" / "CT_A_1.npz", spacing=(1.0, 1.1, 1.2), **arrays)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    flags = ["--protocol", "challenge", "--images", tmp_path / "npz", "--num-clicks", 1]
    return [*flags, "--json", tmp_path / "classes.json", "--pictures", 0]


@pytest.mark.parametrize("method", ["random-walker", "grow-from-seeds"])
def test_a_bright_ball_in_noise_is_found_by_one_click(method, tree, tmp_path):
    flags = ["--method", method, "--val-datas", tree, "--pictures", 0, "--num-clicks", 1]
    summary = run(without_network, [*flags, "--out-dir", tmp_path / "out"])
    (target,) = rows(tmp_path / "out/cases.csv")
    assert float(target["DSC_1"]) > 0.9
    assert f"| {method} | 1 point | 128³ |" in str(summary)


def test_clicks_fall_into_the_methods_own_errors_by_the_rule_of_the_validations(tree, tmp_path):
    flags = ["--method", "grow-from-seeds", "--val-datas", tree, "--pictures", 0]
    run(without_network, [*flags, "--num-clicks", 1, "--out-dir", tmp_path / "one"])
    run(without_network, [*flags, "--num-clicks", 2, "--out-dir", tmp_path / "two"])
    (found,) = rows(tmp_path / "two/cases.csv")
    truth = read_nifti(tree / "labelsTr/CT_A_0.nii.gz").array > 0
    mask = read_nifti(tmp_path / "one/predictions/liver/CT_A/CT_A_0.nii.gz").array > 0
    clicks = challenge_click(np.zeros_like(truth), truth), challenge_click(mask, truth)
    expected = [f"{'-+'[q.is_foreground]}{','.join(map(str, q.zyx))}" for q in clicks]
    # The table puts an apostrophe before a plus, which keeps spreadsheets from computing.
    assert found["clicks_zyx"].lstrip("'").split() == expected


def test_the_tables_are_those_of_a_network_and_can_be_compared_with_them(tree, tmp_path):
    flags = ["--val-datas", tree, "--pictures", 0, "--num-clicks", 1]
    run(without_network, ["--method", "grow-from-seeds", *flags, "--out-dir", tmp_path / "a"])
    student = save_student(tmp_path / "student.pth")
    run(validation_student, ["--checkpoint", student, *flags, "--out-dir", tmp_path / "b"])
    for table in ("cases.csv", "organs.csv", "thickness.csv"):
        ours, theirs = (rows(tmp_path / run / table) for run in "ab")
        assert list(ours[0]) == list(theirs[0])
    found = run(compare, [tmp_path / "a", tmp_path / "b"])
    assert found[0].mean_a > found[0].mean_b  # of random weights


def test_whole_volumes_are_segmented_from_boxes_and_clicks(challenge, tmp_path):
    flags = ["--method", "grow-from-seeds", *challenge, "--out-dir", tmp_path / "out"]
    run(without_network, flags)
    (case,) = rows(tmp_path / "out/challenge.csv")
    assert float(case["DSC_1"]) > 0.7  # that of the ellipsoid: 0.56
    assert float(case["DSC_2"]) > 0.7
    assert {row["name"] for row in rows(tmp_path / "out/targets.csv")} == {"Liver", "Spleen"}


def test_the_tables_of_whole_volumes_are_those_of_a_network(challenge, tmp_path):
    run(without_network, ["--method", "ellipsoid", *challenge, "--out-dir", tmp_path / "a"])
    student = save_student(tmp_path / "student.pth")
    run(validation_student, ["--checkpoint", student, *challenge, "--out-dir", tmp_path / "b"])
    for table in ("challenge.csv", "targets.csv", "groups.csv"):
        ours, theirs = (rows(tmp_path / run / table) for run in "ab")
        assert list(ours[0]) == list(theirs[0])
    found = {each.metric: each for each in run(compare, [tmp_path / "a", tmp_path / "b"])}
    assert found["DSC box"].mean_a > 0.5 > found["DSC box"].mean_b  # of random weights


def test_a_second_run_scores_nothing_again(tree, tmp_path):
    flags = ["--method", "grow-from-seeds", "--val-datas", tree, "--pictures", 0]
    flags += ["--num-clicks", 1, "--out-dir", tmp_path / "out"]
    run(without_network, flags)
    (kept,) = (tmp_path / "out/cases").rglob("*.json")
    written = kept.stat().st_mtime_ns
    run(without_network, flags)
    assert kept.stat().st_mtime_ns == written


def test_without_scikit_image_the_walker_says_what_to_install(tree, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    flags = ["--val-datas", tree, "--out-dir", tmp_path / "out", "--method", "random-walker"]
    with pytest.raises(InputError, match=r"no scikit-image.*pip install -r requirements-dev.txt"):
        run(without_network, flags)


def test_the_ellipsoid_needs_boxes(tree):
    with pytest.raises(InputError, match="found --protocol clicks without boxes"):
        run(without_network, ["--method", "ellipsoid", "--val-datas", tree])


def test_of_many_cases_some_evenly_spaced_ones_can_be_scored(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=5)
    flags = ["--checkpoint", save_student(tmp_path / "student.pth"), "--val-datas", folder]
    flags += ["--num-clicks", 1, "--pictures", 0, "--out-dir", tmp_path / "out"]
    run(validation_student, [*flags, "--cases", 3])
    found = [row["sample_id"] for row in rows(tmp_path / "out/cases.csv")]
    assert found == [f"liver/CT_A/CT_A_{number}" for number in (0, 2, 4)]
