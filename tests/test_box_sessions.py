"""A session gives a box to a network that takes boxes: in its region, in later ones, and in tiles.

A network with a fixed answer shows what the session asks for; see `Answering`.
"""

import numpy as np
import pytest
import torch
from test_boxes3D import CONFIG
from test_session_steps import STILL, Answering, clicks_asked, labels_asked

from segment_anything import build_sam3D
from utils.prediction.masks import LogitBox, keep_prompted
from utils.prediction.predictor import Predictor
from utils.prediction.region import Extent, ZoomRule
from utils.prediction.session import PredictorOptions
from utils.prompts.box import Box, ellipsoid_logits
from utils.volumes.geometry import CropRule

CELLS = 16
RULE = CropRule(size=32, spacing_mm=1.0)


def predictor_on(shape, rule=RULE, radius=5.0, **options):
    """Return a predictor with `Answering` in place of a network that takes boxes."""
    options = {"zoom": STILL, "tile_above": 0.0} | options
    torch.manual_seed(0)
    predictor = Predictor(build_sam3D(CONFIG), rule, options=PredictorOptions(**options))
    predictor.network = Answering(predictor.network.model, torch.device("cpu"))
    predictor.network.radius = radius
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    predictor.session.cells = CELLS  # those of the answers
    return predictor


def boxes_asked(predictor):
    return [target.box for target in predictor.network.asked]


def test_a_box_is_its_corners_and_its_ellipsoid_and_no_click():
    predictor = predictor_on((60, 60, 60))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    predictor.mask()
    (asked,) = predictor.network.asked
    box = Box((16 - 4, 16 - 6, 16 - 8), (16 + 4, 16 + 6, 16 + 8))
    assert list(asked.clicks) == []
    np.testing.assert_allclose(asked.box, box, atol=1e-6)
    expected = ellipsoid_logits(box, 32, CELLS)
    np.testing.assert_allclose(asked.low_res_mask[0, 0].numpy(), expected, atol=1e-4)


def test_a_box_drawn_on_the_middle_slice_is_widened():
    predictor = predictor_on((60, 60, 60), zoom=ZoomRule(passes=0, in_plane=1.5))
    predictor.add_box((10, 12, 14), (26, 22, 24), middle_slice=True)
    predictor.mask()
    expected = Box((16 - 7.5, 16 - 7.5, 16 - 8), (16 + 7.5, 16 + 7.5, 16 + 8))
    np.testing.assert_allclose(boxes_asked(predictor)[0], expected, atol=1e-6)


def test_later_clicks_are_decoded_with_the_box_still_there():
    predictor = predictor_on((60, 60, 60))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    predictor.add_point((18, 18, 18))
    predictor.add_point((12, 13, 15), False)
    predictor.mask()
    assert labels_asked(predictor) == [[], [True], [True, False]]
    first, second, third = boxes_asked(predictor)
    assert first == second == third


def test_the_box_keeps_its_place_on_the_image_when_the_region_moves():
    predictor = predictor_on((64, 64, 64), radius=1.0, zoom=ZoomRule(passes=1, same=0.0))
    predictor.add_box((20, 24, 22), (44, 40, 42))
    predictor.mask()
    assert len(predictor.network.asked) == 2  # a tiny answer: the region shrinks
    grids = list(predictor.decoder._embeddings)
    assert abs(grids[1].steps[0]) < abs(grids[0].steps[0])
    first, second = boxes_asked(predictor)
    middle = np.mean(first, axis=0)
    assert np.ptp(first, axis=0).max() == pytest.approx(16)
    # The region is smaller than the box, which is cut to it.
    assert second == Box((0.0, 0.0, 0.0), (32.0, 32.0, 32.0))
    assert middle == pytest.approx((16, 16, 16))


