"""One grid or two: what counts as rounding, and what a difference is called."""

import numpy as np
import pytest

from utils.volumes.geometry import GeometryError, affine_from_spacing
from utils.volumes.grid import Grid, Volume, require_same_grid

AFFINE = affine_from_spacing((0.7, 0.9, 5.0))


def test_grids_that_differ_by_rounding_are_one_grid(tmp_path):
    rounded = AFFINE.astype(np.float32).astype(np.float64)

    require_same_grid(
        Grid((4, 6, 9), rounded), Volume(np.zeros((4, 6, 9)), AFFINE), tmp_path, tmp_path
    )


@pytest.mark.parametrize(
    ("shape", "spacing_xyz", "found"),
    [((4, 9, 6), (0.7, 0.9, 5), "(4, 9, 6)"), ((4, 6, 9), (0.7, 0.9, 4), "(4, 0.9, 0.7)")],
)
def test_grids_that_differ_are_named_with_shape_and_spacing(tmp_path, shape, spacing_xyz, found):
    image = Grid(shape, affine_from_spacing(spacing_xyz))
    paths = tmp_path / "i.npz", tmp_path / "CT_AMOS_1.nii.gz"

    with pytest.raises(GeometryError) as error:
        require_same_grid(image, Grid((4, 6, 9), AFFINE), *paths)

    assert str(error.value).startswith("CT_AMOS_1: label and image are on different grids.")
    for part in (*map(str, paths), found, "(4, 6, 9)", "(5, 0.9, 0.7) mm"):
        assert part in str(error.value)
