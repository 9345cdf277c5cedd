"""Every prompt reaches the network: each click with its kind and place, boxes, and the mask so far.

The network itself is real; a wrapper around its engine notes what reaches it. Where a test needs
known logits, a network with a fixed list of answers is used instead.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import RULE, small_config, small_sam

from segment_anything import CropPredictor, build_sam3D
from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import PredictorOptions
from utils.volumes.geometry import CropRule, affine_from_spacing

STILL = ZoomRule(passes=0)
CUBE = (32, 32, 32)  # at 1 mm an image of this shape is one crop of `RULE`
CELLS = 16


class Noting:
    """An engine that notes what it is given and what it answers."""

    def __init__(self, engine):
        self.engine, self.name = engine, engine.name
        self.given, self.answers = [], []

    def encode(self, images):
        return self.engine.encode(images)

    def decode(self, image_embeddings, *prompts):
        self.given.append([prompt.clone() for prompt in prompts])
        answer = self.engine.decode(image_embeddings, *prompts)
        self.answers.append(answer[0].clone())
        return answer


class Scripted(CropPredictor):
    """A network that answers every cell of its n-th call with the n-th of these logits."""

    script = ()

    def decode_all(self, targets):
        logit, self.script = self.script[0], self.script[1:]
        return [torch.full((1, 1, CELLS, CELLS, CELLS), float(logit)) for _ in targets]


def noise():
    return np.random.default_rng(0).integers(0, 255, CUBE).astype(np.uint8)


def noting_predictor(image=None, rule=RULE, affine=None, memory="all", **options):
    options = {"zoom": STILL} | options
    config = small_config()
    config = replace(config, prompt=replace(config.prompt, click_memory=memory))
    predictor = Predictor(build_sam3D(config), rule, options=PredictorOptions(**options))
    predictor.network.engine = Noting(predictor.network.engine)
    affine = affine_from_spacing(np.ones(3)) if affine is None else affine
    predictor.set_image(noise() if image is None else image, affine=affine)
    return predictor


def scripted_predictor(*script, **options):
    options = {"zoom": STILL, "only_prompted": False, "honour_clicks": False} | options
    predictor = Predictor(small_sam(), RULE, options=PredictorOptions(**options))
    predictor.network = Scripted(predictor.network.model, torch.device("cpu"))
    predictor.network.script = script
    predictor.set_image(noise(), (1.0, 1.0, 1.0))
    return predictor


def logits_of(predictor):
    """Return the logits on the whole image; NaN outside of their box."""
    found = predictor.logits(1)
    whole = np.full(CUBE, np.nan)
    whole[found.box] = found.values
    return whole


def test_every_click_reaches_the_network_with_its_kind():
    predictor = noting_predictor()
    for zyx, positive in (((5, 20, 18), True), ((9, 8, 30), False), ((2, 30, 4), True)):
        predictor.add_point(zyx, positive)
    predictor.mask()
    labels = [given[1].tolist() for given in predictor.network.engine.given]
    assert labels == [[[1]], [[1, 0]], [[1, 0, 1]]]


def test_a_lone_background_click_reaches_the_network_as_background():
    predictor = noting_predictor()
    predictor.add_point((5, 20, 18), False)
    predictor.mask()
    assert predictor.network.engine.given[0][1].tolist() == [[0]]


def test_clicks_reach_the_network_at_their_place_in_the_crop():
    # In this affine array axis z grows towards the right, y the front, and x the top.
    affine = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    predictor = noting_predictor(affine=affine)
    predictor.add_point((5, 20, 18))
    predictor.add_point((9, 8, 30), False)
    predictor.mask()
    assert predictor.network.engine.given[1][0].tolist() == [[[5, 20, 18], [9, 8, 30]]]


def test_a_network_that_remembers_the_last_click_alone_is_shown_that_one():
    predictor = noting_predictor(memory="last")
    for zyx, positive in (((5, 20, 18), True), ((9, 8, 30), False)):
        predictor.add_point(zyx, positive)
    predictor.mask()
    assert [given[1].tolist() for given in predictor.network.engine.given] == [[[1]], [[0]]]


def test_the_first_click_is_decoded_without_a_mask():
    predictor = noting_predictor()
    predictor.add_point((5, 20, 18))
    predictor.mask()
    assert not predictor.network.engine.given[0][2].any()


def test_a_later_click_is_decoded_with_the_mask_so_far():
    predictor = noting_predictor(far_share=1.0)  # the mask is then the network's own answer
    predictor.add_point((5, 20, 18))
    predictor.add_point((9, 8, 30), False)
    predictor.mask()
    (first, _), (_, second) = predictor.network.engine.answers, predictor.network.engine.given
    np.testing.assert_allclose(second[2].numpy(), first.numpy(), rtol=1e-6)
    assert first.any()


def test_a_box_is_told_as_a_coarse_mask_and_a_click_in_its_middle():
    predictor = noting_predictor()
    predictor.add_box((8, 8, 8), (24, 24, 24))  # fills half of its region, as a box does
    predictor.mask()
    coords, labels, mask = predictor.network.engine.given[0]
    assert labels.tolist() == [[1]]
    np.testing.assert_allclose(coords.numpy(), np.full((1, 1, 3), 15.5))
    inside = mask[0, 0].numpy() > 0
    assert inside[4:12, 4:12, 4:12].sum() == inside.sum()
    assert inside.sum() == pytest.approx(np.pi / 6 * 8**3, rel=0.1)


def test_a_box_is_a_click_alone_where_box_masks_are_off():
    predictor = noting_predictor(box_mask=False)
    predictor.add_box((8, 8, 8), (24, 24, 24))
    predictor.mask()
    _, labels, mask = predictor.network.engine.given[0]
    assert labels.tolist() == [[1]]
    assert not mask.any()


def test_a_click_after_a_box_is_decoded_with_the_boxs_click_before_it():
    predictor = noting_predictor()
    predictor.add_box((8, 8, 8), (24, 24, 24))
    predictor.add_point((10, 12, 14), False)
    predictor.mask()
    assert predictor.network.engine.given[1][1].tolist() == [[1, 0]]


def test_a_click_on_a_given_mask_is_decoded_with_that_mask():
    mask = np.zeros(CUBE, bool)
    mask[8:24, 8:24, 8:24] = True
    predictor = noting_predictor()
    predictor.add_mask(mask)
    predictor.add_point((9, 9, 9), False)
    predictor.mask()
    (given,) = predictor.network.engine.given
    inside = given[2][0, 0].numpy() > 0
    assert inside[4:12, 4:12, 4:12].all()
    assert inside.sum() == 8**3
    assert given[1].tolist() == [[0]]


def test_tiles_of_a_large_target_are_decoded_with_the_coarse_mask_in_them():
    predictor = noting_predictor(
        np.full((64, 64, 64), 90, np.uint8), CropRule(size=32, spacing_mm=1.0)
    )
    mask = np.zeros((64, 64, 64), bool)
    mask[4:60, 4:60, 4:60] = True
    predictor.add_mask(mask)
    predictor.mask()
    masks = torch.cat([given[2] for given in predictor.network.engine.given])
    assert len(masks) > 8
    assert all((tile > 0).any() for tile in masks)
    assert any((tile <= 0).any() for tile in masks)


def test_a_later_click_changes_the_mask_in_full_near_it_and_by_a_share_far_away():
    predictor = scripted_predictor(1, 11, far_share=0.15, near_share=0.375)
    predictor.add_point((2, 2, 2))
    assert logits_of(predictor) == pytest.approx(np.ones(CUBE))
    predictor.add_point((2, 2, 2))
    after = logits_of(predictor)
    assert after[2, 2, 2] == pytest.approx(11, abs=0.1)
    assert after[31, 31, 31] == pytest.approx(1 + 0.15 * 10, abs=0.05)


@pytest.mark.parametrize(("share", "far"), [(0.0, 1), (0.5, 6), (1.0, 11)])
def test_the_share_that_far_voxels_change_by_can_be_chosen(share, far):
    predictor = scripted_predictor(1, 11, far_share=share, near_share=0.375)
    predictor.add_point((2, 2, 2))
    predictor.add_point((2, 2, 2))
    assert logits_of(predictor)[31, 31, 31] == pytest.approx(far, abs=0.05)


def test_the_width_of_what_a_click_changes_in_full_can_be_chosen():
    middle = []
    for cells in (2.0, 6.0, 20.0):
        predictor = scripted_predictor(1, 11, far_share=0.0, near_share=cells / 16)
        predictor.add_point((2, 2, 2))
        predictor.add_point((2, 2, 2))
        middle.append(logits_of(predictor)[15, 15, 15])  # 6.5 cells away along each axis
    expected = [1 + 10 * np.exp(-3 * (6.5 / cells) ** 2 / 2) for cells in (2.0, 6.0, 20.0)]
    np.testing.assert_allclose(middle, expected, atol=0.15)
