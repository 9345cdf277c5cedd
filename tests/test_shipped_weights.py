"""The networks in weights/: what the README's command gives with them, and what their card says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from preparation_helpers import ROOT

from segment_anything import fingerprint, read_checkpoint
from segment_anything.checkpoint import sha256_of
from utils.cases.phantoms import CT_CLASSES, MR_CLASSES, boxes_of, ct_phantom, mr_phantom
from utils.files.nifti import read_nifti, write_nifti
from utils.prompts.click_method import challenge_click
from utils.results.metrics import dsc
from utils.run.network import open_network, trained_on
from utils.run.shipped import WEIGHTS, shipped
from utils.volumes.geometry import affine_from_spacing

MB = 10**6
#: Phantom's seed, organ, and DSC of the shipped student after the box, one click and two clicks.
PHANTOMS = [
    (0, "Liver", (0.941, 0.946, 0.946)),
    (3, "Spleen", (0.942, 0.952, 0.962)),
    (0, "Left ventricle cavity", (0.927, 0.949, 0.965)),
]
#: Data sets whose licence, or whose lack of one, forbids their use for published weights.
NOT_FOR_WEIGHTS = {"CT_LungTumor_IBSI", "MR_Heart_ACDC", "MR_ProstateT2"} | {
    f"MR_SpinalCord_{contrast}" for contrast in ("T1w", "T2star", "T2w")
}
KEPT_OUT = {"CT_SoftTissueSarcoma", "MR_FetalBrain"}


def predict(*words):
    """Run predict.py as the README does, in the repository's root."""
    command = [sys.executable, "predict.py", *map(str, words), "--device", "cpu"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def joined(numbers):
    return ",".join(str(int(number)) for number in numbers)


def corners(box):
    """Return Z0,Y0,X0,Z1,Y1,X1 of a box of a challenge file."""
    names = ("z_min", "z_mid_y_min", "z_mid_x_min", "z_max", "z_mid_y_max", "z_mid_x_max")
    return joined(box[name] for name in names)


def phantom_of(seed, organ):
    """Return image, truth, affine and the challenge's box of an organ."""
    rng = np.random.default_rng((41, seed))
    make, classes = (ct_phantom, CT_CLASSES) if organ in CT_CLASSES else (mr_phantom, MR_CLASSES)
    phantom, value = make(rng), classes[organ]
    place = np.unique(phantom.label)[1:].tolist().index(value)
    box = boxes_of(phantom.label, rng)[place]
    return phantom.image, phantom.label == value, affine_from_spacing(phantom.spacing_xyz), box


@pytest.mark.parametrize(("seed", "organ", "shipped_scores"), PHANTOMS)
def test_the_command_of_the_readme_gives_the_shipped_masks(tmp_path, seed, organ, shipped_scores):
    image, truth, affine, box = phantom_of(seed, organ)
    write_nifti(tmp_path / "ct.nii.gz", image, affine)
    answer = tmp_path / "out/ct.nii.gz"
    words = ["--input", tmp_path / "ct.nii.gz", "--output", answer.parent, "--box", corners(box)]
    scores, clicks = [], {"--fg": [], "--bg": []}
    for _ in range(3):
        flags = [word for flag, places in clicks.items() if places for word in (flag, *places)]
        done = predict(*words, *flags)
        mask = read_nifti(answer).array == 1
        scores.append(dsc(truth, mask))
        click = challenge_click(mask, truth)
        clicks["--fg" if click.is_foreground else "--bg"].append(joined(click.zyx))
    assert f"checkpoint: {shipped('student')}" in done.stderr
    assert scores[-1] >= 0.9
    assert scores == pytest.approx(shipped_scores, abs=0.01)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_files_are_small_and_whole(role):
    path = shipped(role)
    digest = sha256_of(path)
    assert path.stat().st_size <= 10 * MB
    assert path.with_name(f"{role}.pth.sha256").read_text() == f"{digest}  {role}.pth\n"
    assert digest in (WEIGHTS / "README.md").read_text()


def test_both_files_together_are_small():
    assert sum(shipped(role).stat().st_size for role in ("student", "teacher")) <= 20 * MB


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_files_are_what_was_compared_with_float32(role):
    content = read_checkpoint(shipped(role))
    model, _ = open_network(shipped(role))
    facts = content["release"]
    assert facts["fingerprint"] == fingerprint(model)
    assert facts["mask_agreement"]["dsc_mean"] > 0.995
    assert not facts["commit"].endswith("-dirty")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_training_used_data_sets_with_terms_for_it_alone(role):
    sets = {Path(folder).name for folder in trained_on(shipped(role))}
    card = (WEIGHTS / "README.md").read_text()
    assert not sets & (NOT_FOR_WEIGHTS | KEPT_OUT)
    for name in sets:  # each with its attribution
        assert name in card, name


def test_the_recipe_holds_no_path_of_the_machine_that_trained():
    for role in ("student", "teacher"):
        told = str(read_checkpoint(shipped(role))["release"])
        assert not re.search(r"(/tmp|/home|/work|/root)\b", told)


def test_the_student_belongs_to_the_shipped_teacher():
    facts = [read_checkpoint(shipped(role)) for role in ("student", "teacher")]
    assert facts[0]["teacher"] == facts[1]["release"]["fingerprint_float32"]
    assert facts[0]["crop_rule"] == facts[1]["crop_rule"]
