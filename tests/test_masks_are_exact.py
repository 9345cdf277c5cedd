"""Logit boxes in numbers: resampled, extended, merged, corrected at clicks, competing."""

import numpy as np
import pytest

from utils.prediction.honouring import SPOT_REACH, ForegroundClicks, honour_clicks
from utils.prediction.masks import (
    OUTSIDE_LOGIT,
    SURE_LOGIT,
    THIN,
    LogitBox,
    cell_means,
    compete,
    keep_prompted,
    merge,
)
from utils.prompts.kinds import Click
from utils.volumes.geometry import CropGrid, affine_from_spacing

SHAPE = (20, 24, 28)
WHOLE = tuple(slice(0, n) for n in SHAPE)
NOTHING = LogitBox((slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32))


def box_of(start, values) -> LogitBox:
    box = tuple(slice(a, a + n) for a, n in zip(start, values.shape, strict=True))
    return LogitBox(box, values.astype(np.float32))


def whole(logits: LogitBox, shape=SHAPE) -> np.ndarray:
    """Return the logits on the image, OUTSIDE_LOGIT beyond the box."""
    values = np.full(shape, OUTSIDE_LOGIT, np.float32)
    values[logits.box] = logits.values
    return values


def constant(value, start=(0, 0, 0), shape=SHAPE) -> LogitBox:
    return box_of(start, np.full(shape, value, np.float32))


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(0, 5, shape).astype(np.float32)


def honoured(logits, clicks, others=(), voxel_mm=(1.0, 1.0, 1.0), cell_mm=2.0):
    values = logits.values.copy()
    given = LogitBox(logits.box, values)
    found = honour_clicks(given, clicks, list(others), voxel_mm, cell_mm, SHAPE).logits
    return LogitBox(found.box, found.values.copy())


@pytest.mark.parametrize("spacing_xyz", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.5)], ids=["even", "uneven"])
@pytest.mark.parametrize("centre", [(10, 12, 14), (2, 20, 3)], ids=["inside", "overhanging"])
def test_low_resolution_logits_lie_on_the_image_as_the_cube_pastes_them(spacing_xyz, centre):
    grid = CropGrid.at(centre, SHAPE, affine_from_spacing(spacing_xyz), 1.2, 16)
    low_res = np.full((8, 8, 8), -3.0, np.float32)
    low_res[2:5, 3:6, 4:6] = 4
    low_res[5, 5, 5] = 0.5
    found = LogitBox.from_low_res(grid, low_res)
    pasted = grid.paste(low_res, outside=OUTSIDE_LOGIT)
    np.testing.assert_array_equal(found.values, pasted[found.box])
    outside = pasted.copy()
    outside[found.box] = OUTSIDE_LOGIT
    assert outside.max() <= 0  # no logit beyond the box is above 0
    mask = np.argwhere(pasted > 0)
    assert len(mask) > 8
    cell = 2 * 1.2 / np.array(spacing_xyz)[::-1]
    assert (found.start >= mask.min(axis=0) - 2 * cell - 1).all()
    assert (found.stop <= mask.max(axis=0) + 2 * cell + 2).all()


def test_low_resolution_logits_without_a_mask_make_an_empty_box():
    grid = CropGrid.at((10, 12, 14), SHAPE, np.eye(4), 1.0, 16)
    found = LogitBox.from_low_res(grid, np.zeros((8, 8, 8), np.float32))
    assert found.values.shape == (0, 0, 0)
    assert found.values.dtype == np.float32
    assert not found.holds((0, 0, 0))
    assert found.box == (slice(0, 0),) * 3


def test_a_mask_of_cells_beyond_the_image_makes_a_box_without_voxels():
    grid = CropGrid.at((10, 12, 25), SHAPE, np.eye(4), 1.0, 32)  # x from 9.5 to 40.5
    low_res = np.full((16, 16, 16), -3.0, np.float32)
    low_res[-1, 8, 8] = 4  # x about 39
    assert not LogitBox.from_low_res(grid, low_res).values.size


