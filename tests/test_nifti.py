"""NIfTI files in and out: axis order, affine, refusals."""

import contextlib
import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from utils.errors import InputError
from utils.files.atomic import WriteError
from utils.files.nifti import (
    Channel,
    read_nifti,
    read_nifti_grid,
    write_deflated_nifti,
    write_nifti,
)
from utils.files.npz_archive import NpzArchive, member_sizes
from utils.volumes.geometry import affine_from_spacing

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


def test_place_that_cannot_be_written_is_named_with_the_free_space(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(WriteError, match=r"(?s)a\.nii\.gz: cannot be written .*MiB are free"):
        write_nifti(tmp_path / "file" / "a.nii.gz", counting(), AFFINE)


def test_deflated_member_becomes_a_nifti_that_every_reader_reads(make_case, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 90), np.uint8)
    path = make_case(tmp_path, "case", imgs=image)
    with NpzArchive(path) as archive:
        write_deflated_nifti(tmp_path / "a.nii.gz", archive.deflated("imgs"), AFFINE)

    compressed, _ = member_sizes(path, "imgs")
    for array in (
        read_nifti(tmp_path / "a.nii.gz").array,
        np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj).transpose(2, 1, 0),
        sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz"))),
    ):
        np.testing.assert_array_equal(array, image)
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert content.endswith(image.tobytes())
    assert 0 < (tmp_path / "a.nii.gz").stat().st_size - compressed < 700
    np.testing.assert_allclose(read_nifti(tmp_path / "a.nii.gz").affine, AFFINE, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<i4", "<i8", "|i1"])
def test_deflated_member_keeps_its_dtype(make_case, tmp_path, dtype):
    path = make_case(tmp_path, "case", imgs=counting(dtype=dtype))
    with NpzArchive(path) as archive:
        write_deflated_nifti(tmp_path / "a.nii.gz", archive.deflated("imgs"), AFFINE)

    array = read_nifti(tmp_path / "a.nii.gz").array

    assert array.dtype == dtype
    np.testing.assert_array_equal(array, counting(dtype=dtype))


def test_damaged_member_leaves_no_nifti(make_case, tmp_path):
    path = make_case(tmp_path, "case", imgs=counting((8, 9, 10)))
    content = bytearray(path.read_bytes())
    content[400] ^= 1  # in the deflated image
    path.write_bytes(content)

    with NpzArchive(path) as archive, pytest.raises(InputError, match=r"case\.npz: cannot be read"):
        write_deflated_nifti(tmp_path / "a.nii.gz", archive.deflated("imgs"), AFFINE)
    assert [p.name for p in tmp_path.iterdir()] == ["case.npz"]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reader", ["nibabel", "SimpleITK"])
def test_readers_find_each_axis_where_the_array_has_it(make_case, tmp_path, axis, reader):
    """A bright voxel one step along one axis lies that axis's spacing further, in LPS mm."""
    image = np.zeros((4, 6, 9), np.uint8)
    step = [0, 0, 0]
    step[axis] = 1
    image[tuple(step)] = 1
    write_nifti(tmp_path / "a.nii.gz", image, AFFINE)
    expected_lps = np.array([0.7, 0.9, 5.0]) * step[::-1]

    if reader == "nibabel":
        loaded = nib.load(tmp_path / "a.nii.gz")
        ijk = np.argwhere(np.asarray(loaded.dataobj))[0]
        place = (loaded.affine @ [*ijk, 1])[:3] * (-1, -1, 1)  # RAS to LPS
    else:
        loaded = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
        z, y, x = (int(i) for i in np.argwhere(sitk.GetArrayFromImage(loaded))[0])
        place = loaded.TransformIndexToPhysicalPoint((x, y, z))

    np.testing.assert_allclose(place, expected_lps, atol=1e-5)


def test_same_voxels_give_the_same_bytes_at_any_time_and_place(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / name / f"{name}.nii.gz", counting((20, 30, 40)), AFFINE)
    first, second = (tmp_path / n / f"{n}.nii.gz" for n in "ab")

    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
def test_plain_and_second_version_files_are_read(tmp_path, suffix, image_class):
    path = tmp_path / f"a{suffix}"
    nib.save(image_class(counting().T, AFFINE), path)

    np.testing.assert_array_equal(read_nifti(path).array, counting())


def test_larger_volumes_than_allowed_are_refused(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", counting(), AFFINE)

    with pytest.raises(InputError, match=r"a\.nii\.gz: has 216 voxels.*--max-voxels"):
        read_nifti(tmp_path / "a.nii.gz", max_voxels=215)


def test_axis_that_nifti_cannot_hold_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"NIfTI cannot hold shape .*32768"):
        write_nifti(tmp_path / "a.nii.gz", np.zeros((32768, 1, 1), np.uint8), AFFINE)


def test_every_flipped_byte_of_a_nifti_is_refused_or_leaves_a_finite_volume(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_nifti(path, counting((8, 9, 10)), AFFINE)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with contextlib.suppress(InputError):
            assert np.isfinite(read_nifti(path).array).all()


def test_every_flipped_byte_of_an_unzipped_header_is_refused_or_read(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(counting().T, AFFINE), path)
    whole = path.read_bytes()
    for position in range(352):
        for flip in (0xFF, 0x80, 0x01):
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :]
            )
            with contextlib.suppress(InputError):
                assert read_nifti(path, max_voxels=10**6).array.ndim == 3


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("offset", [0, 16, 336])
def test_voxels_that_begin_in_the_header_are_refused(tmp_path, kind, offset):
    path = tmp_path / "a.nii"
    nib.save(kind(counting().T, AFFINE), path)
    whole, place = path.read_bytes(), 108 if kind is nib.Nifti1Image else 168
    value = struct.pack("<f" if kind is nib.Nifti1Image else "<q", offset)
    path.write_bytes(whole[:place] + value + whole[place + len(value) :])
    with pytest.raises(InputError, match=rf"begin at byte {offset}.*inside the header"):
        read_nifti(path)


