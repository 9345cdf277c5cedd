"""Prediction where other tests do not look: defaults, and several clicks of the other kind."""

import numpy as np
import torch
from small_networks import small_sam

from segment_anything import CropPredictor
from utils.prediction.batching import BatchDecoder
from utils.prediction.masks import SURE_LOGIT, LogitBox, honour_clicks
from utils.prediction.session import DecodeRequest
from utils.prompts.kinds import Click
from utils.volumes.geometry import CropGrid, affine_from_spacing

SHAPE = (20, 24, 28)
EVEN = (1.0, 1.0, 1.0)


def test_intensities_are_no_hounsfield_units_unless_said():
    grid = CropGrid.at((16, 16, 16), (32, 32, 32), affine_from_spacing(EVEN), 1.0, 32)
    request = DecodeRequest(grid, [((16.0, 14.0, 12.0), True)], None)
    network = CropPredictor(small_sam(), torch.device("cpu"))
    image = np.random.default_rng(0).normal(0, 1500, (32, 32, 32)).astype(np.float32)
    default, no, yes = (
        BatchDecoder(network, image, **flags).decode([request])[0]
        for flags in ({}, {"hounsfield": False}, {"hounsfield": True})
    )
    np.testing.assert_array_equal(default, no)
    assert not np.allclose(default, yes)


def test_the_nearest_click_of_the_other_kind_narrows_a_spot_however_many_there_are():
    def spot(*others):
        logits = LogitBox(tuple(slice(0, n) for n in SHAPE), np.full(SHAPE, -6.0, np.float32))
        clicks = [Click((10, 12, 14), True), *(Click(place, False) for place in others)]
        return honour_clicks(logits, clicks, [], EVEN, 2.0, SHAPE).values

    near, far = (10, 12, 17), [(1, 2, 3), (18, 2, 3), (1, 22, 3)]  # all on the right side already
    np.testing.assert_array_equal(spot(near, *far), spot(near))
    assert spot(near)[10, 12, 14] == SURE_LOGIT
    assert (spot(near) > 0).sum() < (spot(*far) > 0).sum()
