"""Where a cube lies on a volume, and what it resamples: checked against SciPy, voxel by voxel."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from utils.volumes.geometry import (
    CropGrid,
    CropRule,
    affine_from_spacing,
    bounding_box,
    canonical_axes,
    spacing_zyx,
)

SHAPE = (6, 7, 9)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.4, 0.5) @ np.diag([0.5, 2.0, 1.0]), [5, -7, 11]
)
AFFINES = {
    "axial": affine_from_spacing((0.8, 1.3, 2.5)),
    "ras": np.eye(4),
    "oblique": OBLIQUE,
    "coronal": nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("SLA"), (9, 7, 6)),
}
CUBES = {  # centre, spacing in mm, size
    "inside": ((3, 3, 4), 0.4, 4),
    "around": ((2.5, 3.0, 4.25), 1.7, 16),
    "over one corner": ((0.5, 6.0, 8.5), 0.9, 8),
    "sparse": ((2.5, 3.0, 4.0), 2.9, 5),
    "beside": ((60, 60, 60), 1.0, 4),
}


@pytest.fixture(params=AFFINES.values(), ids=AFFINES)
def affine(request):
    return request.param


@pytest.fixture(params=CUBES.values(), ids=CUBES)
def cube(request, affine):
    centre, spacing_mm, size = request.param
    return CropGrid.at(centre, SHAPE, affine, spacing_mm, size)


def volume():
    return np.random.default_rng(0).random(SHAPE).astype(np.float32) + 1


def inside(place, length):
    """Tell which places along an axis lie on its voxels, each of which reaches half its width."""
    return (place >= -0.5) & (place <= length - 0.5)


def places_in_volume(cube):
    """Return the array coordinate (3, S, S, S) of each crop voxel."""
    index = np.indices((cube.size,) * 3).reshape(3, -1).T
    return np.array([cube.to_volume(tuple(i)) for i in index]).T.reshape(3, *(cube.size,) * 3)


def places_in_crop(cube, shape=SHAPE):
    """Return the crop coordinate (3, D, H, W), in the network's order, of each voxel."""
    index = np.indices(shape).reshape(3, -1).T
    return np.array([cube.to_crop(tuple(i)) for i in index]).T.reshape(3, *shape)


def sampled(values, places, outside):
    """Interpolate linearly by SciPy; beyond the last half voxel the value is ``outside``."""
    good = np.all([inside(p, n) for p, n in zip(places, values.shape, strict=True)], axis=0)
    return np.where(good, map_coordinates(values, places, order=1, mode="nearest"), outside)


def test_the_middle_of_a_cube_is_where_it_was_put(affine):
    cube = CropGrid.at((2.5, 3.0, 4.25), SHAPE, affine, 1.7, 16)
    assert cube.to_volume((7.5, 7.5, 7.5)) == pytest.approx((2.5, 3.0, 4.25))


def test_neighbours_in_the_crop_are_one_spacing_apart_along_right_anterior_superior(affine):
    cube = CropGrid.at((2.5, 3.0, 4.25), SHAPE, affine, 1.7, 16)
    here = np.array(cube.to_volume((7, 7, 7)))
    for axis, step in enumerate(np.eye(3)):
        there = np.array(cube.to_volume(tuple(7 + step)))
        moved_mm = affine[:3, :3] @ (there - here)[::-1]
        assert np.linalg.norm(moved_mm) == pytest.approx(1.7)
        assert np.argmax(np.abs(moved_mm)) == axis
        assert moved_mm[axis] > 0


def test_a_rule_places_the_cube_of_its_own_spacing(affine):
    for rule in (CropRule(16, 1.1), CropRule(16, 50.0, fit=True)):
        spacing_mm = rule.spacing_for(SHAPE, spacing_zyx(affine))
        expected = CropGrid.at((2, 3, 4), SHAPE, affine, spacing_mm, 16)
        assert CropGrid.around((2, 3, 4), SHAPE, affine, rule) == expected


