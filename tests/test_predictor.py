"""The predictor: prompts in, masks on the image's own grid out."""

import numpy as np
import pytest
import torch
from bright_network import ball_image, bright_predictor
from small_networks import RULE, small_sam

from utils.errors import InputError
from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prompts.kinds import PromptError
from utils.results.metrics import dsc
from utils.volumes.geometry import CropRule, affine_from_spacing

SPACING = (1.1, 0.9, 2.5)


@pytest.fixture(scope="module")
def network():
    return small_sam()


@pytest.fixture
def predictor(network):
    predictor = Predictor(network, RULE)
    image = np.random.default_rng(0).integers(0, 255, (14, 40, 36)).astype(np.uint8)
    predictor.set_image(image, SPACING)
    return predictor


def ball_at(shape, centre, radius, spacing=SPACING, **options):
    """Return truth, and the answer to one click in the middle of a bright ball."""
    image, truth = ball_image(shape, np.multiply(centre, spacing[::-1]), radius, spacing)
    predictor = bright_predictor(**options)
    predictor.set_image(image, spacing)
    predictor.add_point(centre)
    return truth, predictor.mask()


def test_a_ball_is_found_on_the_images_own_grid():
    truth, mask = ball_at((14, 40, 36), (6, 22, 15), radius=8)
    assert mask.shape == truth.shape
    assert dsc(truth, mask) > 0.9


@pytest.mark.parametrize("centre", [(0, 0, 0), (13, 39, 35), (0, 20, 35)], ids=str)
def test_a_region_may_overhang_the_volume(centre):
    truth, mask = ball_at((14, 40, 36), centre, radius=9)
    assert dsc(truth, mask) > 0.85


def test_a_target_larger_than_the_region_is_seen_whole_after_zooming_out():
    big = {"shape": (60, 90, 80), "centre": (30, 45, 40), "radius": 30, "spacing": (1.0, 1.0, 1.0)}
    truth, cut_off = ball_at(**big, zoom=without_zoom())
    _, whole = ball_at(**big)
    assert dsc(truth, cut_off) < 0.7
    assert dsc(truth, whole) > 0.9


def test_a_small_target_gets_a_smaller_region():
    small = {"shape": (60, 60, 60), "centre": (31, 22, 40), "radius": 2, "spacing": (0.5, 0.5, 0.5)}
    truth, from_afar = ball_at(**small, zoom=without_zoom())
    _, close = ball_at(**small)
    assert dsc(truth, close) > dsc(truth, from_afar) + 0.05


def without_zoom():
    return ZoomRule(passes=0)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)], ids=str)
def test_a_turned_copy_gives_the_turned_answer(network, axes, flips):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (14, 40, 36)).astype(np.uint8)
    affine = affine_from_spacing(np.array(SPACING))
    click = np.array((5, 20, 30))
    turned = np.flip(np.transpose(image, axes), flips)
    # Voxel i of the turned array is voxel M i of the first one; files list x, y, z.
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    place = click[list(axes)]
    for new, old in enumerate(axes):
        sign = -1 if new in flips else 1
        matrix[2 - old, 2 - new] = sign
        if new in flips:
            matrix[2 - old, 3] = image.shape[old] - 1
            place[new] = image.shape[old] - 1 - place[new]

    def answer(volume, grid, voxel):
        predictor = Predictor(network, RULE)
        predictor.set_image(volume, affine=grid)
        predictor.add_point(voxel)
        found = predictor.logits(1)
        logits = np.full(volume.shape, -99.0, np.float32)
        logits[found.box] = found.values
        return logits

    straight = answer(image, affine, click)
    round_trip = answer(turned, affine @ matrix, place)
    expected = np.flip(np.transpose(straight, axes), flips)
    np.testing.assert_allclose(round_trip, expected, atol=1e-3)
    assert (straight > -99).any()


def test_an_oblique_volume_is_answered_on_its_own_grid():
    image, truth = ball_image((30, 40, 36), (14, 22, 15), 8, (1.0, 1.0, 1.0))
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s, 0, 5], [s, c, 0, -7], [0, 0, 1, 40], [0, 0, 0, 1.0]])
    predictor = bright_predictor()
    predictor.set_image(image, affine=turn @ affine_from_spacing(np.ones(3)))
    predictor.add_point((14, 22, 15))
    assert dsc(truth, predictor.mask()) > 0.9


def test_prompts_one_by_one_or_at_once_give_one_answer(predictor, network):
    prompts = [((5, 20, 18), True), ((9, 8, 30), False), ((2, 30, 4), True)]
    for zyx, positive in prompts:
        predictor.add_point(zyx, positive)
        step_by_step = predictor.mask()
    predictor.reset()
    for zyx, positive in prompts:
        predictor.add_point(zyx, positive)
    np.testing.assert_array_equal(predictor.mask(), step_by_step)


