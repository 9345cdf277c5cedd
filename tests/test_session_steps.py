"""Which steps a session takes for each prompt: regions, views, masks kept, and tiles.

A network with a fixed answer shows what the session asks for and what it does with the answer. The
session is used through the predictor.
"""

import numpy as np
import pytest
import torch
from bright_network import bright_predictor
from small_networks import RULE, small_sam

from segment_anything import CropPredictor
from utils.prediction.masks import SURE_LOGIT
from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import FAR, PredictorOptions
from utils.prompts.box import PEAK_LOGIT, Box, ellipsoid_logits
from utils.volumes.geometry import CropRule

CELLS = 16
STILL = ZoomRule(passes=0)
LONG = (20, 24, 300)


class Answering(CropPredictor):
    """A network whose logits are 4 in a ball of cells around each crop's middle, -4 elsewhere.

    It notes each request: the clicks and the mask prompt.
    """

    radius = 5.0

    def encode_all(self, crops):
        self.crops = [*getattr(self, "crops", []), *crops]
        return [crop[None, None] for crop in crops]

    def decode_all(self, targets):
        self.asked = [*getattr(self, "asked", []), *targets]
        cells = (np.arange(CELLS) - (CELLS - 1) / 2) ** 2
        ball = sum(np.ix_(cells, cells, cells)) <= self.radius**2
        logits = torch.from_numpy(np.where(ball, 4.0, -4.0).astype(np.float32))
        return [logits[None, None].clone() for _ in targets]


def predictor_on(shape, rule=RULE, radius=5.0, spacing=(1.0, 1.0, 1.0), **options):
    options = {"zoom": STILL, "tile_above": 0.0} | options
    predictor = Predictor(small_sam(), rule, options=PredictorOptions(**options))
    predictor.network = Answering(predictor.network.model, torch.device("cpu"))
    predictor.network.radius = radius
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    predictor.set_image(image, spacing)
    return predictor


def clicks_asked(predictor):
    """Return for each request its clicks: places rounded, and kinds."""
    return [
        [(tuple(np.rint(place).astype(int)), kind) for place, kind in target.clicks]
        for target in predictor.network.asked
    ]


def labels_asked(predictor):
    return [[kind for _, kind in clicks] for clicks in clicks_asked(predictor)]


def test_each_click_in_the_region_is_one_request():
    predictor = predictor_on((32, 32, 32))
    for x in (14, 16, 18):
        predictor.add_point((16, 16, x))
    predictor.mask()
    assert labels_asked(predictor) == [[True], [True] * 2, [True] * 3]
    assert len(predictor.network.crops) == 1
    assert predictor.network.asked[0].low_res_mask is None


def test_a_click_far_away_starts_a_region_of_its_own_and_the_first_stays():
    predictor = predictor_on(LONG)
    predictor.add_point((10, 12, 30))
    predictor.add_point((10, 12, 280))
    mask = predictor.mask()
    assert labels_asked(predictor) == [[True], [True]]
    assert predictor.network.asked[1].low_res_mask is None
    assert mask[10, 12, 30]
    assert mask[10, 12, 280]
    assert mask[..., :60].sum() > 100
    assert mask[..., 240:].sum() > 100


def test_a_click_in_an_earlier_region_goes_on_there():
    predictor = predictor_on(LONG)
    for x in (30, 280, 33, 277):
        predictor.add_point((10, 12, x))
    predictor.mask()
    assert labels_asked(predictor) == [[True], [True], [True] * 2, [True] * 2]
    places = [[place for place, _ in clicks] for clicks in clicks_asked(predictor)]
    assert places[2][0] == places[0][0]
    assert places[3][0] == places[1][0]
    assert len(predictor.network.crops) == 2


def test_three_regions_far_apart_are_all_kept():
    predictor = predictor_on(LONG)
    for x in (30, 150, 280, 33):
        predictor.add_point((10, 12, x))
    mask = predictor.mask()
    assert all(mask[10, 12, x] for x in (30, 150, 280, 33))
    assert len(predictor.network.crops) == 3