def test_a_volume_in_the_networks_frame_is_cut_along_its_own_axes():
    right_anterior_superior = np.array(
        [[0, 0, 2.5, 0], [0, 1.3, 0, 0], [0.8, 0, 0, 0], [0, 0, 0, 1]]
    )
    expected = CropGrid.at((2, 3, 4.5), SHAPE, right_anterior_superior, 1.1, 8)
    assert CropGrid.in_frame((2, 3, 4.5), SHAPE, (2.5, 1.3, 0.8), 1.1, 8) == expected
    assert expected.axes == (0, 1, 2)


def test_a_crop_is_the_linear_interpolation_of_the_volume_and_0_beside_it(cube):
    crop = cube.crop(volume())
    assert crop.dtype == np.float32
    np.testing.assert_allclose(crop, sampled(volume(), places_in_volume(cube), 0), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, bool])
def test_a_crop_of_whole_numbers_is_interpolated_too(dtype):
    whole = (volume() * 20).astype(dtype)
    cube = CropGrid.at((2.5, 3.0, 4.25), SHAPE, AFFINES["axial"], 0.7, 8)
    expected = cube.crop(whole.astype(np.float32))
    np.testing.assert_allclose(cube.crop(whole), expected, atol=1e-5)


@pytest.mark.parametrize("cells", [2, 4, 8])
def test_pasted_cells_are_interpolated_on_the_volume_and_the_rest_is_outside(affine, cells):
    for centre, spacing_mm in (((2.5, 3.0, 4.25), 1.7), ((0.5, 6.0, 8.5), 0.5)):
        cube = CropGrid.at(centre, SHAPE, affine, spacing_mm, 8)
        values = np.random.default_rng(1).random((cells,) * 3)
        places = (places_in_crop(cube) + 0.5) * cells / 8 - 0.5
        pasted = cube.paste(values, outside=-3)
        assert pasted.dtype == np.float32
        np.testing.assert_allclose(pasted, sampled(values, places, -3), atol=1e-5)


def test_a_part_of_a_box_is_pasted_as_in_the_whole(affine):
    cube = CropGrid.at((2.5, 3.0, 4.25), SHAPE, affine, 1.7, 8)
    values = np.random.default_rng(1).random((4, 4, 4))
    whole = cube.paste(values, outside=-3)
    box = tuple(slice(s.start, s.stop - 1) for s in cube.covered_box())
    np.testing.assert_array_equal(cube.paste_box(values, box), whole[box])


@pytest.mark.parametrize("outside", [0.0, -20.0])
def test_cells_carried_to_another_cube_stay_where_they_lie(affine, outside):
    cube = CropGrid.at((2.5, 3.0, 4.25), SHAPE, affine, 1.7, 8)
    other = CropGrid.at((1.5, 4.0, 5.0), SHAPE, affine, 0.9, 8)
    values = np.random.default_rng(1).random((4, 4, 4)) - 2
    middles = (np.indices((4, 4, 4)).reshape(3, -1).T + 0.5) * 2 - 0.5
    places = np.array([cube.to_crop(other.to_volume(tuple(m))) for m in middles]).T
    places = ((places + 0.5) * 4 / 8 - 0.5).reshape(3, 4, 4, 4)
    carried = cube.carry(values, other, outside)
    assert carried.dtype == np.float32
    np.testing.assert_allclose(carried, sampled(values, places, outside), atol=1e-5)
    assert inside(places, 4).any()


def test_cells_carried_beyond_their_cube_are_outside(affine):
    cube = CropGrid.at((2, 2, 2), SHAPE, affine, 0.5, 8)
    far = CropGrid.at((2, 2, 60), SHAPE, affine, 0.5, 8)
    assert (cube.carry(np.ones((4, 4, 4)), far, -20.0) == -20).all()


