"""The ball around the click: by hand and voxel by voxel."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.results.ball import ball_dsc_curve, ball_nsd, best_fixed_radius
from utils.results.metrics import dsc, nsd


@pytest.mark.parametrize("click", [(4, 5, 6), (0, 0, 0), (8, 2, 11)], ids=str)
def test_curve_equals_scoring_every_ball(click):
    spacing = (2.5, 1.25, 0.75)
    gt = np.random.default_rng(0).random((9, 10, 12)) < 0.3
    radii = np.array([0.0, 0.75, 1.5, 2.5, 4.1, 9.0, 60.0])
    steps = (np.indices(gt.shape) - np.reshape(click, (3, 1, 1, 1))) * np.reshape(
        spacing, (3, 1, 1, 1)
    )
    balls = [(steps**2).sum(axis=0) <= radius**2 for radius in radii]

    curve = ball_dsc_curve(gt, click, spacing, radii)

    np.testing.assert_allclose(curve, [dsc(gt, ball) for ball in balls], rtol=1e-12)


@pytest.mark.parametrize("click", [(4, 5, 6), (0, 9, 0)], ids=str)
def test_nsd_equals_scoring_the_ball(click):
    spacing = (2.5, 1.25, 0.75)
    gt = np.random.default_rng(0).random((9, 10, 12)) < 0.3
    steps = (np.indices(gt.shape) - np.reshape(click, (3, 1, 1, 1))) * np.reshape(
        spacing, (3, 1, 1, 1)
    )
    ball = (steps**2).sum(axis=0) <= 4.1**2

    assert ball_nsd(gt, click, spacing, 4.1) == nsd(gt, ball, spacing)


def test_curve_by_hand():
    gt = np.zeros((5, 5, 5), dtype=bool)
    gt[2, 2, 1:4] = True  # three voxels along x
    curve = ball_dsc_curve(gt, (2, 2, 2), (9.0, 9.0, 1.0), [0.5, 1.0, 2.0])
    np.testing.assert_allclose(curve, [2 * 1 / (1 + 3), 1.0, 2 * 3 / (5 + 3)])


def test_best_radius_has_the_highest_mean():
    curves = np.array([[0.2, 0.6, 0.5], [0.1, 0.4, 0.7]])
    assert best_fixed_radius(curves, [5, 10, 15]) == (15.0, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (
            lambda: ball_dsc_curve(np.zeros((3, 3, 3), bool), (1, 1, 1), (1, 1, 1), [1]),
            "the truth is empty",
        ),
        (
            lambda: ball_dsc_curve(np.ones((3, 3, 3), bool), (1, 3, 1), (1, 1, 1), [1]),
            r"\(1, 3, 1\) is outside",
        ),
        (
            lambda: ball_dsc_curve(np.ones((3, 3, 3), bool), (1, 1, 1), (1, 1, 1), [2, 1]),
            r"the radii are \[2\.0, 1\.0\]",
        ),
        (
            lambda: best_fixed_radius(np.ones((2, 3)), [1, 2]),
            r"the curves have shape \(2, 3\)",
        ),
    ],
    ids=["empty truth", "click outside", "radii fall", "other radii"],
)
def test_what_cannot_be_answered_is_refused(call, found):
    with pytest.raises(InputError, match=rf"{found}.*expected"):
        call()
