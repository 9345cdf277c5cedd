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
    read_npz,
    read_npz_shape,
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


def test_npz_gives_only_the_keys_asked_for(make_case, tmp_path):
    path = make_case(tmp_path, "case", boxes=np.array([{"z_min": 1}], dtype=object))

    arrays = read_npz(path, ("imgs",), optional=("spacing", "clicks"))

    assert arrays.keys() == {"imgs", "spacing"}
    np.testing.assert_array_equal(arrays["imgs"], counting())
    assert arrays["spacing"].tolist() == [0.7, 0.9, 5.0]


def test_objects_in_an_npz_are_never_unpickled(make_case, tmp_path):
    path = make_case(tmp_path, "case", gts=np.array([{"a": 1}], dtype=object))

    with pytest.raises(InputError, match=r"case\.npz: cannot be read .*allow_pickle"):
        read_npz(path, ("gts",))


def test_shape_in_an_npz_is_read_from_the_header(make_case, tmp_path):
    path = make_case(tmp_path, "case")

    assert read_npz_shape(path, "imgs") == (4, 6, 9)
    assert read_npz_shape(path, "clicks") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": None}, r"lacks 'imgs', holds \['gts', 'spacing'\]"),
        ({"imgs": np.zeros((4, 6))}, r"'imgs' has shape \(4, 6\)"),
        ({"imgs": np.zeros((4, 6, 9, 3))}, r"'imgs' has shape \(4, 6, 9, 3\)"),
        ({"imgs": np.zeros((0, 6, 9))}, r"'imgs' has shape \(0, 6, 9\)"),
        ({"imgs": np.full((4, 6, 9), np.nan)}, "'imgs' has 216 voxels that are NaN"),
        ({"imgs": np.full((4, 6, 9), "a")}, "'imgs' has dtype <U1"),
        ({"spacing": None}, "lacks 'spacing'"),
        ({"spacing": (1, 0, 1)}, r"'spacing' is \[1, 0, 1\]"),
        ({"spacing": (1, -1, 1)}, r"'spacing' is \[1, -1, 1\]"),
        ({"spacing": (1, 1)}, r"'spacing' is \[1, 1\]"),
        ({"spacing": (1, 1, np.nan)}, r"'spacing' is \[1.0, 1.0, nan\]"),
        ({"spacing": ("1", "1", "1")}, "'spacing' is"),
    ],
)
def test_bad_npz_is_refused_with_its_name_and_what_was_found(make_case, tmp_path, changes, message):
    path = make_case(tmp_path, "case", **changes)

    with pytest.raises(InputError, match=f"(?s)case\\.npz: {message}.*Expected"):
        read_npz(path, ("imgs", "spacing"))


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all", b"PK\x03\x04" + bytes(500)])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "case.npz"
    path.write_bytes(content)

    for read in (lambda: read_npz(path, ("imgs",)), lambda: read_npz_shape(path, "imgs")):
        with pytest.raises(InputError, match=r"case\.npz: cannot be read"):
            read()


def test_npz_truncated_or_damaged_anywhere_is_refused_or_read_right(make_case, tmp_path):
    path = make_case(tmp_path, "case")
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        for content in (whole[:position], whole[:position] + b"\xff" + whole[position + 1 :]):
            path.write_bytes(content)
            try:
                image = read_npz(path, ("imgs", "spacing"))["imgs"]
            except InputError:
                continue
            np.testing.assert_array_equal(image, counting())


@pytest.mark.parametrize(
    ("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (70000, "uint32")]
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
