"""A box as a coarse mask and a click."""

import numpy as np
import pytest

from utils.prompts.box import LOOSENESS, ON_ONE_SLICE, PEAK_LOGIT, Box, box_around, ellipsoid_logits


def block(start=(4, 8, 12), stop=(12, 20, 28), size=32):
    label = np.zeros((size,) * 3, bool)
    label[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return label


def test_tight_box_is_half_open_along_each_axis():
    box = box_around(block())
    assert box == Box((4, 8, 12), (12, 20, 28))
    assert box.centre == (7.5, 13.5, 19.5)


def test_drawn_boxes_contain_the_target_and_are_at_most_a_tenth_wider_a_side():
    for seed in range(50):
        box = box_around(block(), np.random.default_rng(seed))
        assert all(
            a - 0.1 * n <= b <= a
            for a, b, n in zip((4, 8, 12), box.start, (8, 12, 16), strict=True)
        )
        assert all(
            a <= b <= a + 0.1 * n
            for a, b, n in zip((12, 20, 28), box.stop, (8, 12, 16), strict=True)
        )


def test_drawn_boxes_stay_in_the_crop():
    full = block((0, 0, 0), (32, 32, 32))
    assert box_around(full, np.random.default_rng(0)) == Box((0, 0, 0), (32, 32, 32))


def test_ellipsoid_fills_about_half_of_its_box_and_nothing_outside():
    logits = ellipsoid_logits(Box((4, 8, 12), (12, 20, 28)), 32, 32)
    inside = logits > 0
    assert inside.sum() / (8 * 12 * 16) == pytest.approx(np.pi / 6, rel=0.05)
    assert not (inside & ~block()).any()
    assert logits.max() <= PEAK_LOGIT
    assert logits.min() == -PEAK_LOGIT
    assert logits[7, 13, 19] > 0.95 * PEAK_LOGIT


def test_coarse_grid_lies_over_the_same_box():
    fine = ellipsoid_logits(Box((4, 8, 12), (12, 20, 28)), 32, 32) > 0
    coarse = ellipsoid_logits(Box((4, 8, 12), (12, 20, 28)), 32, 8) > 0
    assert coarse.any()
    assert (coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2) & fine).sum() > 0.6 * fine.sum()


def test_box_thinner_than_a_cell_still_marks_one():
    assert (ellipsoid_logits(Box((5, 5, 5), (6, 6, 6)), 32, 8) > 0).sum() == 1


def test_boxes_drawn_in_3d_take_two_numbers_of_the_generator_for_each_axis():
    looser = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        wider = rng.uniform(0, LOOSENESS, (3, 2)) * np.array([[8], [12], [16]])
        if rng.random() < ON_ONE_SLICE:
            continue
        looser += 1
        box = box_around(block(), np.random.default_rng(seed))
        np.testing.assert_allclose(box.start, np.subtract((4, 8, 12), wider[:, 0]))
        np.testing.assert_allclose(box.stop, np.add((12, 20, 28), wider[:, 1]))
    assert 3 < looser < 17


def test_the_logits_of_an_ellipsoid_fall_with_the_square_of_the_distance():
    """6 in the middle, 0 on the surface, -6 far outside, at the middles of the cells."""
    logits = ellipsoid_logits(Box((4, 8, 12), (12, 20, 28)), 32, 16)
    middles = np.arange(16) * 2 + 1
    parts = [((middles - c) / r) ** 2 for c, r in ((8, 4), (14, 6), (20, 8))]
    expected = 6 * np.clip(1 - sum(np.ix_(*parts)), -1, 1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert logits.dtype == np.float32
