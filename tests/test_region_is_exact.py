"""Regions in numbers: where a cube is placed and how large it is, worked out by hand."""

import numpy as np
import pytest

from utils.prediction.region import (
    LEAST_IMAGE,
    Extent,
    Region,
    Scene,
    ZoomRule,
    extent_in,
)
from utils.prompts.kinds import BoxPrompt
from utils.volumes.geometry import CropRule, affine_from_spacing

RULE = CropRule(size=64, spacing_mm=1.5)  # a cube of 96 mm
SHAPE = (60, 200, 220)
SPACING_XYZ = np.array([0.8, 0.9, 3.0])  # the image is 180 x 180 x 176 mm along z, y, x
CELLS = 16


def scene(shape=SHAPE, rule=RULE, spacing_xyz=SPACING_XYZ, **zoom) -> Scene:
    return Scene(shape, affine_from_spacing(spacing_xyz), rule, ZoomRule(**zoom))


def extent(low, high) -> Extent:
    return Extent(np.array(low, float), np.array(high, float))


def cells_of(where, region, wanted) -> np.ndarray:
    """Return the 16³ cells of a region whose middles lie in an extent on the image."""
    grid = where.grid(region)
    middles = (np.indices((CELLS,) * 3).reshape(3, -1).T + 0.5) * (64 / CELLS) - 0.5
    places = np.array([grid.to_volume(tuple(m)) for m in middles])
    inside = ((places > wanted.low) & (places < wanted.high)).all(axis=1)
    return inside.reshape((CELLS,) * 3)


def test_the_grid_of_a_region_is_a_cube_around_its_middle():
    grid = scene().grid(Region((30.0, 90.0, 110.0), 1.5))
    assert grid.to_volume((31.5, 31.5, 31.5)) == pytest.approx((30, 90, 110))
    low, high = np.array(grid.to_volume((-0.5,) * 3)), np.array(grid.to_volume((63.5,) * 3))
    np.testing.assert_allclose(np.abs(high - low) * [3.0, 0.9, 0.8], 96)


def test_the_finest_spacing_is_a_share_of_the_finest_voxel():
    assert scene(finest=0.25).finest_mm == pytest.approx(0.2)


def test_a_click_on_an_image_that_fits_the_cube_on_two_axes_alone_is_its_own_middle():
    where = scene(shape=(20, 40, 220))
    assert where.about_click((3, 4, 5)) == Region((3.0, 4.0, 5.0), 1.5)


def test_an_image_exactly_as_long_as_the_cube_shares_its_middle():
    where = scene(shape=(32, 50, 120))  # 96, 45, 96 mm
    assert where.about_click((3, 4, 5)) == Region((15.5, 24.5, 59.5), 1.5)


def test_a_small_image_takes_an_eighth_of_the_cube_at_least():
    where = scene(shape=(2, 5, 5))  # at most 6 mm
    assert where.about_click((0, 0, 0)).spacing_mm == pytest.approx(6 / (LEAST_IMAGE * 64))
    assert LEAST_IMAGE == 0.125


def test_a_box_reaches_half_a_voxel_beyond_the_middles_of_its_voxels():
    found = scene().extent_of_box(BoxPrompt((20, 50, 60), (40, 90, 100)))
    np.testing.assert_array_equal(found.low, (19.5, 49.5, 59.5))
    np.testing.assert_array_equal(found.high, (39.5, 89.5, 99.5))


def test_a_box_of_a_middle_slice_is_widened_about_its_middle():
    where = scene(in_plane=1.5)
    found = where.extent_of_box(BoxPrompt((20, 50, 60), (40, 90, 120), middle_slice=True))
    np.testing.assert_allclose(found.low, (19.5, 39.5, 44.5))
    np.testing.assert_allclose(found.high, (39.5, 99.5, 134.5))


@pytest.mark.parametrize(
    ("low", "high", "longest_mm"),
    [
        ((20, 80, 80), (30, 90, 90), 30),
        ((20, 60, 80), (21, 100, 90), 36),
        ((20, 80, 60), (21, 85, 110), 40),
    ],
    ids="zyx",
)
def test_the_longest_side_in_mm_fills_the_share_of_the_region(low, high, longest_mm):
    region = scene(fill=0.4).about(extent(low, high))
    assert region.spacing_mm * 64 * 0.4 == pytest.approx(longest_mm)
    assert region.centre_zyx == pytest.approx(np.add(low, high) / 2)
    assert all(type(c) is float for c in (*region.centre_zyx, region.spacing_mm))


