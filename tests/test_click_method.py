"""Clicks: the challenge's own, a plain reading of its rule, and cases worked by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.scoring import plain_click
from utils.errors import InputError
from utils.prompts.click_method import (
    Click,
    _squared_distances,
    challenge_click,
    mended_share,
    training_click,
)

PARITY = np.load(Path(__file__).parent / "data" / "metrics_seed0.npz")


def masks(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.standard_normal(shape), 1.2) > 0.08 for _ in range(2)]
    return smooth[0], smooth[1]


@pytest.mark.parametrize("case", range(10))
def test_clicks_equal_the_challenges(case):
    gt, seg = PARITY[f"gt_{case}"], PARITY[f"seg_{case}"]
    for class_id, expected in enumerate(PARITY[f"clicks_{case}"], start=1):
        click = challenge_click(seg == class_id, gt == class_id)
        found = [-1] * 4 if click is None else [*click.zyx, click.is_foreground]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("max_box_voxels", [60_000_000, 300], ids=["exact", "pooled"])
@pytest.mark.parametrize("shape", [(12, 19, 25), (40, 9, 6), (5, 5, 5), (1, 20, 13)], ids=str)
def test_click_is_what_the_plain_rule_says(shape, max_box_voxels):
    for seed in range(8):
        pred, gt = masks(seed, shape)
        click = challenge_click(pred, gt, max_box_voxels=max_box_voxels)
        assert click == plain_click(pred, gt, max_box_voxels)


def test_components_of_one_size_are_taken_in_array_order():
    gt = np.zeros((9, 9, 9), dtype=bool)
    gt[6:8, 1:3, 1:3] = gt[1:3, 6:8, 6:8] = True
    click = challenge_click(np.zeros_like(gt), gt)
    assert click.zyx[0] in (1, 2)
    assert click == plain_click(np.zeros_like(gt), gt)


def test_diagonal_neighbours_are_one_component():
    gt = np.zeros((8, 8, 8), dtype=bool)
    gt[range(5), range(5), range(5)] = True  # five voxels that touch at corners
    gt[6, 6, 0:4] = True
    z, y, x = challenge_click(np.zeros_like(gt), gt).zyx
    assert z == y == x


def test_click_is_in_the_middle_and_knows_its_side():
    gt = np.zeros((12, 14, 16), dtype=bool)
    gt[2:7, 3:8, 9:14] = True
    assert challenge_click(np.zeros_like(gt), gt) == ((4, 5, 11), True)
    assert challenge_click(gt, np.zeros_like(gt)) == ((4, 5, 11), False)


def test_outside_of_the_volume_is_outside_of_the_error():
    full = np.ones((5, 7, 9), dtype=bool)
    z, y, x = challenge_click(~full, full).zyx
    assert (z, y) == (2, 3)
    assert 2 <= x <= 6


@pytest.mark.parametrize("shape", [(7, 12, 20), (254, 300, 3), (300, 280, 2)], ids=str)
def test_distances_equal_scipys(shape):
    """The long ones have the longest runs that 16 bits hold, and longer."""
    masks_ = [np.ones(shape, bool), masks(3, shape)[0], np.zeros(shape, bool)]
    for mask in (np.pad(m, 1) for m in masks_):
        expected = np.rint(ndimage.distance_transform_edt(mask) ** 2)
        np.testing.assert_array_equal(_squared_distances(mask), expected)


def test_no_error_gives_no_click():
    gt = np.ones((4, 5, 6), dtype=bool)
    assert challenge_click(gt, gt) is None
    assert training_click(gt, gt, np.random.default_rng(0), centre_probability=0.0) is None
    assert training_click(gt, gt, np.random.default_rng(0), centre_probability=1.0) is None


def test_global_random_state_and_masks_are_left_alone():
    pred, gt = masks(0, (10, 11, 12))
    kept = pred.copy(), gt.copy()
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    challenge_click(pred, gt)
    training_click(pred, gt, np.random.default_rng(0))
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.testing.assert_array_equal((pred, gt), kept)


def test_training_click_is_the_challenges_or_any_error_voxel():
    gt = np.zeros((6, 7, 8), dtype=bool)
    gt[2, 3, 1:6] = True
    pred = np.zeros_like(gt)
    pred[5, 6, 7] = True
    rng = np.random.default_rng(0)

    assert training_click(pred, gt, rng, centre_probability=1.0) == challenge_click(pred, gt)
    drawn = [training_click(pred, gt, rng, centre_probability=0.0) for _ in range(200)]
    assert {click.zyx for click in drawn} == {tuple(v) for v in np.argwhere(pred != gt).tolist()}
    assert all(click.is_foreground == gt[click.zyx] for click in drawn)


def test_training_clicks_follow_their_generator():
    pred, gt = masks(0, (10, 11, 12))
    first, second = (
        [training_click(pred, gt, rng) for _ in range(9)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first == second
    assert len(set(first)) > 2


def test_click_holds_plain_numbers():
    (z, y, x), is_foreground = challenge_click(*masks(0, (6, 7, 8)))
    assert [type(value) for value in (z, y, x, is_foreground)] == [int, int, int, bool]


@pytest.mark.parametrize("shapes", [((3, 4, 5), (3, 5, 4)), ((4, 5), (4, 5))], ids=str)
def test_masks_of_other_shapes_are_refused(shapes):
    with pytest.raises(InputError, match="Expected two masks"):
        challenge_click(*(np.zeros(shape, dtype=bool) for shape in shapes))


def two_missed_parts() -> np.ndarray:
    """Return a truth of two bars, of eight voxels from (1, 2, 1) and of six from (4, 5, 3)."""
    gt = np.zeros((6, 7, 12), dtype=bool)
    gt[1, 2, 1:9] = gt[4, 5, 3:9] = True
    return gt


def test_half_of_the_clicked_part_filled_is_half_mended():
    gt = two_missed_parts()
    after = np.zeros_like(gt)
    after[1, 2, 5:9] = True
    after[3, 3, 3] = True  # a new error, beside the clicked one
    assert mended_share(np.zeros_like(gt), after, gt, Click((1, 2, 3), True)) == 0.5


def test_errors_elsewhere_do_not_count():
    gt = two_missed_parts()
    before, after = np.zeros_like(gt), np.zeros_like(gt)
    after[4, 5, 3:9] = True
    assert mended_share(before, after, gt, Click((1, 2, 3), True)) == 0.0
    assert mended_share(before, after, gt, Click((4, 5, 8), True)) == 1.0


def test_what_was_right_before_the_click_does_not_count():
    gt = two_missed_parts()
    before, after = np.zeros_like(gt), np.zeros_like(gt)
    before[1, 2, 1:5] = True
    after[1, 2, 4:6] = True  # fills one of four missed voxels, and loses three that were there
    assert mended_share(before, after, gt, Click((1, 2, 7), True)) == 0.25


def test_parts_that_touch_at_a_corner_are_mended_as_one():
    gt = np.zeros((6, 7, 8), dtype=bool)
    gt[1, 1, 1] = gt[2, 2, 2] = gt[2, 2, 3] = gt[3, 3, 4] = True
    after = gt.copy()
    after[1, 1, 1] = False
    assert mended_share(np.zeros_like(gt), after, gt, Click((1, 1, 1), True)) == 0.75


def test_oversegmented_part_removed_is_wholly_mended():
    gt = two_missed_parts()
    before = gt.copy()
    before[1:4, 4:6, 9:12] = True
    assert mended_share(before, gt, gt, Click((2, 4, 10), False)) == 1.0
    assert mended_share(before, before, gt, Click((2, 4, 10), False)) == 0.0


def test_click_beside_any_error_mends_no_number():
    gt = two_missed_parts()
    beside = Click((0, 0, 0), False)
    assert math.isnan(mended_share(np.zeros_like(gt), gt, gt, beside))
    assert math.isnan(mended_share(gt, gt, gt, beside))
