"""benchmarks/drawings.py makes the drawings that it says, and scores each way to prompt."""

import numpy as np
import pytest

pytest.importorskip("skimage", reason="no package scikit-image")

from serving_helpers import CENTRES, SHAPE, voxels
from small_cases import ball
from small_networks import save_student

from benchmarks import drawings
from utils.files.nifti import write_nifti

AFFINE = np.diag([-1.2, -1.1, 1.0, 1.0])


def outline():
    """A region of 9 x 25 pixels on slice 2."""
    region = np.zeros((5, 20, 40), bool)
    region[2, 4:13, 5:30] = True
    return region


def test_a_scribble_runs_along_the_middle_of_its_slice():
    curve = drawings.scribble_on(outline())
    assert not (curve & ~outline()).any()
    assert curve[2, 8, 12:23].all()
    assert 3 * 11 <= curve.sum() <= 3 * 25


def test_a_lasso_is_somewhat_off():
    for seed in range(4):
        lasso = drawings.lasso_around(outline(), np.random.default_rng(seed))
        assert lasso[2, 6:11, 7:28].all()
        assert 0 < (lasso ^ outline()).sum() < outline().sum()


def test_the_largest_slice_is_that_of_most_voxels():
    mask = ball(SHAPE, CENTRES[0], 4)
    mask[CENTRES[0][0], 20, 20] = True  # a part of its own
    found = drawings.largest_slice(mask)
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [CENTRES[0][0]]
    assert not found[:, 20, 20].any()


def test_every_way_to_prompt_is_scored(tmp_path):
    folder = tmp_path / "liver" / "CT_Made"
    for name, array in (("imagesTr", voxels()), ("labelsTr", ball(SHAPE, CENTRES[0], 4))):
        (folder / name).mkdir(parents=True)
        write_nifti(folder / name / "one.nii.gz", array.astype(np.uint8), AFFINE)
    words = ["--checkpoint", save_student(tmp_path / "student.pth"), "--val-datas", folder]
    scores = drawings.run(drawings.parse_args(list(map(str, words))))
    assert len(scores) == 10
    for each in scores.values():
        assert len(each) == 1
        assert all(0 <= number <= 1 for number in each[0])