def test_a_box_knows_its_voxels():
    box = box_of((2, 3, 4), np.zeros((3, 4, 5)))
    assert box.start.tolist() == [2, 3, 4]
    assert box.stop.tolist() == [5, 7, 9]
    for axis, (first, last) in enumerate(((2, 4), (3, 6), (4, 8))):
        place = [3, 4, 5]
        for c, held in ((first - 1, False), (first, True), (last, True), (last + 1, False)):
            place[axis] = c
            assert box.holds(place) == held


@pytest.mark.parametrize(
    ("zyx", "margin", "start", "stop"),
    [
        ((10, 12, 14), (1, 2, 3), (2, 3, 4), (12, 15, 18)),
        ((3, 4, 5), (0, 0, 0), (2, 3, 4), (5, 7, 9)),
        ((0, 0, 0), (4, 4, 4), (0, 0, 0), (5, 7, 9)),
        ((19, 23, 27), (2, 2, 2), (2, 3, 4), (20, 24, 28)),
        ((3, 4, 5), (3, 3, 3), (0, 1, 2), (7, 8, 9)),
    ],
    ids=["beside", "inside", "first voxel", "last voxel", "margin alone"],
)
def test_a_box_is_extended_to_a_voxel_and_its_margin_within_the_image(zyx, margin, start, stop):
    values = noise((3, 4, 5))
    found = box_of((2, 3, 4), values).extended_to(zyx, margin, SHAPE)
    assert (tuple(found.start), tuple(found.stop)) == (start, stop)
    np.testing.assert_array_equal(whole(found), whole(box_of((2, 3, 4), values)))
    assert found.values.dtype == np.float32


def test_an_empty_box_is_extended_to_a_voxel_alone():
    found = NOTHING.extended_to((10, 12, 14), (1, 2, 3), SHAPE)
    assert (tuple(found.start), tuple(found.stop)) == ((9, 10, 11), (12, 15, 18))
    assert (found.values == OUTSIDE_LOGIT).all()
    assert found.values.dtype == np.float32


def test_merged_boxes_have_the_largest_logit_of_each_voxel():
    boxes = [
        box_of((2, 3, 4), noise((5, 6, 7))),
        NOTHING,
        box_of((4, 1, 8), noise((6, 5, 9), 1)),
        box_of((15, 20, 20), noise((2, 2, 2), 2)),
    ]
    found = merge(boxes)
    assert (tuple(found.start), tuple(found.stop)) == ((2, 1, 4), (17, 22, 22))
    np.testing.assert_array_equal(whole(found), np.max([whole(b) for b in boxes], axis=0))
    assert found.values.dtype == np.float32


def test_one_box_alone_or_nothing_at_all_stays_as_it_is():
    one = constant(1.0)
    assert merge([NOTHING, one, NOTHING]) is one
    assert merge([NOTHING]) is NOTHING
    assert merge([NOTHING, NOTHING]) is NOTHING


def test_a_cell_without_a_full_neighbour_counts_if_one_voxel_reaches_the_thin_share():
    shares = np.zeros((12, 12, 12), np.float32)
    shares[5, 5, 5], shares[10, 10, 10] = THIN, THIN - 0.01
    found = cell_means(shares, 6)
    assert found[2, 2, 2] == 1
    assert found[5, 5, 5] == pytest.approx((THIN - 0.01) / 8)
    assert found.sum() == pytest.approx(1 + (THIN - 0.01) / 8)


def test_a_cell_beside_a_half_full_one_keeps_its_own_share():
    shares = np.zeros((12, 12, 12), np.float32)
    shares[4:6, 4:6, 4] = 1  # half of cell (2, 2, 2)
    shares[6, 4, 4] = 1  # a voxel of cell (3, 2, 2)
    found = cell_means(shares, 6)
    assert found[2, 2, 2] == 0.5
    assert found[3, 2, 2] == 0.125


def two_blobs() -> LogitBox:
    """Two blocks that touch at nothing, on a box that starts at (1, 2, 3)."""
    values = np.full((12, 14, 16), -2.0, np.float32)
    values[1:4, 1:4, 1:4] = 3
    values[7:10, 8:11, 9:12] = 5
    return box_of((1, 2, 3), values)