def test_a_second_box_takes_the_place_of_the_first():
    predictor = predictor_on((20, 24, 300))
    predictor.add_box((4, 4, 20), (12, 12, 28))
    predictor.add_box((4, 4, 220), (12, 12, 228))
    predictor.mask()
    first, in_new_region, second = boxes_asked(predictor)
    assert first == second
    assert in_new_region is None  # the first box lies outside of the second one's region


def test_a_tile_gets_the_part_of_the_box_in_it():
    predictor = predictor_on((64, 64, 64), tile_above=1.5)
    predictor.add_box((16, 16, 16), (48, 48, 48))
    predictor.mask()
    whole, *parts = predictor.decoder._embeddings
    _, *boxes = boxes_asked(predictor)
    assert len(boxes) == len(parts) > 4
    assert whole.steps != parts[0].steps
    places = set()
    for grid, box in zip(parts, boxes, strict=True):
        faces = np.array(box) - 0.5
        corners = np.sort([grid.to_volume(tuple(face)) for face in faces], axis=0) + 0.5
        reach = [grid.to_volume((-0.5,) * 3), grid.to_volume((31.5,) * 3)]
        low, high = np.sort(reach, axis=0) + 0.5
        np.testing.assert_allclose(corners, [np.maximum(low, 16), np.minimum(high, 48)], atol=1e-4)
        places.add(tuple(np.round(corners.flatten())))
    assert len(places) > 1


def test_components_that_touch_the_box_stay_without_a_click():
    values = np.full((8, 8, 30), -4.0, np.float32)
    values[2:5, 2:5, 2:6] = values[2:5, 2:5, 9:13] = values[2:5, 2:5, 20:25] = 4.0
    logits = LogitBox((slice(10, 18), slice(0, 8), slice(0, 30)), values)
    extent = Extent(np.array([11.5, 1.5, 3.5]), np.array([15.5, 5.5, 10.5]))
    kept = keep_prompted(logits, [], extent).values > 0
    assert kept[3, 3, [3, 10, 22]].tolist() == [True, True, False]
    clicked = keep_prompted(logits, [(13, 3, 22)], extent).values > 0
    assert clicked[3, 3, [3, 10, 22]].all()
    elsewhere = Extent(np.array([-0.5, 6.5, 26.5]), np.array([3.5, 9.5, 40.5]))
    np.testing.assert_array_equal(keep_prompted(logits, [], elsewhere).values, values)


def test_a_region_follows_the_components_in_the_box():
    predictor = predictor_on((60, 60, 60))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    predictor.mask()
    state = predictor._states[1][-1]
    spot = np.full((CELLS,) * 3, -4.0, np.float32)
    spot[7:9, 7:9, 7:9] = spot[0, 0, 0] = 4.0
    object.__setattr__(state, "low_res", spot)
    cells = predictor.session.prompted_cells(state)
    assert cells[8, 8, 8]
    assert not cells[0, 0, 0]


def test_a_box_goes_through_the_network_itself():
    """Two boxes of the same middle and longest side, so of the same region, differ in masks."""
    torch.manual_seed(0)
    predictor = Predictor(
        build_sam3D(CONFIG),
        CropRule(size=64, spacing_mm=1.0),
        options=PredictorOptions(box_mask=False, only_prompted=False, zoom=STILL),
    )
    image = np.random.default_rng(0).integers(0, 255, (50, 50, 50)).astype(np.uint8)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    predictor.add_box((10, 12, 14), (26, 24, 22), target=1)
    predictor.add_box((10, 16, 14), (26, 20, 22), target=2)
    predictor.segmentation()
    first, second = (predictor._states[target][-1] for target in (1, 2))
    assert first.region == second.region
    assert np.abs(first.low_res - second.low_res).max() > 1e-4


def test_clicks_before_a_box_still_count():
    predictor = predictor_on((60, 60, 60))
    predictor.add_point((18, 18, 18))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    predictor.mask()
    assert [len(clicks) for clicks in clicks_asked(predictor)] == [1, 1, 1]
    assert [box is not None for box in boxes_asked(predictor)] == [False, False, True]
