"""NPZ and NIfTI in and out: axis order, affine, refusals."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from utils.atomic import WriteError
from utils.errors import InputError
from utils.geometry import GeometryError, affine_from_spacing
from utils.nifti_io import (
    Grid,
    Volume,
    as_label,
    read_nifti,
    read_nifti_grid,
    require_same_grid,
    write_nifti,
)

AFFINE = affine_from_spacing((0.7, 0.9, 5.0))


def counting(shape=(4, 6, 9), dtype=np.uint8):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "int64"])
def test_what_is_written_is_read_again_with_dtype_and_affine(tmp_path, dtype):
    affine = AFFINE.copy()
    affine[:3, 3] = (10, -20, 30)
    write_nifti(tmp_path / "a.nii.gz", counting(dtype=dtype), affine)

    volume = read_nifti(tmp_path / "a.nii.gz")

    np.testing.assert_array_equal(volume.array, counting())
    assert volume.array.dtype == dtype
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)


def test_bool_is_written_as_uint8(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", counting() > 7, AFFINE)

    array = read_nifti(tmp_path / "a.nii.gz").array

    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, counting() > 7)


def test_nibabel_finds_both_transforms_in_scanner_coordinates_and_mm(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", counting(), AFFINE)

    image = nib.load(tmp_path / "a.nii.gz")

    np.testing.assert_array_equal(np.asarray(image.dataobj), counting().transpose(2, 1, 0))
    for matrix, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        np.testing.assert_allclose(matrix, np.diag([-0.7, -0.9, 5, 1]), atol=1e-6)
        assert code == 1
    assert image.header.get_xyzt_units()[0] == "mm"


def test_simpleitk_finds_the_same_array_the_spacing_and_identity_direction(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", counting(), AFFINE)

    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))

    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), counting())
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.9, 5), rtol=1e-6)
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-6)


def test_fourth_dimension_of_length_one_is_dropped_and_longer_ones_are_refused(tmp_path):
    array = counting().T[..., None]
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "one.nii.gz")
    nib.save(nib.Nifti1Image(np.repeat(array, 2, axis=3), AFFINE), tmp_path / "two.nii.gz")

    np.testing.assert_array_equal(read_nifti(tmp_path / "one.nii.gz").array, counting())
    with pytest.raises(InputError, match=r"two\.nii\.gz: shape .*Expected one 3-D volume"):
        read_nifti(tmp_path / "two.nii.gz")


def test_header_alone_tells_the_grid(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", counting(), AFFINE)

    grid = read_nifti_grid(tmp_path / "a.nii.gz")

    assert grid.shape == (4, 6, 9)
    assert grid.spacing_zyx == pytest.approx((5, 0.9, 0.7))


def test_nan_in_a_nifti_is_refused(tmp_path):
    array = counting(dtype=np.float32)
    array[1, 2, 3] = np.nan
    write_nifti(tmp_path / "a.nii.gz", array, AFFINE)

    with pytest.raises(InputError, match=r"a\.nii\.gz: the volume has 1 voxels that are NaN"):
        read_nifti(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("kept", [0, 10, 60, 100])
def test_truncated_nifti_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, counting((8, 9, 10)), AFFINE)
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read"):
        read_nifti(path)


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no\.nii\.gz: no such file"):
        read_nifti(tmp_path / "no.nii.gz")


@pytest.mark.parametrize(
    ("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")]
)
def test_label_takes_the_smallest_unsigned_dtype(tmp_path, highest, dtype):
    label = as_label(np.array([[[0.0, highest]]]), tmp_path)

    assert label.dtype == dtype
    assert label.max() == highest


@pytest.mark.parametrize(("value", "found"), [(0.5, "fractions, 0.5"), (-3, "negative values, -3")])
def test_label_with_fractions_or_negative_values_is_refused(tmp_path, value, found):
    with pytest.raises(InputError, match=found):
        as_label(np.array([[[0, value]]]), tmp_path / "case.npz")


def test_grids_that_differ_by_rounding_are_one_grid(tmp_path):
    rounded = AFFINE.astype(np.float32).astype(np.float64)

    require_same_grid(Grid((4, 6, 9), rounded), Volume(counting(), AFFINE), tmp_path, tmp_path)


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


def test_place_that_cannot_be_written_is_named_with_the_free_space(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(WriteError, match=r"(?s)a\.nii\.gz: cannot be written .*MiB are free"):
        write_nifti(tmp_path / "file" / "a.nii.gz", counting(), AFFINE)
