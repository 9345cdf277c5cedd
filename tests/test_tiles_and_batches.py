"""Tiles in numbers, how their logits are weighted, and how requests share batches."""

import numpy as np
import pytest
import torch
from small_networks import RULE, small_sam

from segment_anything import CropPredictor, Prompted
from utils.prediction.batching import BatchDecoder
from utils.prediction.masks import LogitBox
from utils.prediction.region import Extent, Scene
from utils.prediction.session import DecodeRequest
from utils.prediction.tiles import LEAST_WEIGHT, STRIDE, blended, lattice
from utils.volumes.crops import cut_image
from utils.volumes.geometry import CropGrid, CropRule, affine_from_spacing

SHAPE = (32, 56, 80)
AFFINE = affine_from_spacing((1.0, 1.0, 1.0))


def scene(shape=SHAPE, spacing_xyz=(1.0, 1.0, 1.0)):
    return Scene(shape, affine_from_spacing(spacing_xyz), CropRule(size=32, spacing_mm=1.0))


def extent(low, high):
    return Extent(np.array(low, float), np.array(high, float))


def middles(regions, axis):
    return sorted({region.centre_zyx[axis] for region in regions})


def test_tiles_start_at_the_border_overlap_by_a_quarter_and_end_at_the_border():
    regions = lattice(scene(), extent((-0.5,) * 3, np.array(SHAPE) - 0.5), 1.0, most=100)
    assert middles(regions, 0) == [15.5]  # the axis is as long as a tile
    assert middles(regions, 1) == [15.5, 39.5]  # 24 voxels apart, three quarters of a tile
    assert middles(regions, 2) == [15.5, 39.5, 63.5]
    assert len(regions) == 6
    assert {region.spacing_mm for region in regions} == {1.0}
    assert STRIDE == 0.75


def test_tiles_are_a_little_closer_where_the_image_is_no_multiple():
    regions = lattice(scene((20, 32, 81)), extent((-1,) * 3, (90,) * 3), 1.0, most=100)
    assert middles(regions, 0) == [9.5]  # a short axis has one tile in its middle
    np.testing.assert_allclose(middles(regions, 2), np.linspace(15.5, 64.5, 4))


def test_tiles_are_as_long_in_mm_on_every_axis():
    regions = lattice(scene((60, 60, 60), (1.0, 2.0, 0.5)), extent((-1,) * 3, (60,) * 3), 1.0, 200)
    assert middles(regions, 0) == [29.5]  # 60 voxels of 0.5 mm are shorter than a tile
    np.testing.assert_allclose(middles(regions, 1), np.linspace(7.5, 51.5, 5))  # 16 voxels each
    np.testing.assert_allclose(middles(regions, 2), np.linspace(15.5, 43.5, 3))


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (20.0, 23.5, [15.5]),
        (20.0, 23.6, [15.5, 39.5]),
        (31.4, 33.0, [15.5, 39.5]),
        (31.5, 33.0, [39.5]),
        (50.0, 60.0, [39.5, 63.5]),
        (55.5, 60.0, [63.5]),
    ],
)
def test_only_tiles_that_overlap_the_extent_are_taken(low, high, found):
    """Along x tiles reach from -0.5 to 31.5, from 23.5 to 55.5 and from 47.5 to 79.5."""
    regions = lattice(scene(), extent((0, 0, low), (20, 20, high)), 1.0, most=100)
    assert middles(regions, 2) == found
    assert middles(regions, 1) == [15.5]


@pytest.mark.parametrize(("most", "spacing_mm"), [(6, 1.0), (5, 1.5), (2, 2.25), (1, 3.375)])
def test_too_many_tiles_become_larger_by_half_each_time(most, spacing_mm):
    regions = lattice(scene(), extent((-0.5,) * 3, np.array(SHAPE) - 0.5), 1.0, most)
    assert regions[0].spacing_mm == spacing_mm
    assert len(regions) <= most


def hat(cells):
    along = 1 - np.abs((np.arange(cells) + 0.5) / cells * 2 - 1)
    return along[:, None, None] * along[:, None] * along