def test_a_region_is_no_finer_than_asked():
    small = extent((20, 80, 80), (22, 85, 85))
    assert scene().about(small, at_least_mm=1.25).spacing_mm == 1.25
    assert scene(finest=0.5).about(small, at_least_mm=0.1).spacing_mm == pytest.approx(0.4)


def test_a_region_is_no_coarser_than_the_rule_allows_unless_the_image_is_longer():
    wide = extent((0, 0, 0), SHAPE)
    assert scene(coarsest=2.0).about(wide).spacing_mm == pytest.approx(2 * 180 / 64)
    assert scene(coarsest=3.75).about(wide).spacing_mm == 5.625
    assert scene(coarsest=4.0, fill=0.1).about(wide).spacing_mm == 6.0


def test_the_finest_spacing_holds_where_it_is_coarser_than_the_coarsest():
    where = Scene((10, 10, 10), affine_from_spacing(np.full(3, 50.0)), RULE, ZoomRule(finest=2.0))
    assert where.about(extent((4, 4, 4), (5, 5, 5))).spacing_mm == 100


@pytest.mark.parametrize("axis", range(3))
def test_a_region_holds_what_lies_nearer_than_half_its_edge(axis):
    where, region = scene(), Region((30.0, 90.0, 110.0), 1.5)
    half = 48 / np.array([3.0, 0.9, 0.8])
    edge = 1.0 if axis == 0 else 1.001  # along z, half of the edge is a whole number of voxels
    for factor, held in ((0.999, True), (-0.999, True), (edge, False), (-edge, False)):
        place = np.array(region.centre_zyx)
        place[axis] += factor * half[axis]
        assert where.holds(region, tuple(place)) == held


def test_extents_are_joined_with_whole_voxels():
    joined = extent((10, 10, 10), (20, 20, 20)).joined(np.array([[5.0, 15, 25], [15, 30, 12]]))
    np.testing.assert_array_equal(joined.low, (4.5, 10, 10))
    np.testing.assert_array_equal(joined.high, (20, 30.5, 25.5))
    alone = extent((10, 10, 10), (20, 20, 20)).joined(np.zeros((0, 3)))
    np.testing.assert_array_equal(alone.low, (10, 10, 10))
    np.testing.assert_array_equal(alone.high, (20, 20, 20))


def test_a_widened_region_is_about_the_mask_and_the_clicks():
    where, region = scene(), Region((30.0, 90.0, 110.0), 1.5)
    clicks = np.array([[30.0, 90, 110], [30, 30, 110]])
    found = where.widened(region, extent((25, 80, 100), (35, 100, 190)), clicks)
    assert found == where.about(extent((25, 29.5, 100), (35, 100, 190)))
    assert where.widened(region, None, clicks[:1]) == Region((30.0, 90.0, 110.0), 1.5)


def test_a_mask_on_a_face_grows_by_its_own_length_beyond_that_face_alone():
    where, region = scene(growth=1.5), Region((30.0, 100.0, 110.0), 1.5)
    # y of the cube: 100 -+ 53.33; the mask fills the lower half and touches that face.
    mask = cells_of(where, region, extent((20, 0, 90), (40, 100, 130)))
    had = extent_in(where.grid(region), mask)
    found = where.next_region(region, mask, np.zeros((0, 3)))
    grown = Extent(had.low - [0, 0.5 * (had.high - had.low)[1], 0], had.high)
    assert grown.low[1] > 0
    expected = where.about(grown, at_least_mm=1.5)
    assert found.centre_zyx == pytest.approx(expected.centre_zyx)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm)


def test_a_mask_on_the_upper_face_grows_upwards():
    where, region = scene(growth=1.2), Region((30.0, 100.0, 110.0), 1.5)
    mask = cells_of(where, region, extent((20, 100, 90), (40, 200, 130)))
    had = extent_in(where.grid(region), mask)
    grown = Extent(had.low, had.high + np.array([0, 0.2 * (had.high - had.low)[1], 0]))
    expected = where.about(grown, at_least_mm=1.5)
    found = where.next_region(region, mask, np.zeros((0, 3)))
    assert found.centre_zyx == pytest.approx(expected.centre_zyx)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("upper", [False, True])