def put(path, array, affine=AFFINE):
    """Write an array in NIfTI's own order of axes."""
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_trailing_axes_of_length_one_are_dropped(tmp_path, axes):
    path = put(tmp_path / "a.nii.gz", counting().T.reshape(9, 6, 4, *[1] * axes))

    np.testing.assert_array_equal(read_nifti(path).array, counting())
    assert read_nifti_grid(path).shape == (4, 6, 9)


@pytest.mark.parametrize("shape", [(1, 6, 9), (4, 6, 1), (4, 1, 9), (1, 1, 1)])
def test_a_single_slice_is_a_volume(tmp_path, shape):
    path = put(tmp_path / "a.nii.gz", counting(shape).T)

    np.testing.assert_array_equal(read_nifti(path).array, counting(shape))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((9, 6), "a 2-D picture"),
        ((9, 6, 4, 3), "a series of 3 volumes"),
        ((9, 6, 4, 1, 3), "vectors of 3 numbers"),
        ((9, 6, 4, 2, 3), "5-D data"),
        ((9, 6, 4, 1, 1, 2), "6-D data"),
    ],
)
def test_what_is_no_volume_is_named(tmp_path, shape, found):
    path = put(tmp_path / "a.nii.gz", np.zeros(shape, np.int16))

    for read in (read_nifti, read_nifti_grid):
        with pytest.raises(InputError, match=rf"a\.nii\.gz: .* holds {found}.*Expected one 3-D"):
            read(path)


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], r"colours \(RGB\)"),
        ([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")], r"colours \(RGB\)"),
        (np.complex64, r"complex numbers \(complex64\)"),
    ],
)
def test_colours_and_complex_numbers_are_named(tmp_path, dtype, found):
    path = put(tmp_path / "a.nii.gz", np.zeros((9, 6, 4), dtype))

    with pytest.raises(InputError, match=rf"a\.nii\.gz: .* holds {found}"):
        read_nifti(path)


@pytest.mark.parametrize("shape", [(9, 6, 4, 3), (9, 6, 4, 1, 3)])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_one_channel_of_several_is_read(tmp_path, shape, suffix):
    channels = [counting(dtype=np.int16) + 1000 * n for n in range(3)]
    path = put(tmp_path / f"a{suffix}", np.stack([c.T for c in channels], -1).reshape(shape))

    for number, expected in enumerate(channels):
        volume = read_nifti(path, channel=Channel(number, 3))
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array, expected)
    with pytest.raises(InputError, match="holds 3 volumes, where the data set has 2 channels"):
        read_nifti(path, channel=Channel(0, 2))


def test_a_channel_of_a_truncated_file_is_refused(tmp_path):
    path = put(tmp_path / "a.nii.gz", np.stack([counting((8, 9, 10)).T] * 3, -1))
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be read"):
        read_nifti(path, channel=Channel(0, 3))