def test_undo_goes_back_to_the_answer_before(predictor):
    predictor.add_box((2, 10, 10), (9, 25, 28))
    before = predictor.mask()
    predictor.add_point((12, 38, 34))
    assert (predictor.mask() != before).any()
    predictor.undo()
    np.testing.assert_array_equal(predictor.mask(), before)


def test_undo_without_a_prompt_says_so(predictor):
    with pytest.raises(PromptError, match="no prompt to undo"):
        predictor.undo()


def test_reset_forgets_one_target_or_all(predictor):
    predictor.add_point((5, 20, 18), target=1)
    predictor.add_point((9, 8, 30), target=4)
    predictor.reset(1)
    assert predictor.targets == [4]
    predictor.reset()
    assert not predictor.segmentation().any()


def test_the_order_in_which_targets_are_named_does_not_matter(predictor):
    places = {1: (5, 20, 18), 2: (9, 8, 30), 300: (2, 30, 4)}
    for target, place in places.items():
        predictor.add_point(place, target=target)
    answer = predictor.segmentation()
    predictor.reset()
    for target, place in reversed(places.items()):
        predictor.add_point(place, target=target)
    np.testing.assert_array_equal(predictor.segmentation(), answer)
    assert answer.dtype == np.uint16
    assert [answer[place] for place in places.values()] == [1, 2, 300]


def test_targets_of_a_small_image_share_one_embedding():
    predictor = bright_predictor()
    predictor.set_image(np.full((20, 20, 20), 90, np.uint8), (1.0, 1.0, 1.0))
    for target in range(1, 6):
        predictor.add_point((target, 10, 12), target=target)
    predictor.segmentation()
    assert predictor.decoder.encoder_runs == 1


def test_clicks_in_the_box_order_and_kind_all_count(predictor):
    """Every prompt after the first changes the logits."""
    predictor.add_box((2, 10, 10), (9, 25, 28), middle_slice=True)
    logits = [predictor.logits(1).values.sum()]
    for zyx, positive in (((4, 14, 12), True), ((6, 18, 20), False), ((5, 20, 24), True)):
        predictor.add_point(zyx, positive)
        logits.append(predictor.logits(1).values.sum())
    assert len(set(logits)) == 4


def test_a_mask_to_start_from_is_kept_where_nothing_else_is_said():
    image, truth = ball_image((30, 40, 36), (14, 22, 15), 8, (1.0, 1.0, 1.0))
    predictor = Predictor(small_sam(), RULE)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    predictor.add_mask(truth)
    assert dsc(truth, predictor.mask()) > 0.9


@pytest.mark.parametrize(
    ("volume", "place"),
    [
        (np.zeros((9, 30, 30), np.uint8), (4, 10, 12)),
        (np.full((9, 30, 30), 77, np.uint8), (0, 0, 0)),
        (np.arange(125, dtype=np.uint8).reshape(5, 5, 5), (4, 4, 4)),
        (np.full((1, 1, 1), 3, np.int16), (0, 0, 0)),
        (np.linspace(-1000, 2000, 9 * 30 * 30).reshape(9, 30, 30), (8, 29, 29)),
    ],
    ids=["zeros", "constant", "tiny", "voxel", "float"],
)
def test_odd_volumes_are_answered(network, volume, place):
    predictor = Predictor(network, RULE)
    predictor.set_image(volume, SPACING)
    predictor.add_point(place)
    assert predictor.mask()[place]


def test_a_target_of_the_whole_volume_and_beyond_the_cube():
    rule = CropRule(size=32, spacing_mm=0.5)
    image = np.zeros((70, 70, 70), np.uint8)
    image[2:68, 2:68, 2:68] = 180
    predictor = bright_predictor(rule)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    predictor.add_point((35, 35, 35))
    predictor.add_point((60, 60, 60))
    assert dsc(image == 180, predictor.mask()) > 0.9


@pytest.mark.parametrize("number", [0, -3, 1.5, 70_000])
def test_an_id_that_no_answer_can_hold_is_refused(predictor, number):
    with pytest.raises(PromptError, match="whole number from 1"):
        predictor.add_point((1, 1, 1), target=number)


def test_what_was_said_before_a_mask_is_gone(predictor):
    mask = np.zeros((14, 40, 36), bool)
    mask[3:9, 10:30, 10:30] = True
    predictor.add_mask(mask)
    alone = predictor.logits(1).values
    predictor.reset()
    predictor.add_point((12, 38, 34))
    predictor.add_point((5, 20, 18), False)
    predictor.add_mask(mask)
    np.testing.assert_array_equal(predictor.logits(1).values, alone)


def test_thin_masks_to_start_from_do_not_vanish(predictor):
    mask = np.zeros((14, 40, 36), bool)
    mask[7, 5:35, 18] = True
    predictor.add_mask(mask)
    assert predictor.mask()[mask].mean() >= 0.5