def test_tiles_are_averaged_by_weights_that_fall_to_their_border():
    grids = [CropGrid.at((15.5, 15.5, x), (32, 32, 56), AFFINE, 1.0, 32) for x in (15.5, 39.5)]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(8, 8, 8)).astype(np.float32) for _ in grids]
    coarse = LogitBox((slice(2, 30), slice(0, 32), slice(4, 56)), rng.normal(size=(28, 32, 52)))
    found = blended(coarse, zip(grids, values, strict=True))

    weights = [grid.paste(hat(8), outside=0) for grid in grids]
    total = sum(
        weight * grid.paste(each, outside=0)
        for weight, grid, each in zip(weights, grids, values, strict=True)
    )[coarse.box]
    expected = (total + LEAST_WEIGHT * coarse.values) / (sum(weights)[coarse.box] + LEAST_WEIGHT)
    assert found.box == coarse.box
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_a_tile_beside_the_coarse_box_changes_nothing():
    grid = CropGrid.at((15.5, 15.5, 15.5), (32, 32, 80), AFFINE, 1.0, 32)
    coarse = LogitBox((slice(0, 32), slice(0, 32), slice(40, 60)), np.full((32, 32, 20), 2.0))
    found = blended(coarse, [(grid, np.ones((8, 8, 8), np.float32))])
    np.testing.assert_allclose(found.values, 2.0, rtol=1e-5)


class Noting(CropPredictor):
    """A network that notes the targets of each call."""

    def decode_all(self, targets):
        self.calls = [*getattr(self, "calls", []), targets]
        return super().decode_all(targets)


def noise():
    return np.random.default_rng(0).integers(0, 2000, (40, 40, 40)).astype(np.int16) - 1500


def grid_at(z):
    return CropGrid.at((z, 20, 20), (40, 40, 40), AFFINE, 1.0, 32)


def requests():
    """Six requests on three cubes, with one to three clicks, three with a mask."""
    rng = np.random.default_rng(1)
    clicks = [((16.0, 14.0, 12.0), True), ((3.0, 4.0, 5.0), False), ((20.0, 21.0, 22.0), True)]
    return [
        DecodeRequest(
            grid_at(15 + 5 * (n % 3)),
            clicks[: 1 + n % 2 + n // 4],
            rng.normal(size=(16, 16, 16)) if n % 2 else None,
        )
        for n in range(6)
    ]


def decoder(batch_size=16, hounsfield=False, kind=CropPredictor):
    network = kind(small_sam(), torch.device("cpu"), batch_size=batch_size)
    return BatchDecoder(network, noise(), hounsfield=hounsfield)


def alone(request, hounsfield=False):
    """Return the logits of one request straight from the network."""
    network = CropPredictor(small_sam(), torch.device("cpu"))
    crop = torch.from_numpy(cut_image(request.grid, noise(), hounsfield=hounsfield))
    mask = request.low_res
    mask = None if mask is None else torch.from_numpy(mask.astype(np.float32))[None, None]
    (logits,) = network.decode_all([Prompted(network.encode(crop), request.clicks, mask)])
    return logits[0, 0].numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("hounsfield", [False, True])
def test_each_request_gets_its_own_logits_whatever_shares_its_batch(batch_size, hounsfield):
    found = decoder(batch_size, hounsfield).decode(requests())
    for request, logits in zip(requests(), found, strict=True):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, alone(request, hounsfield), atol=1e-4)


def test_requests_of_equally_many_clicks_share_batches():
    batches = decoder(2, kind=Noting)
    batches.decode(requests())
    sizes = [[len(target.clicks) for target in call] for call in batches.network.calls]
    assert sizes == [[1, 1], [2, 2], [2, 3]]


def test_a_cube_is_encoded_once_while_it_is_kept():
    batches = decoder()
    assert batches.encoder_runs == 0
    batches.decode(requests())
    assert batches.encoder_runs == 3
    batches.decode(requests()[:2])
    assert batches.encoder_runs == 3
    batches.decode([requests()[0]._replace(grid=grid_at(21))])
    assert batches.encoder_runs == 4
    assert batches.decode([]) == []


def test_the_least_recently_used_cubes_go_first(monkeypatch):
    batches = decoder(batch_size=1)
    first = requests()[0]
    batches.decode([first])
    (embedding,) = batches._embeddings.values()
    monkeypatch.setattr("utils.prediction.batching.EMBEDDING_BYTES", 2 * embedding.nbytes)
    batches.decode([first._replace(grid=grid_at(21))])
    batches.decode([first])  # used again, so that the other one is the oldest
    batches.decode([first._replace(grid=grid_at(22))])
    assert batches.encoder_runs == 3
    batches.decode([first])
    assert batches.encoder_runs == 3
    batches.decode([first._replace(grid=grid_at(21))])
    assert batches.encoder_runs == 4


def test_the_edge_of_the_masks_is_the_networks():
    assert decoder().cells == 16
    assert RULE.size == 32
