"""Regions: which cube of the image the network gets."""

import numpy as np
import pytest

from utils.prediction.region import Extent, Region, Scene, ZoomRule, extent_in, extent_of
from utils.prompts.kinds import BoxPrompt
from utils.volumes.geometry import CropRule, affine_from_spacing

RULE = CropRule(size=64, spacing_mm=1.5)
SHAPE = (60, 200, 200)
SPACING_XYZ = np.array([0.8, 0.8, 3.0])


def scene(shape=SHAPE, rule=RULE, **zoom) -> Scene:
    return Scene(shape, affine_from_spacing(SPACING_XYZ), rule, ZoomRule(**zoom))


def cells(region: Region, extent: Extent, where: Scene) -> np.ndarray:
    """Return the 16³ cells of a region whose middles lie in an extent on the image."""
    grid = where.grid(region)
    middles = (np.indices((16, 16, 16)).reshape(3, -1).T + 0.5) * 4 - 0.5
    places = np.array([grid.to_volume(tuple(m)) for m in middles])
    return ((places > extent.low) & (places < extent.high)).all(axis=1).reshape(16, 16, 16)


def test_a_click_gets_a_region_of_the_networks_own_spacing():
    region = scene().about_click((30, 100, 100))
    assert region == Region((30.0, 100.0, 100.0), 1.5)


def test_clicks_on_an_image_that_fits_share_its_middle():
    small = scene(shape=(20, 40, 60))
    assert small.about_click((1, 2, 3)) == small.about_click((19, 30, 50))
    assert small.about_click((1, 2, 3)).centre_zyx == (9.5, 19.5, 29.5)


def test_a_box_fills_half_of_its_region():
    where = scene()
    region = where.about_box(BoxPrompt((20, 50, 60), (40, 90, 100)))
    assert region.centre_zyx == (29.5, 69.5, 79.5)
    assert region.spacing_mm * RULE.size * 0.5 == pytest.approx(60)  # 20 slices of 3 mm


def test_a_middle_slices_box_is_widened_along_y_and_x_alone():
    where = scene(in_plane=1.5)
    extent = where.extent_of_box(BoxPrompt((20, 50, 60), (40, 90, 100), middle_slice=True))
    np.testing.assert_allclose(extent.high - extent.low, (20, 60, 60))


def test_a_region_is_no_finer_than_the_image_can_show():
    region = scene(finest=0.5).about_box(BoxPrompt((20, 50, 60), (21, 52, 62)))
    assert region.spacing_mm == pytest.approx(0.4)


def test_a_mask_at_the_border_makes_the_region_larger_and_moves_it():
    where = scene()
    region = where.about_click((30, 100, 100))  # reaches 48 mm: y from 40 to 160
    mask = cells(region, Extent(np.array([20, 20, 90]), np.array([40, 100, 110])), where)
    new = where.next_region(region, mask, np.array([[30.0, 90, 100]]))
    assert new.spacing_mm >= region.spacing_mm
    assert new.centre_zyx[1] < 80
    assert where.holds(new, (30, 30, 100))


def test_a_mask_at_the_volumes_own_border_is_no_reason_to_move():
    where = scene()
    region = where.about_click((30, 30, 100))
    mask = cells(region, Extent(np.array([20, -1, 80]), np.array([40, 60, 120])), where)
    assert mask.any()
    assert where.next_region(region, mask, np.array([[30.0, 30, 100]])) is None


def test_a_small_mask_gets_a_smaller_region():
    where = scene()
    region = where.about_click((30, 100, 100))
    mask = cells(region, Extent(np.array([27, 90, 90]), np.array([33, 110, 110])), where)
    new = where.next_region(region, mask, np.array([[30.0, 100, 100]]))
    assert new.spacing_mm < region.spacing_mm / 1.4


def test_a_mask_that_fills_enough_or_nothing_leaves_the_region():
    where = scene()
    region = where.about_click((30, 100, 100))
    good = cells(region, Extent(np.array([20, 70, 70]), np.array([40, 130, 130])), where)
    seeds = np.array([[30.0, 100, 100]])
    assert where.next_region(region, good, seeds) is None
    assert where.next_region(region, np.zeros_like(good), seeds) is None


def test_foreground_clicks_stay_inside_when_the_region_shrinks():
    where = scene()
    region = where.about_click((30, 100, 100))
    mask = cells(region, Extent(np.array([28, 95, 95]), np.array([32, 105, 105])), where)
    new = where.next_region(region, mask, np.array([[30.0, 100, 100], [30, 120, 100]]))
    assert where.holds(new, (30, 120, 100))


def test_a_click_outside_widens_the_region_to_hold_all():
    where = scene()
    region = where.about_click((30, 100, 100))
    new = where.widened(region, None, np.array([[30.0, 100, 100], [30, 5, 195]]))
    assert where.holds(new, (30, 5, 195))
    assert where.holds(new, (30, 100, 100))


def test_extents_of_masks():
    mask = np.zeros((9, 9, 9), bool)
    assert extent_in(scene().grid(Region((4, 4, 4), 1.5)), mask) is None
    mask[2:4, 5, 8] = True
    extent = extent_of(mask)
    np.testing.assert_array_equal(extent.low, (1.5, 4.5, 7.5))
    np.testing.assert_array_equal(extent.high, (3.5, 5.5, 8.5))


def test_the_extent_of_cells_is_where_they_lie_on_the_image():
    where = scene()
    region = Region((30.0, 100.0, 100.0), 1.5)
    wanted = Extent(np.array([20.0, 60, 80]), np.array([40.0, 100, 140]))
    found = extent_in(where.grid(region), cells(region, wanted, where))
    cell = 4 * 1.5 / np.array([3.0, 0.8, 0.8])
    assert (np.abs(found.low - wanted.low) <= cell).all()
    assert (np.abs(found.high - wanted.high) <= cell).all()


def test_an_image_far_smaller_than_the_cube_is_not_lost_in_it():
    tiny = Scene((60, 60, 60), affine_from_spacing(np.full(3, 0.001)), RULE)
    region = tiny.about_click((30, 30, 30))
    assert region.spacing_mm * RULE.size <= 8 * 0.06 + 1e-9


def test_any_two_voxels_of_a_long_image_fit_into_one_region():
    long = Scene((40, 40, 3000), affine_from_spacing(np.ones(3)), RULE)
    region = long.widened(
        long.about_click((5, 5, 5)), None, np.array([[5.0, 5, 5], [30, 30, 2990]])
    )
    assert long.holds(region, (5, 5, 5))
    assert long.holds(region, (30, 30, 2990))
