"""One grid or two: what counts as rounding, and what a difference is called."""

import numpy as np
import pytest

from utils.volumes.forms import Forms
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


def moved(affine, millimetres):
    affine = affine.copy()
    affine[0, 3] += millimetres
    return affine


def two_forms(sform, qform, sform_code=4, qform_code=1):
    """A grid whose sform nibabel reads, and whose qform ITK reads; axes are AFFINE's."""
    forms = Forms(
        srow=sform[:3],
        sform_code=sform_code,
        quaternion=np.array([0.0, 0, 1]),  # half a turn about z: x and y grow to left and back
        offset=qform[:3, 3],
        qform_code=qform_code,
        pixdim=np.array([1.0, 0.7, 0.9, 5, 0, 0, 0, 0]),
        xyzt_units=2,
    )
    return Grid((4, 6, 9), sform, forms)


@pytest.mark.parametrize("shared", ["nibabel", "ITK"])
def test_a_label_drawn_in_either_viewer_is_on_the_image_s_grid(tmp_path, shared):
    image = two_forms(moved(AFFINE, 30), AFFINE)
    label = Grid((4, 6, 9), moved(AFFINE, 30) if shared == "nibabel" else AFFINE)
    other = "ITK" if shared == "nibabel" else "nibabel"

    agreement = require_same_grid(image, label, tmp_path / "i.nii", tmp_path / "l.nii")

    assert not agreement.everywhere
    assert agreement.notes[0].startswith("image i.nii: qform (code 1) and sform (code 4) differ")
    assert "30 mm apart" in agreement.notes[0]
    assert f"but {other} shows the label beside the image" in agreement.notes[1]


def test_a_label_may_have_the_form_that_neither_viewer_reads(tmp_path):
    image = two_forms(moved(AFFINE, 30), AFFINE, sform_code=1)
    np.testing.assert_allclose(image.itk_affine, image.affine)

    agreement = require_same_grid(image, Grid((4, 6, 9), AFFINE), tmp_path, tmp_path)

    assert not agreement.everywhere


def test_label_and_image_with_both_forms_in_common_agree_everywhere(tmp_path):
    grid = two_forms(moved(AFFINE, 30), AFFINE)

    agreement = require_same_grid(grid, grid, tmp_path / "i.nii", tmp_path / "l.nii")

    assert agreement.everywhere
    assert [note.split(":")[0] for note in agreement.notes] == ["label l.nii", "image i.nii"]


def test_a_form_with_code_0_does_not_count(tmp_path):
    image = two_forms(moved(AFFINE, 30), AFFINE, qform_code=0)

    with pytest.raises(GeometryError, match="different grids"):
        require_same_grid(image, Grid((4, 6, 9), AFFINE), tmp_path, tmp_path)


def test_grids_that_share_no_form_are_refused_and_the_forms_told(tmp_path):
    image = two_forms(moved(AFFINE, 30), AFFINE)

    with pytest.raises(GeometryError, match=r"different grids[^!]*image i\.nii: qform.*differ"):
        require_same_grid(
            image, Grid((4, 6, 9), moved(AFFINE, 7)), tmp_path / "i.nii", tmp_path / "l.nii"
        )
    with pytest.raises(GeometryError, match="different grids"):
        require_same_grid(image, Grid((4, 6, 8), AFFINE), tmp_path, tmp_path)
