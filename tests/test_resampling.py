"""Resampling: values stay where they are in the world, on the grid that was asked for."""

import numpy as np
import pytest
from nibabel.eulerangles import euler2mat

from utils.preparation.resampling import Resampling
from utils.volumes.grid import Grid

SPACING_XYZ = (0.7, 0.9, 5.0)
ROTATION = euler2mat(0.3, -0.2, 0.5)


def affine_of(rotation, signs=(1, 1, 1)):
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(np.array(signs) * SPACING_XYZ)
    affine[:3, 3] = (-30, 12.5, 7)
    return affine


AFFINES = {
    "straight": affine_of(np.eye(3)),
    "flipped": affine_of(np.eye(3), (-1, -1, 1)),
    "oblique": affine_of(ROTATION),
    "oblique and flipped": affine_of(ROTATION, (1, -1, -1)),
    "axes permuted": affine_of(np.eye(3)[[2, 0, 1]]),
}
OBLIQUE = AFFINES["oblique and flipped"]


def world_of(grid):
    """Return (x, y, z) mm of every voxel of a (D, H, W) grid, from its affine."""
    index = np.indices(grid.shape)[::-1]
    return np.tensordot(grid.affine[:3, :3], index, 1) + grid.affine[:3, 3].reshape(3, 1, 1, 1)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("spacing_xyz", [(1.5, 1.5, 1.5), (2, 0.5, 3)], ids=["even", "uneven"])
def test_values_lie_where_they_were(affine, spacing_xyz):
    source = Grid((9, 30, 25), affine)
    slope = np.array((0.3, -0.7, 0.2)).reshape(3, 1, 1, 1)
    ramp = (slope * world_of(source)).sum(0).astype(np.float32)

    resampling = Resampling.of(source, spacing_xyz)
    resampled = resampling.apply(ramp, order=1)

    inner = (slice(2, -3), slice(2, -3), slice(2, -3))
    expected = (slope * world_of(resampling.grid)).sum(0)
    assert resampled.shape == resampling.grid.shape
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled[inner], expected[inner], atol=1e-4)
    np.testing.assert_allclose(resampling.grid.spacing_zyx[::-1], spacing_xyz, rtol=1e-6)


def test_first_corner_and_axes_stay_and_the_field_of_view_is_covered():
    grid = Resampling.of(Grid((4, 6, 9), OBLIQUE), (1.5, 1.5, 1.5)).grid

    assert grid.shape == (13, 4, 4)  # 4 x 5 / 1.5, 6 x 0.9 / 1.5, 9 x 0.7 / 1.5
    corner = np.array((-0.5, -0.5, -0.5, 1))
    np.testing.assert_allclose(grid.affine @ corner, OBLIQUE @ corner, atol=1e-9)
    direction = grid.affine[:3, :3] / 1.5
    np.testing.assert_allclose(direction, OBLIQUE[:3, :3] / SPACING_XYZ, atol=1e-9)


@pytest.mark.parametrize("spacing_xyz", [None, SPACING_XYZ, (0.7, 0.9000001, 5.0)])
def test_spacing_that_is_there_changes_nothing(spacing_xyz):
    array = np.arange(4 * 6 * 9).reshape(4, 6, 9)

    resampling = Resampling.of(Grid(array.shape, OBLIQUE), spacing_xyz)

    assert not resampling.changes
    assert resampling.apply(array, order=1) is array
    np.testing.assert_array_equal(resampling.grid.affine, OBLIQUE)


@pytest.mark.parametrize(
    ("order", "values", "expected"),
    [  # linear: of -3, -2.75, -2.25, -0.5, 2.5, 4.75, 6.25, 7
        (1, [-3, -2, 4, 7], [-3, -3, -2, -1, 3, 5, 6, 7]),
        (0, [5, 5, 5, 2], [5, 5, 5, 5, 5, 5, 2, 2]),
    ],
    ids=["linear", "nearest"],
)
def test_whole_numbers_stay_whole(order, values, expected):
    array = np.array([[values]], np.int16)

    resampled = Resampling.of(Grid(array.shape, np.diag([2.0, 1, 1, 1])), (1, 1, 1)).apply(
        array, order
    )

    assert resampled.dtype == np.int16
    assert resampled.ravel().tolist() == expected


def test_volume_thinner_than_a_voxel_keeps_one_slice():
    array = np.arange(6 * 9).reshape(1, 6, 9)

    resampling = Resampling.of(Grid(array.shape, np.eye(4)), (1, 1, 5))

    assert resampling.grid.shape == (1, 6, 9)
    np.testing.assert_array_equal(resampling.apply(array, order=1), array)
