"""NRRD and MetaImage files, read as SimpleITK places them; endings in any case."""

import os

import numpy as np
import pytest
import SimpleITK

from utils.errors import InputError
from utils.files.images import (
    header_modality,
    image_stem,
    image_suffix,
    parts_of,
    read_image,
    read_image_grid,
)
from utils.files.itk import data_files, write_nrrd
from utils.files.nifti import read_nifti, write_nifti

SPACING, ORIGIN = (0.5, 1.5, 2.5), (10.0, 20.0, -30.0)
DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, -1.0)  # oblique, and mirrored
ARRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 50
SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")


def itk_image(array=ARRAY):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    return image


def write(path, image=None, *, compressed=False):
    SimpleITK.WriteImage(itk_image() if image is None else image, str(path), compressed)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_and_their_places_are_those_of_simpleitk(tmp_path, suffix, compressed):
    volume = read_image(write(tmp_path / f"a{suffix}", compressed=compressed))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, ARRAY)
    for xyz in ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3), (1, 2, 3)):
        left, posterior, superior = itk_image().TransformIndexToPhysicalPoint(xyz)
        np.testing.assert_allclose(
            volume.affine @ [*xyz, 1], [-left, -posterior, superior, 1], atol=1e-5
        )
    grid = read_image_grid(tmp_path / f"a{suffix}")
    assert grid.shape == ARRAY.shape
    np.testing.assert_array_equal(grid.affine, volume.affine)


def test_a_format_changes_nothing_of_the_grid(tmp_path):
    """One image in all formats, NIfTI included, has one grid."""
    nifti = read_nifti(write(tmp_path / "a.nii.gz"))
    for suffix in SUFFIXES:
        volume = read_image(write(tmp_path / f"a{suffix}"))
        np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-5)
        np.testing.assert_array_equal(volume.array, nifti.array)


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "RAS"])
def test_a_nrrd_in_another_space_lies_where_its_header_says(tmp_path, space):
    header = (
        f"NRRD0004\ntype: uchar\ndimension: 3\nspace: {space}\nsizes: 3 2 1\nencoding: raw\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (5,6,7)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + bytes(6))
    x = -1 if space.startswith("left") else 1
    expected = [[2 * x, 0, 0, 5 * x], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]]
    np.testing.assert_allclose(read_image(tmp_path / "a.nrrd").affine, expected)


def test_an_answer_as_nrrd_lies_on_its_image(tmp_path):
    volume = read_image(write(tmp_path / "a.nrrd"))
    write_nrrd(tmp_path / "b.nrrd", ARRAY, volume.affine)
    written = read_image(tmp_path / "b.nrrd")
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-6)
    np.testing.assert_array_equal(written.array, ARRAY)
    image = SimpleITK.ReadImage(str(tmp_path / "b.nrrd"))
    np.testing.assert_allclose(image.GetDirection(), DIRECTION, atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, atol=1e-6)


@pytest.mark.parametrize("suffix", [".NRRD", ".MHA", ".Nrrd"])
def test_endings_count_in_any_case(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"A{suffix}")
    np.testing.assert_array_equal(read_image(path).array, ARRAY)
    write_nifti(tmp_path / "b.nii.gz", ARRAY, np.eye(4))
    path = (tmp_path / "b.nii.gz").rename(tmp_path / "B.NII.GZ")
    np.testing.assert_array_equal(read_image(path).array, ARRAY)


def test_stems_and_suffixes(tmp_path):
    for name, suffix in (
        ("a.b.NII.GZ", ".nii.gz"),
        ("a.b.nii", ".nii"),
        ("a.b.Mha", ".mha"),
        ("a.b.NPZ", ""),
        ("a.b", ""),
    ):
        assert image_suffix(tmp_path / name) == suffix
        assert image_stem(tmp_path / name) == "a.b"
    assert image_suffix(tmp_path / "a.gz") == ""


def test_a_fourth_dimension_of_length_1_is_dropped(tmp_path):
    image = SimpleITK.JoinSeries([itk_image()])
    volume = read_image(write(tmp_path / "a.nrrd", image))
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.affine, read_image(write(tmp_path / "b.nrrd")).affine)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (SimpleITK.JoinSeries([itk_image(), itk_image()]), "has 4 dimensions"),
        (SimpleITK.Image([6, 5], SimpleITK.sitkInt16), "is a 2-D picture"),
        (SimpleITK.Image([6, 5, 4], SimpleITK.sitkVectorUInt8, 3), "has 3 values a voxel"),
        (SimpleITK.GetImageFromArray(np.full((2, 3, 4), np.nan)), "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_what_is_no_volume_of_numbers_is_refused(tmp_path, image, said, suffix):
    with pytest.raises(InputError, match=f"a{suffix}: .*{said}"):
        read_image(write(tmp_path / f"a{suffix}", image))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix, compressed):
    path = write(tmp_path / f"a{suffix}", compressed=compressed)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_compressed_voxels_that_are_damaged_are_refused(tmp_path, suffix):
    """SimpleITK reads a damaged MetaImage as noise."""
    path = write(tmp_path / f"a{suffix}", compressed=True)
    part = (data_files(path) or [path])[0]
    data = bytearray(part.read_bytes())
    data[-30] ^= 0xFF
    part.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_header_without_its_voxels_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    (part,) = data_files(path)
    part.unlink()
    with pytest.raises(InputError, match=f"a{suffix}"):
        read_image(path)


