"""``DecoderConfig.mask_threshold``: answers follow it, mask prompts do not."""

import dataclasses

import numpy as np
import pytest
import torch
from small_networks import RULE, small_config

from segment_anything import Sam3D, build_sam3D
from segment_anything.config import ConfigError, DecoderConfig
from utils.prediction.lockstep import in_lockstep
from utils.prediction.predictor import Predictor
from utils.prediction.region import Scene
from utils.prediction.session import ImageSession, PredictorOptions
from utils.prompts.kinds import Click, MaskPrompt
from utils.volumes.geometry import CropRule, affine_from_spacing

SHAPE = (20, 24, 28)
CLICK = Click((10, 12, 14), True)


def session(threshold: float, **options) -> ImageSession:
    choices = PredictorOptions(**options)
    scene = Scene(SHAPE, affine_from_spacing(np.ones(3)), CropRule(32, 1.0), choices.zoom)
    return ImageSession(scene, 16, choices, mask_threshold=threshold)


def advanced(image, before, prompts, value, asked=None):
    """Return the state after the newest prompt, from a network with one logit everywhere."""

    def network(requests):
        if asked is not None:
            asked.extend(requests)
        return [np.full((16, 16, 16), value, np.float32)] * len(requests)

    (state,) = in_lockstep([image.advance(before, prompts, 1)], network)
    return state


@pytest.mark.parametrize(("threshold", "is_mask"), [(-1.0, True), (0.0, False), (-0.4, False)])
def test_logits_above_the_threshold_are_the_answer(threshold, is_mask):
    image = session(threshold)
    state = advanced(image, None, [CLICK], -0.5)
    assert bool((image.logits(state).values > 0).any()) is is_mask


def test_the_next_click_is_decoded_from_the_logits_as_they_were():
    image, asked = session(-1.0, far_share=1.0), []
    state = advanced(image, None, [CLICK], -0.5)
    advanced(image, state, [CLICK, Click((8, 12, 14), True)], -0.5, asked)
    assert asked
    assert all((request.low_res == -0.5).all() for request in asked)


def test_a_threshold_leaves_a_given_mask_as_it_is():
    mask = np.zeros(SHAPE, bool)
    mask[5:14, 6:19, 7:18] = True
    answers = []
    for threshold in (0.0, -1.0, 2.0):
        image = session(threshold)
        state = advanced(image, None, [MaskPrompt(mask)], 0.0)
        logits = image.logits(state)
        answer = np.zeros(SHAPE, bool)
        answer[logits.box] = logits.values > 0
        answers.append(answer)
    assert answers[0].any()
    assert (answers[1] == answers[0]).all()
    assert (answers[2] == answers[0]).all()


def network(threshold: float) -> Sam3D:
    config = small_config()
    decoder = dataclasses.replace(config.decoder, mask_threshold=threshold)
    torch.manual_seed(0)
    return build_sam3D(dataclasses.replace(config, decoder=decoder))


def test_a_network_has_the_threshold_of_its_config():
    assert network(-1.0).mask_threshold == -1.0
    assert build_sam3D(small_config()).mask_threshold == 0.0


@pytest.mark.parametrize("tile_above", [0.0, 0.5])  # 0: without tiles; 0.5: all in tiles
def test_the_predictor_answers_with_the_threshold_of_its_network(tile_above):
    image = np.random.default_rng(0).integers(0, 255, (24, 40, 36)).astype(np.uint8)
    sizes = []
    for threshold in (-20.0, 0.0, 20.0):
        options = PredictorOptions(tile_above=tile_above, only_prompted=False)
        predictor = Predictor(network(threshold), RULE, options=options)
        predictor.set_image(image, (1.0, 1.0, 1.0))
        predictor.add_point((12, 20, 18))
        sizes.append(int(predictor.mask().sum()))
    assert sizes[0] > 10 * sizes[2]
    assert sizes[0] >= sizes[1] >= sizes[2] > 0  # the clicked voxel is always target


def test_a_threshold_beyond_any_logit_is_refused():
    with pytest.raises(ConfigError, match="mask_threshold is 30"):
        DecoderConfig(mask_threshold=30.0)
