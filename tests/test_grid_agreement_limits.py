"""How far two grids may differ and still be one grid; what the message says where they are two."""

import numpy as np
import pytest

from utils.volumes.geometry import GeometryError
from utils.volumes.grid import Grid, Volume, require_same_grid

SHAPE = (4, 6, 9)
SPACING_XYZ = (0.7, 0.9, 5.0)
ORIGIN = (-30.0, 12.5, 7.0)


def grid(origin=ORIGIN, spacing_xyz=SPACING_XYZ, shape=SHAPE):
    affine = np.diag([*spacing_xyz, 1.0])
    affine[:3, 3] = origin
    return Grid(shape, affine)


def agree(first, second, tmp_path):
    """Tell whether the two are accepted as one grid."""
    try:
        require_same_grid(first, second, tmp_path / "image.nii.gz", tmp_path / "CT_A_1.nii.gz")
    except GeometryError:
        return False
    return True


def test_a_grid_agrees_with_itself_wherever_it_lies(tmp_path):
    for origin in (ORIGIN, (0, 0, 0), (1e5, -1e5, 3.0)):
        assert agree(grid(origin), grid(origin), tmp_path)


@pytest.mark.parametrize("axis", range(3))
def test_origins_may_differ_by_a_hundredth_of_the_smallest_voxel(tmp_path, axis):
    for shift, same in ((0.006, True), (-0.006, True), (0.008, False), (-0.008, False)):
        moved = np.array(ORIGIN)
        moved[axis] += shift
        assert agree(grid(), grid(moved), tmp_path) == same


def test_origins_far_away_may_differ_by_the_rounding_of_float32(tmp_path):
    far = np.array((2e5, 0.0, 0.0))
    for shift, same in ((0.15, True), (0.25, False)):
        assert agree(grid(far), grid(far + shift), tmp_path) == same


def test_origins_of_small_voxels_are_compared_in_voxels(tmp_path):
    small = (1e-3, 1e-3, 1e-3)
    for shift, same in ((0.8e-5, True), (2e-5, False)):
        first, second = grid((0, 0, 0), small), grid((shift, 0, 0), small)
        assert agree(first, second, tmp_path) == same


@pytest.mark.parametrize("axis", range(3))
def test_voxel_sizes_may_differ_by_the_rounding_of_five_digits(tmp_path, axis):
    for factor, same in ((1 + 0.9e-4, True), (1 - 0.9e-4, True), (1 + 1.2e-4, False)):
        spacing = np.array(SPACING_XYZ)
        spacing[axis] *= factor
        assert agree(grid(), grid(spacing_xyz=spacing), tmp_path) == same


def test_other_directions_of_the_axes_are_another_grid(tmp_path):
    flipped = grid()
    flipped.affine[0, 0] *= -1
    turned = grid()
    turned.affine[:2, :2] = [[0.7, 9e-3], [-7e-3, 0.9]]
    assert not agree(grid(), flipped, tmp_path)
    assert not agree(grid(), turned, tmp_path)


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        (grid(origin=(0, 0, 0)), True),
        (grid(spacing_xyz=(0.7, 0.9, 4.0)), False),
        (grid(shape=(4, 6, 8)), False),
        (grid(spacing_xyz=(0.7, 0.9, 4.0), shape=(4, 6, 8)), False),
    ],
    ids=["origin", "spacing", "shape", "both"],
)
def test_where_only_the_place_differs_the_message_says_so(tmp_path, other, hint):
    image = Volume(np.zeros(SHAPE), grid().affine)
    with pytest.raises(GeometryError) as error:
        require_same_grid(image, other, tmp_path / "i.nii.gz", tmp_path / "CT_A_1.nii.gz")
    message = str(error.value)
    assert ("Shape and spacing agree, origin or direction" in message) == hint
    assert "None" not in message
    assert message.startswith("CT_A_1: ")
    for grid_named, path in ((other, "CT_A_1.nii.gz"), (image, "i.nii.gz")):
        (line,) = [line for line in message.splitlines() if f"{tmp_path / path}" in line]
        assert str(tuple(grid_named.shape)) in line
    assert "spacing_zyx (5, 0.9, 0.7) mm" in message