def test_a_volume_that_is_too_large_is_refused_by_its_header(tmp_path):
    path = write(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(b"DimSize = 6 5 4", b"DimSize = 99999 99999 99999"))
    with pytest.raises(InputError, match=r"voxels\. Expected at most"):
        read_image(path)


def test_only_a_header_that_says_a_modality_has_one(tmp_path):
    path = write(tmp_path / "a.mha")
    assert header_modality(path) is None
    text = path.read_bytes().replace(b"NDims", b"Modality = MET_MOD_CT\nNDims", 1)
    path.write_bytes(text)
    assert header_modality(path) == "CT"


def slices(folder, name, count=4):
    """Write the first planes of ARRAY, and a header of all planes that names them so."""
    for number, plane in enumerate(ARRAY[:count]):
        (folder / f"s{number:02d}.raw").write_bytes(plane.tobytes())
    names = "".join(f"s{number:02d}.raw\n" for number in range(count))
    listed = name if "%" in name else f"{name}\n{names}"
    nrrd = (
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nspacings: 0.5 1.5 2.5\n"
        f"endian: little\nencoding: raw\ndata file: {listed}"
    )
    meta = (
        "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementSpacing = 0.5 1.5 2.5\n"
        f"ElementType = MET_SHORT\nElementDataFile = {listed}"
    )
    for suffix, text in ((".nhdr", nrrd), (".mhd", meta)):
        (folder / f"a{suffix}").write_text(text.rstrip("\n") + "\n")


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
@pytest.mark.parametrize("name", ["LIST", "LIST 2", "s%02d.raw 0 3 1"])
def test_voxels_in_several_files_are_read_and_listed(tmp_path, suffix, name):
    slices(tmp_path, f"{name}D" if (suffix, name) == (".mhd", "LIST 2") else name)
    path = tmp_path / f"a{suffix}"
    np.testing.assert_array_equal(read_image(path).array, ARRAY)
    assert parts_of(path) == [path, *sorted(tmp_path.glob("*.raw"))]


@pytest.mark.parametrize("name", ["LIST", "s%02d.raw 0 2 1"])
def test_a_list_of_too_few_files_is_refused(tmp_path, name):
    slices(tmp_path, name, count=3)
    with pytest.raises(InputError, match=r"a\.mhd: names 3 files of voxels\. Expected 4"):
        read_image(tmp_path / "a.mhd")


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_missing_file_of_a_list_is_named(tmp_path, suffix):
    slices(tmp_path, "LIST")
    (tmp_path / "s02.raw").unlink()
    with pytest.raises(InputError, match=rf"a{suffix}: its voxels are missing.*s02\.raw"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_pipe_in_a_list_is_refused_before_it_blocks(tmp_path, suffix):
    slices(tmp_path, "LIST")
    (tmp_path / "s02.raw").unlink()
    os.mkfifo(tmp_path / "s02.raw")
    with pytest.raises(InputError, match=r"s02\.raw: is not a regular file"):
        read_image_grid(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("line", "before"),
    [
        ('space units: "um" "um" "um"', "space: left-posterior-superior\nspace directions: "
        "(1,0,0) (0,1,0) (0,0,1)\n"),
        ('units: "um" "um" "um"', "spacings: 1 1 1\n"),
    ],
)  # fmt: skip
def test_a_nrrd_in_other_units_than_mm_is_refused(tmp_path, line, before):
    path = tmp_path / "a.nrrd"
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n"
    for unit in ("um", "mm"):
        lines = f"{header}{before}{line.replace('um', unit)}\n\n"
        path.write_bytes(lines.encode() + ARRAY.tobytes())
        if unit == "mm":
            np.testing.assert_array_equal(read_image(path).array, ARRAY)
        else:
            with pytest.raises(InputError, match=r"its lengths are in 'um'\. Expected mm"):
                read_image(path)


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        (".nhdr", ("6 5 4", "6 5 3")),
        (".mhd", ("6 5 4", "6 5 3")),
        (".nhdr", ("type: short", "type: uchar")),
        (".mhd", ("SHORT", "UCHAR")),
    ],
)
def test_a_header_of_other_voxels_than_the_file_s_is_refused(tmp_path, suffix, change):
    path = write(tmp_path / f"a{suffix}")
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(InputError, match=r"voxels' files have 240 bytes\. Expected 1[28]0 for"):
        read_image(path)


def test_a_pattern_of_any_other_kind_is_no_pattern(tmp_path):
    for name in ("s%099999999999d.raw 0 3 1", "s%n%d.raw 0 3 1", "s%s.raw 0 3 1", "50%.raw"):
        slices(tmp_path, name)
        with pytest.raises(InputError, match="its voxels are missing"):
            read_image(tmp_path / "a.mhd")


def test_a_list_of_files_that_are_no_slices_is_refused(tmp_path):
    slices(tmp_path, "LIST 3D")
    with pytest.raises(InputError, match="names files of 3 axes each"):
        read_image(tmp_path / "a.mhd")
