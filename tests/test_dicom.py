"""DICOM series: a folder of slices becomes one volume, or is refused by what is wrong with it."""

import numpy as np
import pytest
import SimpleITK
from dicom_series import ORIGIN, SPACING_XYZ, voxels, write_series

from utils.errors import InputError
from utils.files.images import header_modality, read_image
from utils.files.itk import LPS_TO_RAS

#: Tags that a secondary capture, a picture without a place, does not have.
PICTURE = dict.fromkeys(("0020|0032", "0020|0037", "0008|0060", "0028|1052", "0028|1053"))


def test_a_series_lies_where_simpleitk_puts_it(tmp_path):
    folder = write_series(tmp_path / "series", voxels())
    volume = read_image(folder)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, voxels())
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = SimpleITK.ReadImage(names)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), voxels())
    lps = LPS_TO_RAS @ volume.affine
    for xyz in ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3)):
        expected = image.TransformIndexToPhysicalPoint(xyz)
        np.testing.assert_allclose((lps @ [*xyz, 1])[:3], expected, atol=1e-5)


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path):
    array = voxels()
    tags = {"0028|1052": "-1000"}
    folder = write_series(tmp_path / "series", array[:2], **tags)
    write_series(folder, array[2:], places=[5.0, 7.5], number=2, **tags, **{"0028|1053": "2"})
    np.testing.assert_allclose(read_image(folder).array, array, atol=1)
    assert read_image(folder).array.min() < 0


def test_slices_are_ordered_by_place_and_not_by_name_or_number(tmp_path):
    folder = write_series(tmp_path / "series", voxels()[::-1], places=[7.5, 5.0, 2.5, 0.0])
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.array, voxels())
    np.testing.assert_allclose((LPS_TO_RAS @ volume.affine)[:3, 3], ORIGIN)
    assert volume.spacing_zyx == pytest.approx(SPACING_XYZ[::-1])


def test_files_are_known_without_their_ending(tmp_path):
    folder = write_series(tmp_path / "series", voxels())
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(""))
    (folder / "notes.txt").write_text("no slice")
    assert read_image(folder).shape == voxels().shape


def test_the_header_says_the_modality(tmp_path):
    assert header_modality(write_series(tmp_path / "a", voxels(), modality="MR")) == "MR"


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    folder = write_series(tmp_path / "series", voxels(), uid="1.2.3")
    write_series(folder, voxels()[:2], uid="1.2.4", modality="MR", number=4)
    with pytest.raises(InputError) as refused:
        read_image(folder)
    for part in ("2 DICOM series", "1.2.3  CT a series, 4 files", "1.2.4  MR a series, 2 files"):
        assert part in str(refused.value)
    assert "--series UID" in str(refused.value)
    assert read_image(folder, series="1.2.4").shape == (2, 5, 6)
    assert header_modality(folder, series="1.2.4") == "MR"
    with pytest.raises(InputError, match=r"has no series 1\.2\.5"):
        read_image(folder, series="1.2.5")


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([0.0, 2.5, 7.5, 10.0], r"are 5 mm apart, other slices 2\.5 mm.*slices are missing"),
        ([0.0, 2.5, 5.0, 8.2], r"slices are 2\.5 to 3\.2 mm apart"),
        ([0.0, 2.5, 2.5, 5.0], "lie in one place"),
        ([0.0, 0.0, 2.5, 2.5], "lie in one place"),
    ],
)
def test_slices_that_form_no_regular_grid_are_refused(tmp_path, places, said):
    folder = write_series(tmp_path / "series", voxels(), places=places)
    with pytest.raises(InputError, match=said):
        read_image(folder)


def test_positions_that_are_rounded_are_fine(tmp_path):
    folder = write_series(tmp_path / "series", voxels(), places=[0.0, 2.51, 4.99, 7.5])
    assert read_image(folder).spacing_zyx[0] == pytest.approx(2.5)


def test_a_tilted_gantry_is_refused(tmp_path):
    folder = tmp_path / "series"
    for k, plane in enumerate(voxels()):
        position = "\\".join(map(str, np.add(ORIGIN, (0, 0.9 * k, 2.5 * k))))
        tags = {"0020|0032": position, "0020|0037": "1\\0\\0\\0\\1\\0"}
        write_series(folder, plane[None], number=k, **tags)
    with pytest.raises(InputError, match="tilted gantry"):
        read_image(folder)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"array": voxels((1, 9, 6))}, "differ in size"),
        ({"direction": (1, 0, 0, 0, 0, -1, 0, 1, 0)}, "differ in size, spacing or orientation"),
        ({"array": np.zeros((1, 5, 6, 3), np.uint8)} | PICTURE, "has 3 values a voxel"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused(tmp_path, second, said):
    folder = write_series(tmp_path / "series", voxels())
    write_series(folder, places=[10.0], number=4, **({"array": voxels()[:1]} | second))
    with pytest.raises(InputError, match=said):
        read_image(folder)


def test_a_picture_without_a_place_is_refused(tmp_path):
    folder = write_series(tmp_path / "series", voxels())
    path = folder / "000.dcm"
    position, other_tag = b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"
    assert position in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(position, other_tag))
    with pytest.raises(InputError, match=r"000\.dcm: has no position and orientation"):
        read_image(folder)


def test_one_slice_and_a_damaged_slice_are_refused(tmp_path):
    folder = write_series(tmp_path / "one", voxels()[:1])
    with pytest.raises(InputError, match="holds one slice"):
        read_image(folder)
    folder = write_series(tmp_path / "damaged", voxels())
    (folder / "000.dcm").write_bytes(b"no slice")
    with pytest.raises(InputError, match=r"000\.dcm: cannot be read"):
        read_image(folder)


def test_a_folder_without_slices_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds 0 DICOM series"):
        read_image(tmp_path)


@pytest.mark.parametrize("given", [None, "", "0\\0", "a\\b"])
def test_pixels_of_unknown_size_are_refused(tmp_path, given):
    folder = write_series(tmp_path / "series", voxels(), **{"0028|0030": "0.8\\0.7"})
    for path in folder.iterdir():
        _change(path, b"\x28\x00\x30\x00", given)
    with pytest.raises(InputError, match=r"its PixelSpacing is .* two numbers above 0"):
        read_image(folder)


def test_negatives_are_refused(tmp_path):
    folder = write_series(tmp_path / "series", voxels())
    _change(folder / "000.dcm", b"\x28\x00\x04\x00", "MONOCHROME1 ")
    with pytest.raises(InputError, match=r"000\.dcm: is stored as a negative \(MONOCHROME1\)"):
        read_image(folder)


def _change(path, tag, text):
    """Set the text of a tag (explicit or implicit VR); None: take the tag away."""
    content = path.read_bytes()
    start = content.index(tag, 132)
    explicit = content[start + 4 : start + 6].isalpha()
    place, size = (start + 6, 2) if explicit else (start + 4, 4)
    end = start + 8 + int.from_bytes(content[place : place + size], "little")
    new = b""
    if text is not None:
        value = text.encode() + b" " * (len(text) % 2)
        new = content[start:place] + len(value).to_bytes(size, "little") + value
    path.write_bytes(content[:start] + new + content[end:])
