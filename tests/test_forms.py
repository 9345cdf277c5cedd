"""Both forms of a NIfTI header: read as nibabel and ITK read them, and written as they were."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from header_kinds import KINDS, SHEARED, affine_of, itk_affine_of, shown_alike, write_kind

from utils.errors import InputError
from utils.files.nifti import read_nifti, read_nifti_grid, write_nifti
from utils.volumes.forms import UNIT_MM
from utils.volumes.grid import Grid

SHAPE = (4, 5, 6)
FIELDS = (
    *("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def counting():
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@pytest.fixture(params=KINDS)
def source(request, tmp_path):
    path = tmp_path / "image.nii"
    write_kind(path, request.param, counting())
    return path


def test_places_are_those_of_nibabel_and_of_itk_in_mm(source):
    volume, loaded = read_nifti(source), nib.load(source)

    unit_mm = UNIT_MM[volume.forms.unit]
    expected = np.diag([unit_mm, unit_mm, unit_mm, 1]) @ loaded.affine
    np.testing.assert_allclose(volume.affine, expected, rtol=1e-6)
    np.testing.assert_allclose(volume.itk_affine, itk_affine_of(source), rtol=1e-5, atol=1e-5)


def test_a_mask_with_the_forms_of_its_image_lies_on_it_in_both_viewers(source, tmp_path):
    image = read_nifti(source)
    mask = tmp_path / "mask.nii.gz"

    write_nifti(mask, image.array > 50, image.affine, image.forms)

    assert shown_alike(source, mask)
    headers = [
        nib.Nifti1Header.from_fileobj(nib.openers.Opener(p), check=False) for p in (source, mask)
    ]
    for name in FIELDS:
        np.testing.assert_array_equal(headers[1][name], headers[0][name], err_msg=name)
    np.testing.assert_array_equal(read_nifti(mask).array, counting() > 50)


def test_without_the_forms_the_mask_would_lie_elsewhere(tmp_path):
    """The tests above can fail: `shown_alike` is false for a header of the affine alone."""
    write_kind(tmp_path / "image.nii", "scanner and MNI", counting())
    image = read_nifti(tmp_path / "image.nii")

    write_nifti(tmp_path / "mask.nii.gz", image.array, image.affine)

    assert not shown_alike(tmp_path / "image.nii", tmp_path / "mask.nii.gz")


@pytest.mark.parametrize("kind", ["both codes 0", "scanner and MNI", "micrometres", "metres"])
def test_nifti_2_is_placed_as_nifti_1_and_answered_in_nifti_1(kind, tmp_path):
    write_kind(tmp_path / "one.nii", kind, counting())
    write_kind(tmp_path / "two.nii", kind, counting(), nib.Nifti2Image)
    first, second = (read_nifti(tmp_path / name) for name in ("one.nii", "two.nii"))

    write_nifti(tmp_path / "mask.nii.gz", second.array, second.affine, second.forms)

    np.testing.assert_allclose(second.itk_affine, first.itk_affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        itk_affine_of(tmp_path / "mask.nii.gz"), itk_affine_of(tmp_path / "one.nii"), rtol=1e-6
    )
    np.testing.assert_allclose(
        nib.load(tmp_path / "mask.nii.gz").affine, nib.load(tmp_path / "two.nii").affine, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "expected"), [("micrometres", (0.002, 0.00125, 0.0015)), ("metres", (2, 1.25, 1.5))]
)
def test_spacing_is_in_mm_whatever_the_unit(kind, expected, tmp_path):
    write_kind(tmp_path / "image.nii", kind, counting())

    grid = read_nifti_grid(tmp_path / "image.nii")

    assert grid.spacing_zyx == pytest.approx(expected, rel=1e-5)
    assert "unit is" in grid.notes[0]


def test_metres_that_must_be_millimetres_are_refused(tmp_path):
    image = nib.Nifti1Image(counting().T, affine_of())
    image.header["xyzt_units"] = 1
    image.to_filename(tmp_path / "image.nii")

    with pytest.raises(InputError, match=r"unit is metres, so a voxel is 2000 mm.*set_xyzt_units"):
        read_nifti(tmp_path / "image.nii")


def test_forms_of_another_grid_are_never_written(tmp_path):
    write_kind(tmp_path / "image.nii", "scanner and MNI", counting())
    image = read_nifti(tmp_path / "image.nii")
    moved = image.affine.copy()
    moved[0, 3] += 1

    for affine in (moved, image.affine @ np.diag([2, 2, 2, 1])):
        with pytest.raises(ValueError, match="forms are not those of the affine"):
            write_nifti(tmp_path / "crop.nii.gz", image.array, affine, image.forms)
    assert not (tmp_path / "crop.nii.gz").exists()


def test_notes_name_the_codes_and_the_distance(tmp_path):
    def notes(kind):
        write_kind(tmp_path / "image.nii", kind, counting())
        return read_nifti_grid(tmp_path / "image.nii").notes

    assert notes("one form, codes 2 and 1") == []
    assert notes("one form, left-handed") == []
    (differ,) = notes("differing, sform aligned")
    assert differ.startswith("qform (code 1) and sform (code 2) differ: nibabel and ITK")
    assert differ.endswith(" mm apart")
    assert "qform (code 0) and sform (code 0) both do not count" in notes("both codes 0")[0]
    assert "pixdim names other voxel sizes (1.5, 1.25, 2)" in notes("sform only, other sizes")[0]


def test_a_sheared_sform_alone_is_what_itk_refuses(tmp_path):
    image = nib.Nifti1Image(counting().T, None)
    image.header.set_sform(SHEARED, 1)
    image.to_filename(tmp_path / "image.nii")

    grid = read_nifti_grid(tmp_path / "image.nii")

    with pytest.raises(RuntimeError, match="orthonormal"):
        itk_affine_of(tmp_path / "image.nii")
    assert grid.forms.itk_affine is None
    np.testing.assert_array_equal(grid.itk_affine, grid.affine)
    assert "ITK (3D Slicer, ITK-SNAP) refuses it" in grid.notes[0]


def test_views_differ_from_half_a_voxel_on(tmp_path):
    write_kind(tmp_path / "image.nii", "one form, codes 2 and 1", counting())
    grid = read_nifti_grid(tmp_path / "image.nii")

    for shift, differ in ((0.6, False), (0.65, True)):  # the smallest side is 1.25 mm
        srow = grid.forms.srow + np.array([[0, 0, 0, shift], [0, 0, 0, 0], [0, 0, 0, 0]])
        affine = np.vstack([srow, [0, 0, 0, 1]])
        moved = Grid(SHAPE, affine, replace(grid.forms, srow=srow))
        assert moved.gap_mm == pytest.approx(shift)
        assert moved.views_differ == differ