def test_a_click_a_little_outside_widens_the_region_to_hold_both():
    predictor = predictor_on(LONG)
    predictor.add_point((10, 12, 100))
    predictor.add_point((10, 12, 120))
    predictor.mask()
    # Decoded anew in the larger region: both clicks, one by one.
    assert labels_asked(predictor) == [[True], [True], [True] * 2]
    (first,), second = (predictor._states[1][0].clicks, predictor._states[1][1])
    assert first.zyx == (10, 12, 100)
    assert RULE.spacing_mm < second.region.spacing_mm <= FAR * RULE.spacing_mm
    assert not second.other_views


def test_a_background_click_outside_of_the_region_changes_nothing_and_asks_nothing():
    predictor = predictor_on(LONG)
    predictor.add_point((10, 12, 100))
    before = predictor.mask()
    for x in (120, 280):
        predictor.add_point((10, 12, x), False)
        np.testing.assert_array_equal(predictor.mask(), before)
    assert labels_asked(predictor) == [[True]]


def test_a_background_click_first_is_told():
    predictor = predictor_on((32, 32, 32), only_prompted=False)
    predictor.add_point((16, 16, 16), False)
    predictor.mask()
    assert labels_asked(predictor) == [[False]]


def test_a_second_box_starts_over_about_the_new_box():
    predictor = predictor_on(LONG)
    predictor.add_box((4, 4, 20), (12, 12, 28))
    predictor.add_box((4, 4, 220), (12, 12, 228))
    predictor.mask()
    state = predictor._states[1][-1]
    assert state.region.centre_zyx == pytest.approx((7.5, 7.5, 223.5))
    assert not state.other_views
    # The first box and its click lie outside of the region: its decoding starts from its ellipsoid.
    assert len(predictor.network.asked) == 3


def test_a_box_is_the_ellipsoid_in_its_place_in_the_crop():
    predictor = predictor_on((60, 60, 60))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    predictor.mask()
    (asked,) = predictor.network.asked
    # The longest side, 16 mm, fills half of the 32 voxels; the axes are those of the network.
    box = Box((16 - 4, 16 - 6, 16 - 8), (16 + 4, 16 + 6, 16 + 8))
    expected = ellipsoid_logits(box, 32, CELLS)
    np.testing.assert_allclose(asked.low_res_mask[0, 0].numpy(), expected, atol=1e-4)
    assert expected.max() <= PEAK_LOGIT
    ((place, kind),) = asked.clicks
    assert place == pytest.approx((15.5, 15.5, 15.5))
    assert kind is True


def test_a_box_drawn_on_the_middle_slice_has_a_wider_ellipsoid():
    predictor = predictor_on((60, 60, 60), zoom=ZoomRule(passes=0, in_plane=1.5))
    predictor.add_box((10, 12, 14), (26, 22, 24), middle_slice=True)
    predictor.mask()
    mask = predictor.network.asked[0].low_res_mask[0, 0].numpy()
    box = Box((16 - 7.5, 16 - 7.5, 16 - 8), (16 + 7.5, 16 + 7.5, 16 + 8))
    np.testing.assert_allclose(mask, ellipsoid_logits(box, 32, CELLS), atol=1e-4)


def test_a_given_mask_becomes_sure_logits_of_its_share_in_each_cell():
    predictor = predictor_on((32, 32, 32), zoom=ZoomRule(passes=0, fill=1.0))
    given = np.zeros((32, 32, 32), bool)
    given[0:32, 0:32, 0:26] = (
        True  # in the crop from 3 to 29: its first and last cell are half full
    )
    predictor.add_mask(given)
    predictor.mask()
    assert not hasattr(predictor.network, "asked")
    logits = predictor._states[1][-1].low_res
    assert np.unique(np.round(logits, 4)).tolist() == [-SURE_LOGIT, 0, SURE_LOGIT]
    assert (logits > 0).sum() == 16 * 16 * 12


def test_a_small_mask_moves_the_region_as_often_as_allowed():
    for passes in (0, 1, 2):
        predictor = predictor_on((64, 64, 64), radius=1.0, zoom=ZoomRule(passes=passes, same=0.0))
        predictor.add_point((32, 32, 32))
        predictor.mask()
        assert len(predictor.network.asked) == passes + 1