def test_a_far_click_keeps_what_was_found_before():
    image = np.zeros((30, 30, 500), np.uint8)
    image[8:22, 8:22, 10:60] = image[8:22, 8:22, 440:490] = 200
    predictor = bright_predictor(only_prompted=False)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    predictor.add_point((15, 15, 30))
    predictor.add_point((15, 15, 470))
    assert dsc(image > 0, predictor.mask()) > 0.6
    mask = predictor.mask()
    assert mask[15, 15, 30]
    assert mask[15, 15, 470]
    assert mask[..., :100].sum() == pytest.approx(mask[..., 400:].sum(), rel=0.3)


def test_the_numbers_of_other_targets_do_not_matter(predictor):
    places = [(5, 20, 18), (5, 21, 20), (6, 19, 17)]
    answers = []
    for ids in ((1, 2, 3), (3, 1, 2)):
        predictor.reset()
        for number, place in zip(ids, places, strict=True):
            predictor.add_point(place, target=number)
        answer = predictor.segmentation()
        answers.append([answer == number for number in ids])
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_a_box_with_even_sides_is_turned_with_the_image(network, flip):
    image = np.random.default_rng(3).integers(0, 255, (14, 40, 36)).astype(np.uint8)
    box = np.array([(2, 10, 10), (8, 24, 26)])
    affine = affine_from_spacing(np.array(SPACING))
    matrix = np.eye(4)
    matrix[2 - flip, 2 - flip], matrix[2 - flip, 3] = -1, image.shape[flip] - 1
    turned_box = box.copy()
    turned_box[:, flip] = image.shape[flip] - box[::-1, flip]
    masks = []
    for volume, grid, (start, stop) in (
        (image, affine, box),
        (np.flip(image, flip), affine @ matrix, turned_box),
    ):
        predictor = Predictor(network, RULE)
        predictor.set_image(volume, affine=grid)
        predictor.add_box(start, stop)
        masks.append(predictor.mask())
    assert dsc(masks[0], np.flip(masks[1], flip)) > 0.995


@pytest.mark.parametrize(
    ("volume", "affine", "found"),
    [
        (np.full((4, 4, 4), np.nan), np.eye(4), "the image .*NaN"),
        (np.zeros((4, 4, 4), complex), np.eye(4), "the image .*complex"),
        (np.zeros((4, 4, 4)), np.diag([1.0, 0, 1, 1]), "affine"),
        (np.zeros((4, 4, 4)), np.diag([1.0, np.nan, 1, 1]), "affine"),
    ],
    ids=["nan", "complex", "flat", "nan axis"],
)
def test_an_image_that_is_none_is_refused(predictor, volume, affine, found):
    with pytest.raises(InputError, match=rf"{found}.*Expected"):
        predictor.set_image(volume, affine=affine)


def test_a_target_without_prompts_has_no_logits(predictor):
    with pytest.raises(PromptError, match="has no prompt"):
        predictor.logits(9)
    assert not predictor.mask(target=9).any()


def test_a_second_mask_of_a_large_target_does_not_run_the_network():
    predictor = bright_predictor(CropRule(size=32, spacing_mm=0.5))
    image = np.zeros((60, 60, 60), np.uint8)
    image[5:55, 5:55, 5:55] = 200
    predictor.set_image(image, (1.0, 1.0, 1.0))
    predictor.add_box((5, 5, 5), (55, 55, 55))
    first, runs = predictor.mask(), predictor.decoder.encoder_runs
    predictor.network.encode_all = None  # whoever calls it now fails
    predictor.network.decode_all = None
    np.testing.assert_array_equal(predictor.mask(), first)
    assert runs > 1


@pytest.mark.parametrize(
    "zyx", [(14, 0, 0), (-1, 0, 0), (1.5, 0, 0), (1, 2), (np.nan, 0, 0), (np.inf, 0, 0)], ids=str
)
def test_a_click_beside_the_image_is_refused(predictor, zyx):
    with pytest.raises(PromptError, match="is not a voxel of the image"):
        predictor.add_point(zyx)


def test_a_box_that_holds_nothing_is_refused(predictor):
    with pytest.raises(PromptError, match="holds no voxel"):
        predictor.add_box((5, 5, 5), (5, 9, 9))


def test_without_an_image_nothing_goes():
    predictor = Predictor(small_sam(), RULE)
    with pytest.raises(InputError, match="no image yet"):
        predictor.add_point((1, 1, 1))


def test_an_image_needs_one_of_spacing_and_affine(predictor):
    with pytest.raises(InputError, match="neither spacing_xyz nor affine"):
        predictor.set_image(np.zeros((3, 3, 3)))


def test_half_precision_gives_about_the_same_logits(network):
    image = np.random.default_rng(2).integers(0, 255, (20, 30, 30)).astype(np.uint8)
    logits = []
    for precision in (torch.float32, torch.bfloat16):
        predictor = Predictor(network, RULE, precision=precision)
        predictor.set_image(image, (1.0, 1.0, 1.0))
        predictor.add_point((10, 12, 15))
        logits.append(predictor.logits(1).values)
    assert np.abs(logits[0] - logits[1]).mean() < 0.1 * np.abs(logits[0]).mean()