def test_a_dropped_component_becomes_surely_background_and_the_rest_stays():
    before = two_blobs()
    after = keep_prompted(before, [(2, 3, 4)])  # voxel (1, 1, 1) of the box
    expected = before.values.copy()
    expected[7:10, 8:11, 9:12] = -SURE_LOGIT
    np.testing.assert_array_equal(after.values, expected)
    assert after.box == before.box


@pytest.mark.parametrize(("seed", "kept"), [((4.5, 5, 6), 1), ((4.6, 5, 6), 1), ((5.0, 5, 6), 2)])
def test_a_seed_between_two_voxels_counts_for_both(seed, kept):
    """The first block ends at (4, 5, 6) of the image."""
    after = keep_prompted(two_blobs(), [seed])
    assert len([v for v in (3, 5) if (after.values == v).any()]) == kept


def test_components_with_a_seed_each_all_stay_and_seeds_beside_the_box_count_for_none():
    before = two_blobs()
    both = keep_prompted(before, [(2, 3, 4), (8, 10, 12), (0, 0, 0), (100, 3, 4), (-5, 2, 2)])
    np.testing.assert_array_equal(both.values, before.values)
    none = keep_prompted(before, [(0, 3, 4), (13, 3, 4)])
    np.testing.assert_array_equal(none.values, before.values)


def test_blocks_that_touch_at_a_corner_are_one_component():
    values = np.full((8, 8, 8), -2.0, np.float32)
    values[1:3, 1:3, 1:3] = values[3:5, 3:5, 3:5] = 3
    after = keep_prompted(box_of((0, 0, 0), values), [(1, 1, 1)])
    np.testing.assert_array_equal(after.values, values)


def test_a_logit_of_0_is_background():
    values = np.zeros((8, 8, 8), np.float32)
    values[1, 1, 1] = values[5, 5, 5] = 1
    after = keep_prompted(box_of((0, 0, 0), values), [(1, 1, 1)])
    assert after.values[5, 5, 5] == -SURE_LOGIT
    assert after.values[3, 3, 3] == 0


def test_foreground_clicks_of_others_are_those_in_the_box():
    clicks = [
        (1, Click((2, 3, 4), True)),
        (2, Click((2, 3, 4), True)),
        (2, Click((4, 6, 8), True)),
        (3, Click((5, 6, 8), True)),
        (3, Click((1, 3, 4), True)),
        (4, Click((3, 4, 5), True)),
    ]
    box = box_of((2, 3, 4), np.zeros((3, 4, 5))).box
    found = ForegroundClicks(clicks)
    assert found.of_others(2, box) == [clicks[0][1], clicks[5][1]]
    assert found.of_others(9, box) == [clicks[n][1] for n in (0, 1, 2, 5)]
    assert found.of_others(1, NOTHING.box) == []
    assert ForegroundClicks([]).of_others(1, box) == []


def gaussian(place, width_mm, voxel_mm=(1.0, 1.0, 1.0)):
    """Return the weight (D, H, W) of a spot; 0 where it has ended."""
    offsets = [(np.arange(n) - c) * s for n, c, s in zip(SHAPE, place, voxel_mm, strict=True)]
    squares = np.ix_(*[(o / w) ** 2 for o, w in zip(offsets, width_mm, strict=True)])
    weight = np.exp(-sum(squares) / 2)
    return np.where(weight > np.exp(-(SPOT_REACH**2) / 2), weight, 0)


@pytest.mark.parametrize("foreground", [True, False])
@pytest.mark.parametrize(
    ("voxel_mm", "cell_mm"), [((1.0, 1.0, 1.0), 2.1), ((3.0, 1.0, 0.5), 1.5)], ids=["even", "thick"]
)
@pytest.mark.parametrize("place", [(10, 12, 14), (1, 22, 27)], ids=["inside", "corner"])
def test_a_spot_is_a_gaussian_of_a_cell_or_a_voxel(foreground, voxel_mm, cell_mm, place):
    before = np.where(foreground, -1.0, 1.0) * np.abs(noise())  # clicked voxel on the wrong side
    found = honoured(box_of((0, 0, 0), before), [Click(place, foreground)], (), voxel_mm, cell_mm)
    weight = gaussian(place, np.maximum(cell_mm, voxel_mm), voxel_mm)
    sure = SURE_LOGIT if foreground else -SURE_LOGIT
    clipped = np.clip(before, -SURE_LOGIT, SURE_LOGIT)
    expected = np.where(weight > 0, clipped + weight * (sure - clipped), before)
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert found.values[place] == pytest.approx(sure)


