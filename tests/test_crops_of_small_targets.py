"""Crops of targets that resampling would lose, of hollow targets, and of parts of a volume."""

import numpy as np
import pytest

from utils.volumes.crops import Crop, cut, cut_at, cut_image, grid_on_target, normalise
from utils.volumes.geometry import CropGrid, CropRule, affine_from_spacing

SHAPE = (40, 44, 48)
AFFINE = affine_from_spacing((1.0, 1.1, 1.2))


def image(low=1):
    return np.random.default_rng(0).integers(low, 200, SHAPE).astype(np.int16)


def block(start, stop):
    target = np.zeros(SHAPE, bool)
    target[tuple(map(slice, start, stop))] = True
    return target


def test_a_lost_target_sets_the_crop_voxel_nearest_to_each_of_its_voxels():
    target = np.zeros(SHAPE, bool)
    target[20, 22, 24] = target[26, 31, 36] = True
    grid = CropGrid.at((23, 26, 30), SHAPE, AFFINE, 4.0, 6)
    crop = cut_at(grid, image(), target)
    expected = {tuple(np.rint(grid.to_crop(v)).astype(int)) for v in np.argwhere(target)}
    assert set(map(tuple, np.argwhere(crop.label))) == expected
    assert len(expected) == 2
    assert crop.coverage == 1


def test_a_lost_target_at_the_face_of_the_cube_sets_a_voxel_on_that_face():
    grid = CropGrid.at((20, 20, 20), SHAPE, np.eye(4), 4.0, 4)  # reaches 12 to 28
    for n, place in ((0, 12), (3, 27)):
        target = np.zeros(SHAPE, bool)
        target[20, 20, place] = True
        label = cut_at(grid, image(), target).label
        assert np.argwhere(label)[:, 0].tolist() == [n]


@pytest.mark.parametrize("start", [(0, 0, 0), (15, 16, 17)])
def test_a_target_given_as_a_part_is_cut_as_in_the_whole_volume(start):
    """The part has a margin of a voxel around the target."""
    target = block((16, 17, 18), (25, 24, 31))
    target[20:22, 19:22, 20:25] = False
    grid = CropGrid.at((20, 20, 31), SHAPE, AFFINE, 1.3, 12)
    whole = cut_at(grid, image(), target)
    part = target[tuple(slice(s, None) for s in start)]
    cropped = cut_at(grid, image(), part, target_start=start)
    np.testing.assert_array_equal(cropped.label, whole.label)
    np.testing.assert_array_equal(cropped.image, whole.image)
    assert cropped.coverage == whole.coverage
    assert 0 < whole.coverage < 1
    assert cropped.grid == grid


def test_a_small_target_given_as_a_part_keeps_its_voxel():
    target = np.zeros(SHAPE, bool)
    target[20, 22, 24] = True
    grid = CropGrid.at((23, 26, 30), SHAPE, AFFINE, 4.0, 6)
    part = cut_at(grid, image(), target[18:23, 20:25, 22:27], target_start=(18, 20, 22))
    np.testing.assert_array_equal(part.label, cut_at(grid, image(), target).label)


def test_half_of_a_crop_voxel_makes_it_target():
    target = block((10, 10, 10), (20, 20, 20))
    grid = CropGrid.at((14.5, 14.5, 20), SHAPE, np.eye(4), 1.0, 4)  # x: 18.5 to 21.5
    soft = grid.crop(target)
    assert np.unique(soft).tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_array_equal(cut_at(grid, image(), target).label, soft >= 0.5)


def test_coverage_is_the_share_of_the_target_in_the_cube():
    target = block((10, 10, 10), (20, 20, 20))
    grid = CropGrid.at((14.5, 14.5, 9.5), SHAPE, np.eye(4), 1.0, 10)  # ends in its middle
    assert cut_at(grid, image(), target).coverage == pytest.approx(0.5)


def test_a_cube_on_a_solid_target_stays_in_the_middle():
    target = block((16, 17, 18), (25, 24, 31))
    placed = []
    grid_on_target(lambda c: placed.append(c) or cube_at(c), target, (20.0, 20.0, 24.0))
    assert placed == [(20.0, 20.0, 24.0)]


def cube_at(centre):
    return CropGrid.at(centre, SHAPE, np.eye(4), 1.0, 4)


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 4, 5)])
def test_a_cube_in_a_hollow_target_moves_to_the_nearest_voxel(start):
    target = np.zeros(SHAPE, bool)
    target[5, 22, 24] = target[33, 22, 24] = True  # 15 and 13 from the middle
    target[20, 36, 20] = True  # 16 away, nearest along the first axis
    part = target[tuple(slice(s, None) for s in start)]
    grid = grid_on_target(cube_at, part, (20.0, 22.0, 24.0), start)
    assert grid == cube_at((33.0, 22.0, 24.0))


def test_cut_places_the_cube_on_the_middle_of_the_box():
    target = block((16, 17, 18), (25, 24, 31))
    rule = CropRule(size=8, spacing_mm=1.5)
    crop = cut(image(), target, AFFINE, rule, is_ct=False)
    assert isinstance(crop, Crop)
    assert crop.grid == CropGrid.around((20.0, 20.0, 24.0), SHAPE, AFFINE, rule)
    again = cut_at(crop.grid, image(), target)
    np.testing.assert_array_equal(crop.image, again.image)
    np.testing.assert_array_equal(crop.label, again.label)


def test_the_padding_around_the_volume_does_not_count_for_the_normalisation():
    grid = CropGrid.at((2, 2, 2), SHAPE, np.eye(4), 1.0, 16)
    values = cut_image(grid, image(), hounsfield=False)
    known = grid.crop(image())[grid.covered_crop()]
    assert known.size < values.size
    np.testing.assert_allclose(values[grid.covered_crop()].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(values[grid.covered_crop()].std(), 1, atol=1e-5)
    np.testing.assert_allclose(values, (grid.crop(image()) - known.mean()) / known.std(), atol=1e-4)


def test_negative_padding_is_no_body_where_all_values_are_negative():
    dark = -image()
    grid = CropGrid.at((2, 2, 2), SHAPE, np.eye(4), 1.0, 16)
    known = grid.crop(dark)[grid.covered_crop()]
    values = cut_image(grid, dark, hounsfield=False)
    np.testing.assert_allclose(values, (grid.crop(dark) - known.mean()) / known.std(), atol=1e-4)


def test_hounsfield_units_are_clamped_before_they_are_normalised():
    wide = image().astype(np.int16) * 20 - 1500
    assert wide.min() < -1000
    assert wide.max() > 1000
    grid = CropGrid.at((20, 20, 20), SHAPE, np.eye(4), 1.0, 16)
    clamped = normalise(grid.crop(wide).clip(-1000, 1000), grid.covered_crop())
    np.testing.assert_array_equal(cut_image(grid, wide, hounsfield=True), clamped)
    assert (cut_image(grid, wide, hounsfield=False) != clamped).any()


def test_a_nearly_constant_body_is_not_divided_by_its_tiny_deviation():
    flat = np.full((4, 4, 4), 0.5, np.float64)
    flat[0, 0, 0] += 1e-6
    assert np.abs(normalise(flat)).max() < 1e-5
    varied = np.full((4, 4, 4), 0.5)
    varied[0, 0, 0] += 1e-3
    assert normalise(varied).std() == pytest.approx(1, rel=1e-2)


def test_normalise_leaves_its_input_alone():
    given = np.random.default_rng(0).random((4, 4, 4)).astype(np.float32)
    before = given.copy()
    assert normalise(given).dtype == np.float32
    np.testing.assert_array_equal(given, before)
