"""From logits to masks: clicks honoured, classes competing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.prediction.honouring import honour_clicks
from utils.prediction.masks import THIN, LogitBox, cell_means, compete, keep_prompted
from utils.prompts.kinds import Click
from utils.volumes.components import connected_components

SHAPE = (20, 24, 28)
VOXEL_MM = (1.0, 1.0, 1.0)
WHOLE = tuple(slice(0, n) for n in SHAPE)


def logit_box(value=-6.0, box=WHOLE):
    return LogitBox(box, np.full([s.stop - s.start for s in box], value, np.float32))


def honoured(logits, clicks, elsewhere=(), cell_mm=4.0, voxel_mm=VOXEL_MM):
    return honour_clicks(logits, clicks, elsewhere, voxel_mm, cell_mm, SHAPE).logits


def test_a_missed_click_becomes_a_spot_and_no_speckle():
    mended = honoured(logit_box(), [Click((10, 12, 14), True)]).values > 0
    assert mended[10, 12, 14]
    assert mended.sum() > 27
    assert connected_components(mended)[1] == 1


def test_a_background_click_digs_a_hole_wider_than_a_voxel():
    mended = honoured(logit_box(6.0), [Click((10, 12, 14), False)]).values > 0
    assert not mended[10, 12, 14]
    assert (~mended).sum() > 27


def test_nothing_changes_where_the_mask_agrees():
    before = logit_box(3.0)
    after = honoured(before, [Click((10, 12, 14), True)])
    np.testing.assert_array_equal(after.values, logit_box(3.0).values)


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_clicks_of_both_kinds_close_together_are_all_honoured(distance):
    clicks = [Click((10, 12, 14), True), Click((10, 12, 14 + distance), False)]
    for value in (-6.0, 6.0, 0.01):
        for order in (clicks, clicks[::-1]):
            mask = honoured(logit_box(value), order).values > 0
            assert mask[10, 12, 14]
            assert not mask[10, 12, 14 + distance]


def test_of_two_clicks_on_one_voxel_the_last_counts():
    place = (3, 4, 5)
    clicks = [Click(place, True), Click(place, False)]
    assert not honoured(logit_box(), clicks).values[place] > 0
    assert honoured(logit_box(), clicks[::-1]).values[place] > 0


def test_a_click_beside_the_box_makes_the_box_larger():
    box = (slice(0, 5), slice(0, 5), slice(0, 5))
    grown = honoured(logit_box(box=box), [Click((19, 23, 27), True)])
    assert grown.holds((19, 23, 27))
    assert grown.values[tuple(np.array((19, 23, 27)) - grown.start)] > 0


def test_a_spot_is_as_large_beside_the_box_as_inside():
    inside = honoured(logit_box(), [Click((10, 12, 14), True)]).values > 0
    box = (slice(0, 3), slice(0, 3), slice(0, 3))
    beside = honoured(logit_box(box=box), [Click((10, 12, 14), True)]).values > 0
    nothing = LogitBox((slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32))
    from_nothing = honoured(nothing, [Click((10, 12, 14), True)]).values > 0
    assert inside.sum() == beside.sum() == from_nothing.sum()


def test_thick_slices_get_a_spot_in_their_plane():
    mask = honoured(logit_box(), [Click((10, 12, 14), True)], voxel_mm=(10.0, 1.0, 1.0)).values > 0
    assert mask[10].sum() > 9


def test_another_targets_click_is_not_mine():
    mine = honoured(logit_box(6.0), [Click((2, 2, 2), True)], [Click((10, 12, 14), True)])
    assert mine.values[2, 2, 2] > 0
    assert mine.values[10, 12, 14] < 0


def test_components_without_a_seed_are_dropped():
    logits = logit_box()
    logits.values[2:6, 2:6, 2:6] = logits.values[12:18, 12:18, 12:18] = 5
    kept = keep_prompted(logits, [(3, 3, 3)]).values > 0
    assert kept.sum() == 4**3
    assert kept[3, 3, 3]


def test_all_components_stay_where_none_has_a_seed():
    logits = logit_box()
    logits.values[2:6, 2:6, 2:6] = 5
    np.testing.assert_array_equal(keep_prompted(logits, [(15, 15, 15)]).values, logits.values)


def test_the_likeliest_target_has_the_voxel_whatever_the_order():
    weak, strong = (
        logit_box(1.0, (slice(0, 12), *WHOLE[1:])),
        logit_box(2.0, (slice(8, 20), *WHOLE[1:])),
    )
    answer = compete(SHAPE, [(1, weak), (2, strong)])
    np.testing.assert_array_equal(answer, compete(SHAPE, [(2, strong), (1, weak)]))
    assert (answer[:8] == 1).all()
    assert (answer[8:] == 2).all()


def test_ids_above_255_widen_the_answer():
    answer = compete(SHAPE, [(7, logit_box(1.0)), (300, logit_box(2.0, (slice(0, 2), *WHOLE[1:])))])
    assert answer.dtype == np.uint16
    assert set(np.unique(answer)) == {7, 300}


def test_nobody_has_a_voxel_that_nobody_claims():
    assert not compete(SHAPE, [(1, logit_box(-0.1))]).any()


@pytest.mark.parametrize("sparse", [1, 12])
@pytest.mark.parametrize(("size", "cells"), [(32, 16), (64, 16), (24, 4), (16, 16)])
def test_cells_have_the_bits_of_torchs_pooling(size, cells, sparse):
    shares = np.random.default_rng(0).random((size,) * 3, np.float32) ** sparse
    given, edge = torch.from_numpy(shares)[None], size // cells
    mean = F.avg_pool3d(given, edge)
    lost = (F.max_pool3d(given, edge) >= THIN) & (F.max_pool3d(mean, 3, 1, 1) < 0.5)
    expected = torch.where(lost, 1.0, mean)[0].numpy()
    found = cell_means(shares, cells)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_mask_thinner_than_a_cell_keeps_its_cells():
    thin = np.zeros((32, 32, 32), np.float32)
    thin[10, 4:28, 17] = 0.3
    expected = np.zeros((8, 8, 8))
    expected[2, 1:7, 4] = 1
    np.testing.assert_array_equal(cell_means(thin, 8), expected)