def test_components_without_a_click_are_no_reason_for_a_larger_region():
    """The ball is in the middle of the crop, the click is not: nothing of the mask is prompted."""
    predictor = predictor_on((64, 64, 64))
    predictor.add_point((32, 32, 32))
    predictor.add_point((32, 32, 45))
    state = (predictor.mask(), predictor._states[1][-1])[1]
    found = predictor.session.prompted_cells(state)
    assert found.sum() == (state.low_res > 0).sum()


def test_the_edge_of_a_cell_is_the_cubes_edge_over_the_cells():
    predictor = predictor_on((64, 64, 64))
    predictor.add_point((32, 32, 32))
    predictor.mask()
    assert predictor.session.cell_mm(predictor._states[1][-1]) == 2.0


@pytest.mark.parametrize(("tile_above", "tiled"), [(0.0, False), (1.9, True), (2.1, False)])
def test_tiles_are_decoded_where_the_region_is_coarser_than_the_limit(tile_above, tiled):
    predictor = predictor_on((64, 64, 64), tile_above=tile_above)
    predictor.add_box((16, 16, 16), (48, 48, 48))  # 32 mm in a cube of 64 mm: spacing 2
    predictor.mask()
    assert predictor._states[1][-1].region.spacing_mm == pytest.approx(2.0)
    assert (len(predictor.network.asked) > 1) == tiled


def test_tiles_are_told_the_clicks_that_they_hold_and_the_mask_in_them():
    predictor = predictor_on((64, 64, 64), tile_above=1.5)
    predictor.add_box((16, 16, 16), (48, 48, 48))
    predictor.add_point((20, 32, 32))
    predictor.mask()
    tiles = predictor.network.asked[2:]
    assert len(tiles) > 4
    state = predictor._states[1][-1]
    for tile in tiles:
        assert (tile.low_res_mask > 0).any()
        assert all(-0.5 <= c <= 31.5 for place, _ in tile.clicks for c in place)
    held = sorted(len(tile.clicks) for tile in tiles)
    assert held[0] < 2
    assert held[-1] >= 1
    assert len(state.clicks) == 2


def test_tiles_of_a_state_are_decoded_once():
    predictor = predictor_on((64, 64, 64), tile_above=1.5)
    predictor.add_box((16, 16, 16), (48, 48, 48))
    predictor.mask()
    asked = len(predictor.network.asked)
    predictor.mask()
    predictor.logits(1)
    assert len(predictor.network.asked) == asked


def test_tiles_are_no_finer_than_the_image():
    predictor = predictor_on(
        (64, 64, 64), CropRule(32, 0.25), tile_above=1.5, zoom=ZoomRule(passes=0, coarsest=99.0)
    )
    predictor.add_box((16, 16, 16), (48, 48, 48))
    predictor.mask()
    coarse, *tiles = predictor.decoder._embeddings
    assert coarse.steps[2] == pytest.approx(2.0)
    assert tiles
    assert min(abs(tile.steps[2]) for tile in tiles) >= 0.5


def test_only_prompted_components_are_kept_where_asked():
    image = np.zeros((20, 20, 60), np.uint8)
    image[4:16, 4:16, 5:17] = image[4:16, 4:16, 30:42] = 200
    for only, kept in ((True, False), (False, True)):
        predictor = bright_predictor(CropRule(64, 1.0), only_prompted=only, zoom=STILL)
        predictor.set_image(image, (1.0, 1.0, 1.0))
        predictor.add_point((10, 10, 10))
        mask = predictor.mask()
        assert mask[10, 10, 10]
        assert mask[10, 10, 36] == kept


def test_clicks_are_honoured_where_asked():
    for honour in (True, False):
        predictor = predictor_on((32, 32, 32), honour_clicks=honour)
        predictor.add_point((16, 16, 16))
        predictor.add_point((2, 2, 2))
        predictor.add_point((17, 17, 17), False)
        mask = predictor.mask()
        assert mask[2, 2, 2] == honour
        assert mask[17, 17, 17] != honour
