import nibabel as nib
import numpy as np
import pytest

from utils.volumes.geometry import (
    CropGrid,
    CropRule,
    GeometryError,
    affine_from_spacing,
    bounding_box_centre,
    canonical_axes,
    spacing_zyx,
)

SHAPE = (6, 7, 9)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.4, 0.5) @ np.diag([0.5, 2.0, 1.0]), [5, -7, 11]
)


def _grid(affine, *, spacing_mm=1.0, size=16, centre=(3, 3, 4), shape=SHAPE):
    return CropGrid.around(centre, shape, affine, CropRule(size=size, spacing_mm=spacing_mm))


def test_a_challenge_case_has_its_spacing_reversed_into_array_order():
    assert spacing_zyx(affine_from_spacing((0.85, 0.9, 5.0))) == pytest.approx((5.0, 0.9, 0.85))


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "SAL"])
def test_canonical_axes_agree_with_nibabel(code):
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(code), (9, 7, 6))
    expected = nib.io_orientation(affine)  # row v: world axis and sign of voxel axis v
    axes, signs = canonical_axes(affine)
    for voxel_axis, (world_axis, sign) in enumerate(expected):
        assert axes[int(world_axis)] == 2 - voxel_axis
        assert signs[int(world_axis)] == sign


def test_an_oblique_volume_uses_each_axis_once():
    axes, _ = canonical_axes(OBLIQUE)
    assert sorted(axes) == [0, 1, 2]


def test_the_crop_of_an_lps_case_is_indexed_right_anterior_superior():
    volume = np.zeros(SHAPE, np.float32)
    volume[4, 1, 2] = 1  # z up; y and x small: anterior and patient right
    grid = _grid(affine_from_spacing((1, 1, 1)), centre=(3.5, 3.5, 4.5))
    crop = grid.crop(volume)
    assert np.argwhere(crop == crop.max()).tolist() == [[round(c) for c in grid.to_crop((4, 1, 2))]]
    right, anterior, superior = grid.to_crop((4, 1, 2))
    middle = (16 - 1) / 2
    assert right > middle
    assert anterior > middle
    assert superior > middle


@pytest.mark.parametrize("affine", [affine_from_spacing((0.8, 1.3, 2.5)), np.eye(4), OBLIQUE])
def test_points_go_into_the_crop_and_back(affine):
    grid = _grid(affine, spacing_mm=0.7)
    assert grid.to_volume(grid.to_crop((1.5, 2.0, 6.25))) == pytest.approx((1.5, 2.0, 6.25))


def test_at_the_volumes_own_spacing_crop_and_paste_are_the_identity():
    volume = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    # An even cube has its middle between voxels.
    grid = _grid(affine_from_spacing((1, 1, 1)), centre=(3.5, 3.5, 4.5))
    np.testing.assert_array_equal(grid.paste(grid.crop(volume), outside=-1), volume)


def test_paste_leaves_what_the_cube_does_not_cover():
    grid = _grid(np.eye(4), size=2, centre=(1.5, 2.5, 3.5))
    pasted = grid.paste(np.ones((2, 2, 2)), outside=-5)
    assert np.argwhere(pasted == 1).min(axis=0).tolist() == [1, 2, 3]
    assert (pasted == 1).sum() == 8
    assert (pasted == -5).sum() == np.prod(SHAPE) - 8


def test_low_resolution_values_cover_the_same_cube():
    grid = _grid(affine_from_spacing((1, 1, 1)), size=16, shape=(16, 16, 16), centre=(7.5,) * 3)
    ramp = np.broadcast_to(np.arange(4.0), (4, 4, 4))  # grows towards superior
    pasted = grid.paste(ramp, outside=-1)
    # Cell 1 of 4 covers voxels 4..7; its middle 5.5 holds the cell's value, linear between.
    assert pasted[5, 0, 0] == pytest.approx(0.875)
    assert pasted[6, 0, 0] == pytest.approx(1.125)
    assert pasted[0, 0, 0] == 0


def test_linear_resampling_is_exact_on_a_linear_image():
    shape = (20, 24, 30)
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    affine = affine_from_spacing((0.8, 1.0, 1.5))
    grid = CropGrid.around((9, 11, 14), shape, affine, CropRule(size=8, spacing_mm=1.1))
    crop = grid.crop(2 * z + 3 * y - x)
    point = grid.to_volume((2, 5, 3))
    assert crop[2, 5, 3] == pytest.approx(2 * point[0] + 3 * point[1] - point[2], abs=1e-4)


def test_a_cube_beside_the_volume_is_padding_and_pastes_nothing():
    grid = _grid(np.eye(4), size=4, centre=(100, 100, 100))
    assert not grid.crop(np.ones(SHAPE)).any()
    assert (grid.paste(np.ones((4, 4, 4)), outside=-2) == -2).all()


def test_a_volume_of_another_shape_is_refused():
    with pytest.raises(GeometryError, match=r"\(6, 7, 9\).*\(3, 3, 3\)"):
        _grid(np.eye(4)).crop(np.ones((3, 3, 3)))


def test_fit_makes_the_spacing_finer_but_never_coarser():
    rule = CropRule(size=128, spacing_mm=1.5, fit=True)
    assert rule.spacing_for((40, 64, 32), (1, 1, 1)) == 0.5
    assert rule.spacing_for((40, 640, 32), (1, 1, 1)) == 1.5
    assert CropRule(size=128, spacing_mm=1.5).spacing_for((40, 64, 32), (1, 1, 1)) == 1.5


def test_bounding_box_centre_is_the_middle_of_the_tight_box():
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 4, 2:7] = True
    assert bounding_box_centre(mask) == (1.5, 4.0, 4.0)
    with pytest.raises(GeometryError, match="empty"):
        bounding_box_centre(np.zeros(SHAPE, bool))
