"""Large targets in overlapping cubes."""

import numpy as np
import pytest
from bright_network import bright_predictor

from utils.prediction.masks import LogitBox
from utils.prediction.region import Extent, Scene, ZoomRule
from utils.prediction.tiles import blended, lattice
from utils.results.metrics import dsc
from utils.volumes.geometry import CropRule, affine_from_spacing

SHAPE = (50, 90, 120)
WHOLE = tuple(slice(0, n) for n in SHAPE)


@pytest.fixture
def scene():
    return Scene(SHAPE, affine_from_spacing(np.ones(3)), CropRule(size=32, spacing_mm=1.0))


def extent(low, high):
    return Extent(np.array(low, float), np.array(high, float))


def test_the_cubes_cover_the_extent_and_stay_on_the_volume(scene):
    regions = lattice(scene, extent((0, 10, 10), (50, 80, 110)), 1.0, most=100)
    covered = np.zeros(SHAPE, int)
    for region in regions:
        covered[scene.grid(region).covered_box()] += 1
    assert covered[:, 10:80, 10:110].min() >= 1
    assert covered.max() > 1


def test_another_extent_is_seen_through_the_same_cubes(scene):
    all_of_it = set(lattice(scene, extent((0, 0, 0), SHAPE), 1.0, most=100))
    assert set(lattice(scene, extent((10, 40, 50), (20, 60, 70)), 1.0, most=100)) < all_of_it


def test_too_many_cubes_become_larger_ones(scene):
    regions = lattice(scene, extent((0, 0, 0), SHAPE), 1.0, most=8)
    assert len(regions) <= 8
    assert regions[0].spacing_mm > 1


def test_an_axis_shorter_than_a_cube_has_one_in_its_middle(scene):
    flat = Scene((10, 90, 120), scene.affine, scene.rule)
    regions = lattice(flat, extent((0, 0, 0), (10, 90, 120)), 1.0, most=100)
    assert {region.centre_zyx[0] for region in regions} == {4.5}


def test_extreme_spacings_do_not_fill_the_memory():
    odd = Scene((40, 40, 40), affine_from_spacing(np.array([1e-9, 1e9, 1])), CropRule(size=32))
    assert len(lattice(odd, extent((0, 0, 0), (40, 40, 40)), 1.0, most=27)) <= 27


def test_tiles_that_agree_blend_into_what_they_say(scene):
    regions = lattice(scene, extent((0, 0, 0), SHAPE), 1.0, most=100)
    tiles = [(scene.grid(region), np.full((16, 16, 16), 3.0, np.float32)) for region in regions]
    coarse = LogitBox(WHOLE, np.full(SHAPE, -1.0, np.float32))
    whole = blended(coarse, tiles).values
    assert np.median(whole) == pytest.approx(3, abs=0.05)
    assert whole.min() > 2


def test_without_tiles_the_coarse_mask_stays():
    coarse = LogitBox(WHOLE, np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    np.testing.assert_allclose(blended(coarse, []).values, coarse.values, rtol=1e-5)


def test_tiles_bring_detail_that_one_cube_cannot_show():
    """Stripes of four voxels in a target four cubes long."""
    image = np.zeros((40, 40, 72), np.uint8)
    image[8:32, 8:32, 4:68] = 200
    for start in range(4, 68, 12):
        image[8:32, 8:32, start : start + 4] = 0
    rule = CropRule(size=32, spacing_mm=0.5)
    scores = []
    for tile_above in (0.0, 1.5):
        zoom = ZoomRule(coarsest=20.0)
        options = {"tile_above": tile_above, "tiles": 200, "only_prompted": False}
        predictor = bright_predictor(rule, zoom=zoom, **options)
        predictor.set_image(image, (1.0, 1.0, 1.0))
        predictor.add_box((8, 8, 4), (32, 32, 68))
        scores.append(dsc(image > 0, predictor.mask()))
    assert scores[1] > scores[0] + 0.05
