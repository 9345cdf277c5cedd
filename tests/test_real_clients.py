"""The plug-in of napari and the client of MONAI Label, as people install them, against the server.

Their packages do not go together with the project's, so they are started in an environment of their
own, whose Python is named by CLIENTS_PYTHON; docs/serving.md has the commands.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "starlette", reason="no package starlette: pip install -r requirements-serve.txt"
)

from serving_helpers import (
    SPACING_ZYX,
    open_session,
    plain_masks,
    running,
    small_context,
    small_scan,
    voxels,
)

from utils.files.images import read_image
from utils.files.nifti import write_nifti
from utils.prompts.kinds import Click, MaskPrompt, checked_box
from utils.serving.boxes import box_of_sides
from utils.serving.drawings import checked_drawing
from utils.serving.scan import scan_of_volume

TESTS = Path(__file__).parent
TOKEN = "correct-horse-battery"
WAIT_S = 900  # napari draws without a graphics card
INSIDE, OTHER = Click((6, 7, 8), True), Click((13, 16, 20), True)
OUTSIDE = Click((9, 11, 12), False)
AFFINE = np.diag([-1.2, -1.1, 1.0, 1.0])


def python_with(*packages):
    """The Python that has the clients; skip the test where it is not named or lacks a package."""
    python = os.environ.get("CLIENTS_PYTHON")
    if python is None:
        pytest.skip("CLIENTS_PYTHON names no Python with the clients: see docs/serving.md")
    words = [python, "-c", f"import {', '.join(packages)}"]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{python} lacks a client: see docs/serving.md\n{found.stderr}"
    return python


def start(words, home):
    """Run a client to its end; its settings go to an empty home."""
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    done = subprocess.run(
        list(map(str, words)), env=environment, capture_output=True, text=True, timeout=WAIT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def napari_answers(tmp_path_factory):
    """What napari showed after each step, and the sessions that are open at its end."""
    python = python_with("napari", "napari_nninteractive")
    if shutil.which("xvfb-run") is None:
        pytest.skip("no xvfb-run: apt-get install xvfb xauth")
    folder = tmp_path_factory.mktemp("napari")
    np.savez(folder / "image.npz", image=voxels(), spacing_zyx=SPACING_ZYX)
    context = small_context(folder)
    with running(context) as url:
        worker = [python, TESTS / "napari_worker.py", url]
        start(["xvfb-run", "-a", *worker, folder / "image.npz", folder / "answers.npz"], folder)
        context.registry.open("nninteractive", "last")
        answers = dict(np.load(folder / "answers.npz"))
    return answers


def check(answers, step, *prompts):
    np.testing.assert_array_equal(answers[step], plain_masks({1: prompts}), err_msg=step)


def test_napari_shows_the_predictors_masks_and_takes_prompts_back(napari_answers):
    # The plug-in sends a rectangle's corners as its ends; only the flat side gets a voxel.
    box = box_of_sides((13.0, 12.0, 16.0), (14.0, 20.0, 24.0), small_scan().volume)
    check(napari_answers, "point", INSIDE)
    check(napari_answers, "outside", INSIDE, OUTSIDE)
    check(napari_answers, "box", INSIDE, OUTSIDE, box)
    check(napari_answers, "undo box", INSIDE, OUTSIDE)
    check(napari_answers, "undo outside", INSIDE)
    check(napari_answers, "not run", INSIDE)
    check(napari_answers, "run", INSIDE, OUTSIDE)
    assert not np.array_equal(napari_answers["point"], napari_answers["outside"])


def test_napari_goes_on_after_a_refused_point(napari_answers):
    assert "is not a voxel of the image" in str(napari_answers["beyond"])
    check(napari_answers, "after beyond", INSIDE)


def test_napari_starts_other_objects_and_masks(napari_answers):
    first = napari_answers["run"] > 0
    assert not napari_answers["next object"].any()
    place = tuple(round(number) for number in napari_answers["mouse at"].tolist())
    check(napari_answers, "mouse", Click(place, True))
    assert napari_answers["mouse"][place] == 1
    assert not napari_answers["reset"].any()
    np.testing.assert_array_equal(napari_answers["loaded"], first)
    check(napari_answers, "loaded and point", MaskPrompt(first), INSIDE)


def test_napari_works_on_after_a_lost_session(napari_answers):
    assert str(napari_answers["status"]) == "session lost"
    # The plug-in means to keep its labels. Opened from napari's menu, 2.5.4 starts without them.
    kept = napari_answers["resumed"] > 0
    earlier = (MaskPrompt(kept),) if kept.any() else ()
    check(napari_answers, "resumed and point", *earlier, OTHER)


def test_napari_enables_the_tools_that_the_server_has(napari_answers):
    assert napari_answers["tools"].tolist() == ["points", "boxes", "scribbles", "lassos"]


@pytest.mark.parametrize("kind", ["scribble", "lasso"])
def test_napari_draws_scribbles_and_lassos(napari_answers, kind):
    session, drawn = open_session(), napari_answers[f"drawn {kind}"]
    given = {"is_foreground": True, "is_lasso": kind == "lasso"}
    session.draw(1, checked_drawing(drawn, None, drawn.shape, **given))
    assert drawn.any()
    np.testing.assert_array_equal(napari_answers[kind], session.labels)
    assert not napari_answers["undo scribble"].any()


def test_monai_labels_client_gets_the_predictors_masks(tmp_path):
    python = python_with("monailabel.client")
    image = tmp_path / "scan.nii.gz"
    write_nifti(image, voxels(), AFFINE)
    inside, outside = list(INSIDE.zyx[::-1]), list(OUTSIDE.zyx[::-1])
    steps = [
        {"foreground": [inside], "background": []},
        {"foreground": [inside], "background": [outside]},
        {"foreground": [inside], "background": []},
        {"foreground": [], "background": [], "roi": [4, 13, 3, 12, 2, 11]},
    ]
    box = checked_box((2, 3, 4), (11, 12, 13), voxels().shape)
    prompts = [(INSIDE,), (INSIDE, OUTSIDE), (INSIDE,), (box,)]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    with running(small_context(tmp_path), token=TOKEN) as url:
        worker = [python, TESTS / "monailabel_worker.py", f"{url}/t/{TOKEN}", image]
        start([*worker, tmp_path / "steps.json", tmp_path], tmp_path)
    scan = scan_of_volume(read_image(image), image.name)
    for number, given in enumerate(prompts):
        mask = read_image(tmp_path / f"{number}.nrrd")
        np.testing.assert_array_equal(mask.array, plain_masks({1: given}, scan))
        np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-6)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["auth"] is False
    assert facts["session"]
    assert facts["session after"] == {}
    assert facts["said"]["label_names"] == {"target": 1}
    assert len(facts["refused"]) == 4
    assert "is not a voxel of the image" in facts["refused"][0]