def test_a_spot_is_narrower_where_a_click_of_the_other_kind_is_near():
    near = Click((10, 12, 17), False)  # 3 mm away, on the right side already
    found = honoured(constant(-6.0), [Click((10, 12, 14), True), near])
    weight = gaussian((10, 12, 14), (1.0, 1.0, 1.0))  # a third of 3 mm, not 2 mm
    expected = np.where(weight > 0, -SURE_LOGIT + weight * 2 * SURE_LOGIT, -6.0)
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_a_click_of_the_same_kind_does_not_narrow_a_spot():
    clicks = [Click((10, 12, 14), True), Click((10, 12, 17), True)]
    alone = honoured(constant(-6.0), clicks[:1])
    both = honoured(constant(-6.0), clicks)
    assert (both.values >= alone.values).all()


def test_a_spot_beside_the_box_reaches_as_far_as_one_inside():
    weight = gaussian((10, 12, 14), (2.0, 2.0, 2.0))
    found = honoured(constant(-6.0, (0, 0, 0), (3, 3, 3)), [Click((10, 12, 14), True)])
    mask = whole(found) > 0
    np.testing.assert_array_equal(mask, -SURE_LOGIT + weight * 2 * SURE_LOGIT > 0)
    assert found.stop.tolist() == [16, 18, 20]  # ceil(2.5 * 2) voxels beyond the click


def test_clicks_that_agree_leave_the_very_same_logits():
    logits = box_of((0, 0, 0), noise())
    inside, outside = np.argwhere(logits.values > 0)[5], np.argwhere(logits.values < 0)[5]
    clicks = [Click(tuple(map(int, inside)), True), Click(tuple(map(int, outside)), False)]
    np.testing.assert_array_equal(honoured(logits, clicks).values, logits.values)
    far = LogitBox((slice(0, 2),) * 3, np.full((2, 2, 2), 3.0, np.float32))
    assert honoured(far, [Click((15, 15, 15), False)]).box == far.box


def test_own_clicks_go_before_those_of_others_on_one_voxel():
    place = (10, 12, 14)
    found = honoured(constant(-6.0), [Click(place, True)], [Click(place, True)])
    assert found.values[place] > 0


def test_the_order_of_the_others_does_not_matter():
    others = [Click((10, 12, 14), True), Click((9, 12, 15), True), Click((12, 10, 14), True)]
    own = [Click((10, 11, 15), True)]
    found = honoured(box_of((0, 0, 0), noise()), own, others)
    again = honoured(box_of((0, 0, 0), noise()), own, others[::-1])
    np.testing.assert_array_equal(found.values, again.values)


def test_a_voxel_that_a_neighbours_spot_covered_is_set_back():
    """Two clicks of opposite kinds side by side: each keeps its own side."""
    clicks = [Click((10, 12, 14), True), Click((10, 12, 15), False), Click((10, 12, 13), False)]
    for before in (constant(-6.0), constant(6.0), constant(0.0)):
        found = honoured(before, clicks).values
        assert [found[c.zyx] > 0 for c in clicks] == [True, False, False]


def test_equal_logits_belong_to_the_target_named_first():
    assert (compete(SHAPE, [(2, constant(1.0)), (1, constant(1.0))]) == 2).all()
    assert (compete(SHAPE, [(1, constant(1.0)), (2, constant(1.5))]) == 2).all()


def test_ids_up_to_255_fit_a_byte():
    assert compete(SHAPE, [(255, constant(1.0))]).dtype == np.uint8
    answer = compete(SHAPE, [(255, constant(1.0, (0, 0, 0), (2, 2, 2))), (256, constant(0.5))])
    assert answer.dtype == np.uint16
    assert (answer[:2, :2, :2] == 255).all()
    assert (answer[2:] == 256).all()
    assert compete(SHAPE, []).dtype == np.uint8


def test_a_logit_of_0_belongs_to_nobody():
    assert not compete(SHAPE, [(1, constant(0.0))]).any()