def test_a_voxel_is_covered_if_its_middle_lies_in_the_cube(cube):
    places = places_in_crop(cube)
    expected = np.all([inside(p, cube.size) for p in places], axis=0)
    np.testing.assert_array_equal(cube.covered(), expected)
    rebuilt = np.zeros(SHAPE, bool)
    rebuilt[cube.covered_box()] = True
    np.testing.assert_array_equal(rebuilt, expected)


def test_the_part_of_the_crop_on_the_volume_is_a_box_of_it(cube):
    places = places_in_volume(cube)
    expected = np.all([inside(p, n) for p, n in zip(places, SHAPE, strict=True)], axis=0)
    rebuilt = np.zeros((cube.size,) * 3, bool)
    rebuilt[cube.covered_crop()] = True
    np.testing.assert_array_equal(rebuilt, expected)


def test_a_cube_on_a_part_of_the_volume_cuts_the_same_voxels(affine):
    start, stop = (1, 2, 3), (6, 7, 8)
    part = volume()[tuple(map(slice, start, stop))]
    cube = CropGrid.at((3.5, 4.5, 5.5), SHAPE, affine, 0.5 * min(spacing_zyx(affine)), 4)
    on_part = cube.on_part(start, part.shape)
    assert on_part.volume_shape == (5, 5, 5)
    np.testing.assert_allclose(on_part.crop(part), cube.crop(volume()), atol=1e-5)
    assert on_part.to_crop((2, 2, 2)) == pytest.approx(cube.to_crop((3, 4, 5)))


def test_voxels_reach_half_their_width_beyond_their_middle():
    """Edges count as inside: crop voxels at -0.5 and 5.5 of an axis of six."""
    edge = CropGrid((6, 6, 6), (0, 1, 2), (2.0, 2.0, 2.0), (-0.5, -0.5, -0.5), 4)
    assert edge.crop(np.ones((6, 6, 6))).all()
    beyond = CropGrid((6, 6, 6), (0, 1, 2), (2.01, 2.01, 2.01), (-0.51, -0.51, -0.51), 4)
    assert beyond.crop(np.ones((6, 6, 6)))[1:3, 1:3, 1:3].all()
    assert beyond.crop(np.ones((6, 6, 6))).sum() == 8


def test_a_challenge_case_has_axes_to_the_left_and_back_and_up():
    expected = np.diag([-0.8, -1.3, 2.5, 1.0])
    np.testing.assert_array_equal(affine_from_spacing((0.8, 1.3, 2.5)), expected)


def test_the_voxel_size_of_an_oblique_volume_is_the_length_of_its_axes():
    assert spacing_zyx(OBLIQUE) == pytest.approx((1.0, 2.0, 0.5))


def test_axes_and_signs_of_a_volume_between_two_orientations():
    """The axis that is nearest overall wins, not the nearest of each direction."""
    cosines = np.array([[0.7, -0.69, 0.1], [0.65, 0.72, 0.1], [-0.2, 0.1, -0.97]])
    affine = np.eye(4)
    affine[:3, :3] = cosines * [0.5, 2.0, 3.0]
    assert canonical_axes(affine) == ((2, 1, 0), (1, 1, -1))


def test_a_bounding_box_is_half_open_along_each_axis():
    mask = np.zeros(SHAPE, bool)
    mask[1, 2, 3] = mask[4, 2, 7] = True
    np.testing.assert_array_equal(bounding_box(mask), [(1, 2, 3), (5, 3, 8)])


def test_a_rule_fits_its_spacing_to_the_longest_side():
    rule = CropRule(size=64, spacing_mm=2.0, fit=True)
    assert rule.spacing_for((10, 20, 30), (4.0, 1.5, 1.0)) == 40 / 64
    assert rule.spacing_for((10, 20, 30), (4.0, 1.5, 9.0)) == 2.0
    assert rule.to_dict() == {"size": 64, "spacing_mm": 2.0, "fit": True}