def test_growth_ends_at_the_border_of_the_image(axis, upper):
    where = scene(growth=9.0, fill=0.9, coarsest=20.0)
    centre = np.array((29.0, 99.0, 109.0))
    region = Region(tuple(centre), 1.5)
    low, high = centre - 4, centre + 4
    (high if upper else low)[axis] = 500 if upper else -500
    mask = cells_of(where, region, Extent(low, high))
    had = extent_in(where.grid(region), mask)
    ends = Extent(had.low.copy(), had.high.copy())
    if upper:
        ends.high[axis] = SHAPE[axis] - 0.5
    else:
        ends.low[axis] = -0.5
    found = where.next_region(region, mask, np.zeros((0, 3)))
    expected = where.about(ends, at_least_mm=1.5)
    assert found.centre_zyx == pytest.approx(expected.centre_zyx)
    assert found.spacing_mm == pytest.approx(expected.spacing_mm)


@pytest.mark.parametrize("upper", [False, True])
def test_a_face_beyond_the_image_is_no_reason_to_move(upper):
    where = scene()
    region = Region((30.0, 170.0 if upper else 30.0, 110.0), 1.5)
    away = extent((20, 140, 90), (40, 250, 130)) if upper else extent((20, -50, 90), (40, 60, 130))
    mask = cells_of(where, region, away)
    along = mask.any(axis=tuple(n for n in range(3) if where.grid(region).axes[n] != 1))
    assert along[0] != along[-1]  # it touches one face along y, the one outside of the image
    assert where.next_region(region, mask, np.zeros((0, 3))) is None


def test_a_moved_region_holds_the_clicks_beside_its_mask():
    where, region = scene(), Region((30.0, 100.0, 110.0), 1.5)
    mask = cells_of(where, region, extent((28, 90, 100), (32, 110, 120)))
    had = extent_in(where.grid(region), mask)
    clicks = np.array([[30.0, 140, 110]])
    assert where.next_region(region, mask, clicks) == where.about(had.joined(clicks))
    assert where.next_region(region, mask, np.zeros((0, 3))) == where.about(had)


@pytest.mark.parametrize(("share", "moves"), [(0.16, False), (0.34, True)])
def test_a_mask_below_the_least_fill_gets_a_smaller_region(share, moves):
    where, region = scene(least_fill=share), Region((30.0, 100.0, 110.0), 1.5)
    mask = cells_of(where, region, extent((25, 85, 95), (35, 115, 125)))
    had = extent_in(where.grid(region), mask)
    assert 0.2 < ((had.high - had.low) * where.voxel_mm).max() / 96 < 0.33
    assert (where.next_region(region, mask, np.zeros((0, 3))) is not None) == moves


def test_a_move_by_less_than_a_share_is_left_out():
    where = scene(same=0.1)
    here = Region((30.0, 100.0, 110.0), 1.5)

    def same(shift_mm=(0, 0, 0), factor=1.0):
        centre = np.array(here.centre_zyx) + np.array(shift_mm) / where.voxel_mm
        return where._same(here, Region(tuple(centre), 1.5 * factor))

    assert same()
    for axis in range(3):
        assert same(9.5 * np.eye(3)[axis])
        assert same(-9.5 * np.eye(3)[axis])
        assert not same(9.7 * np.eye(3)[axis])
    assert same(factor=1.09)
    assert same(factor=0.91)
    assert not same(factor=1.11)
    assert not same(factor=0.89)


def test_the_extent_of_cells_ends_at_their_faces():
    where = scene()
    grid = where.grid(Region((30.0, 100.0, 110.0), 1.5))
    mask = np.zeros((CELLS,) * 3, bool)
    mask[2:4, 5, 6:9] = True
    found = extent_in(grid, mask)
    corners = np.array([grid.to_volume((7.5, 19.5, 23.5)), grid.to_volume((15.5, 23.5, 35.5))])
    np.testing.assert_allclose(found.low, corners.min(axis=0))
    np.testing.assert_allclose(found.high, corners.max(axis=0))
