"""A flipped cube covers the same place: its crop is the mirrored crop, voxel for voxel."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from utils.volumes.geometry import CropGrid, affine_from_spacing

SHAPE = (6, 7, 9)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.4, 0.5) @ np.diag([0.5, 2.0, 1.0]), [5, -7, 11]
)
ALONG = [axes for n in range(4) for axes in itertools.combinations(range(3), n)]


@pytest.fixture(params=[affine_from_spacing((0.8, 1.3, 2.5)), OBLIQUE], ids=["axial", "oblique"])
def grid(request):
    return CropGrid.at((2.5, 3, 4), SHAPE, request.param, 1.1, 8)


@pytest.mark.parametrize("axes", ALONG, ids=str)
def test_the_crop_of_a_flipped_cube_is_the_mirrored_crop(grid, axes):
    volume = np.random.default_rng(0).random(SHAPE, np.float32)
    expected = np.flip(grid.crop(volume), axes)
    np.testing.assert_allclose(grid.flipped(axes).crop(volume), expected, atol=1e-5)
    assert expected.any()


@pytest.mark.parametrize("axes", ALONG, ids=str)
def test_a_flipped_cube_covers_the_same_voxels(grid, axes):
    assert grid.flipped(axes).covered_box() == grid.covered_box()


@pytest.mark.parametrize("axes", ALONG, ids=str)
def test_a_point_is_mirrored_in_a_flipped_cube(grid, axes):
    point = np.array(grid.to_crop((1, 2, 3)))
    point[list(axes)] = 7 - point[list(axes)]
    np.testing.assert_allclose(grid.flipped(axes).to_crop((1, 2, 3)), point, atol=1e-9)


def test_a_cube_flipped_twice_is_the_cube(grid):
    again = grid.flipped((0, 2)).flipped((0, 2))
    np.testing.assert_allclose(again.origin, grid.origin, atol=1e-9)
    assert again.steps == grid.steps
