"""What each call of the predictor does to its targets, and what a second call costs."""

import numpy as np
import pytest
import torch
from bright_network import bright_predictor
from small_networks import RULE, small_sam

from utils.errors import InputError
from utils.prediction import logit_cache
from utils.prediction.predictor import CPU_BATCH, Predictor, ready_predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt, PromptError
from utils.volumes.geometry import affine_from_spacing

SHAPE = (20, 24, 28)
STILL = ZoomRule(passes=0)


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


@pytest.fixture
def predictor():
    predictor = Predictor(small_sam(), RULE, options=PredictorOptions(zoom=STILL))
    predictor.set_image(noise(), (1.0, 1.1, 1.2))
    return predictor


def block(start=(4, 5, 6), stop=(12, 15, 18)):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(map(slice, start, stop))] = True
    return mask


def same(predictor, other, target=1):
    """Tell whether two predictors have the same logits of a target."""
    ours, theirs = predictor.logits(target), other.logits(target)
    return ours.box == theirs.box and np.array_equal(ours.values, theirs.values)


def fresh(*prompts, target=1, **image):
    predictor = Predictor(small_sam(), RULE, options=PredictorOptions(zoom=STILL))
    image = {"volume": noise(), "spacing_xyz": (1.0, 1.1, 1.2)} | image
    predictor.set_image(image.pop("volume"), image.pop("spacing_xyz"), **image)
    for prompt in prompts:
        predictor.add(prompt, target=target)
    return predictor


def test_a_new_image_forgets_the_prompts_on_the_old_one(predictor):
    predictor.add_point((10, 12, 14))
    predictor.mask()
    predictor.set_image(noise(seed=1), (1.0, 1.1, 1.2))
    assert predictor.targets == []
    assert not predictor.mask().any()
    predictor.add_point((10, 12, 14))
    assert same(predictor, fresh(Click((10, 12, 14), True), volume=noise(seed=1)))


def test_a_spacing_is_the_affine_of_a_challenge_case():
    click = Click((10, 12, 14), True)
    affine = affine_from_spacing(np.array((1.0, 1.1, 2.5)))
    given = fresh(click, spacing_xyz=(1.0, 1.1, 2.5))
    assert same(given, fresh(click, spacing_xyz=None, affine=affine))
    assert not same(given, fresh(click))


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 28, 1), (0, 24, 28), (20, 24, 0)], ids=str)
def test_an_image_of_another_shape_is_refused(predictor, shape):
    with pytest.raises(InputError, match=r"the image has shape .*Expected"):
        predictor.set_image(np.zeros(shape), (1.0, 1.0, 1.0))


def test_an_image_with_both_spacing_and_affine_is_refused(predictor):
    with pytest.raises(InputError, match="both spacing_xyz and affine"):
        predictor.set_image(noise(), (1.0, 1.0, 1.0), affine=np.eye(4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite_is_enough_to_refuse_an_image(predictor, value):
    image = noise().astype(np.float32)
    image[3, 4, 5] = value
    with pytest.raises(InputError, match="NaN"):
        predictor.set_image(image, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("dtype", [bool, np.uint16, np.int8, np.int64, np.float16, np.float64])
def test_images_of_any_real_dtype_are_taken(predictor, dtype):
    predictor.set_image((noise() % 2).astype(dtype), (1.0, 1.0, 1.0))
    predictor.add_point((10, 12, 14))
    assert predictor.mask()[10, 12, 14]


@pytest.mark.parametrize("affine", [np.eye(3), np.diag([0, 1, 1, 1.0]), np.full((4, 4), np.inf)])
def test_an_affine_without_three_axes_is_refused(predictor, affine):
    with pytest.raises(InputError, match="affine"):
        predictor.set_image(noise(), affine=affine)


def test_hounsfield_units_are_clamped_where_said():
    wide = noise().astype(np.int16) * 20 - 1500
    click = Click((10, 12, 14), True)
    even = {"spacing_xyz": (1.0, 1.0, 1.0)}  # crop voxels lie on voxels: nothing is interpolated
    clamped = fresh(click, volume=wide, hounsfield=True, **even)
    assert same(clamped, fresh(click, volume=wide.clip(-1000, 1000), **even))
    assert not same(clamped, fresh(click, volume=wide, **even))


def test_every_kind_of_prompt_may_be_added_by_one_call():
    by_kind = fresh()
    by_kind.add_box((4, 5, 6), (12, 15, 18), middle_slice=True, target=3)
    by_kind.add_point((10, 12, 14), target=3)
    by_kind.add_point((1, 2, 3), False, target=3)
    by_kind.add_mask(block(), target=4)
    by_kind.add_point((2, 2, 2), False, target=4)
    prompts = BoxPrompt((4, 5, 6), (12, 15, 18), True), Click((10, 12, 14), True)
    by_one = fresh(*prompts, Click((1, 2, 3), False), target=3)
    for prompt in (MaskPrompt(block()), Click((2, 2, 2), False)):
        by_one.add(prompt, target=4)
    assert by_one.targets == by_kind.targets == [3, 4]
    assert same(by_one, by_kind, 3)
    assert same(by_one, by_kind, 4)


def test_a_box_of_a_middle_slice_is_another_prompt_than_a_whole_box(predictor):
    predictor.add_box((4, 5, 6), (12, 15, 18), middle_slice=True)
    assert same(predictor, fresh(BoxPrompt((4, 5, 6), (12, 15, 18), True)))
    assert not same(predictor, fresh(BoxPrompt((4, 5, 6), (12, 15, 18))))


@pytest.mark.parametrize(
    "mask", [np.zeros(SHAPE, bool), np.ones((20, 24, 27), bool)], ids=["empty", "another shape"]
)
def test_a_mask_that_cannot_be_a_start_is_refused(predictor, mask):
    with pytest.raises(PromptError, match=r"the mask has shape .*voxels.*\(20, 24, 28\)"):
        predictor.add_mask(mask)
    assert predictor.targets == []


def test_a_given_mask_is_copied_and_may_hold_numbers(predictor):
    mask = block().astype(np.int16) * 7
    predictor.add_mask(mask)
    mask[:] = 0
    other = fresh(MaskPrompt(block()))
    assert same(predictor, other)


def test_undo_takes_back_one_prompt_of_one_target(predictor):
    predictor.add_point((10, 12, 14), target=1)
    predictor.add_point((4, 5, 6), target=2)
    predictor.add_point((5, 6, 7), target=2)
    predictor.segmentation()
    predictor.undo(target=2)
    expected = fresh(Click((10, 12, 14), True))
    expected.add_point((4, 5, 6), target=2)
    np.testing.assert_array_equal(predictor.segmentation(), expected.segmentation())
    predictor.undo(target=2)
    assert predictor.targets == [1]
    with pytest.raises(PromptError, match="target 2 has no prompt to undo"):
        predictor.undo(target=2)


def test_undo_before_the_network_ran_is_as_if_nothing_was_said(predictor):
    predictor.add_point((10, 12, 14))
    predictor.add_point((4, 5, 6), False)
    predictor.undo()
    assert same(predictor, fresh(Click((10, 12, 14), True)))


def test_undo_of_a_mask_brings_the_prompts_before_it_back(predictor):
    predictor.add_point((10, 12, 14))
    predictor.add_mask(block())
    predictor.mask()
    predictor.undo()
    assert same(predictor, fresh(Click((10, 12, 14), True)))


def test_another_prompt_after_an_undo_counts(predictor):
    predictor.add_point((10, 12, 14))
    predictor.add_point((4, 5, 6), False)
    predictor.mask()
    predictor.undo()
    predictor.add_point((15, 16, 17), False)
    assert same(predictor, fresh(Click((10, 12, 14), True), Click((15, 16, 17), False)))


def test_reset_of_one_target_leaves_the_others_as_they_were(predictor):
    for target, zyx in ((1, (10, 12, 14)), (2, (4, 5, 6))):
        predictor.add_point(zyx, target=target)
    predictor.segmentation()
    predictor.reset(1)
    predictor.reset(7)  # of a target that never was: nothing
    assert predictor.targets == [2]
    assert same(predictor, fresh(Click((4, 5, 6), True), target=2), 2)
    predictor.add_point((15, 16, 17), target=1)
    assert predictor.targets == [1, 2]
    predictor.reset(2)
    assert same(predictor, fresh(Click((15, 16, 17), True)))


def test_targets_are_listed_in_rising_order(predictor):
    for target in (300, 2, 65535, 1):
        predictor.add_point((target % 20, 12, 14), target=target)
    assert predictor.targets == [1, 2, 300, 65535]


def test_a_positive_click_is_background_of_the_other_targets(predictor):
    predictor.add_box((0, 0, 0), SHAPE, target=1)
    predictor.add_point((10, 12, 14), target=2)
    assert predictor.segmentation()[10, 12, 14] == 2
    logits = predictor.logits(1)
    assert not logits.holds((10, 12, 14)) or logits.values[tuple((10, 12, 14) - logits.start)] <= 0


def test_a_negative_click_says_nothing_to_other_targets(predictor):
    predictor.add_point((10, 12, 14), target=1)
    predictor.add_point((10, 12, 14), False, target=2)
    assert predictor.segmentation()[10, 12, 14] == 1


def test_clicks_before_a_given_mask_are_not_honoured_any_more(predictor):
    predictor.add_point((19, 23, 27))
    predictor.add_mask(block())
    assert not predictor.mask()[19, 23, 27]


def test_a_mask_asked_for_again_costs_nothing_until_a_prompt_is_new(predictor):
    calls, decode_all = [], predictor.network.decode_all
    predictor.network.decode_all = lambda given: calls.append(len(given)) or decode_all(given)
    predictor.add_point((10, 12, 14), target=1)
    predictor.add_point((4, 5, 6), target=2)
    for _ in range(3):
        predictor.segmentation()
        predictor.logits(1)
    assert sum(calls) == 2
    predictor.add_point((5, 6, 7), target=2)
    predictor.segmentation()
    assert sum(calls) == 3


def test_logits_of_one_target_do_not_decode_the_others(predictor):
    calls, decode_all = [], predictor.network.decode_all
    predictor.network.decode_all = lambda given: calls.append(len(given)) or decode_all(given)
    for target in (1, 2, 3):
        predictor.add_point((4 * target, 12, 14), target=target)
    predictor.logits(2)
    assert sum(calls) == 1


@pytest.mark.parametrize(("room", "pasted"), [(0, 6), (2**29, 3)])
def test_logits_are_kept_as_long_as_there_is_room(monkeypatch, predictor, room, pasted):
    monkeypatch.setattr(logit_cache, "LOGIT_BYTES", room)
    calls, logits = [], predictor.session.logits
    predictor.session.logits = lambda state: calls.append(state) or logits(state)
    for target in (1, 2, 3):
        predictor.add_point((4 * target, 12, 14), target=target)
    predictor.segmentation()
    predictor.segmentation()
    assert len(calls) == pasted


def test_kept_logits_never_exceed_their_room(monkeypatch, predictor):
    for target in (1, 2, 3, 4):
        predictor.add_point((4 * target, 12, 14), target=target)
    predictor.segmentation()
    sizes = [kept.nbytes for kept in predictor.cache._kept.values()]
    assert len(sizes) == 4
    room = max(sizes) + min(sizes)
    monkeypatch.setattr(logit_cache, "LOGIT_BYTES", room)
    predictor.reset()
    for target in (1, 2, 3, 4):
        predictor.add_point((4 * target, 12, 14), target=target)
    predictor.segmentation()
    held = predictor.cache.nbytes
    assert 0 < held <= room


def test_without_an_image_every_question_is_refused():
    predictor = Predictor(small_sam(), RULE)
    for call in (
        predictor.segmentation,
        predictor.mask,
        lambda: predictor.add_box((0, 0, 0), (1, 1, 1)),
        lambda: predictor.add_mask(block()),
        lambda: predictor.add(Click((0, 0, 0), True)),
    ):
        with pytest.raises(InputError, match="no image yet"):
            call()


def test_on_a_cpu_one_request_goes_through_the_network_at_a_time():
    predictor = Predictor(small_sam(), RULE)
    assert predictor.network.batch_size == CPU_BATCH == 1
    assert predictor.network.device == torch.device("cpu")
    assert predictor.network.engine.name == "eager"


def test_flags_make_a_predictor():
    predictor = ready_predictor(
        small_sam(), RULE, device="cpu", precision="bfloat16", engine="eager"
    )
    assert predictor.rule is RULE
    assert predictor.network.device == torch.device("cpu")
    assert predictor.network.engine.precision == torch.bfloat16
    with pytest.raises(InputError, match="--device gpu"):
        ready_predictor(small_sam(), RULE, device="gpu", precision="auto", engine="eager")
    with pytest.raises(InputError, match="--engine graph"):
        ready_predictor(small_sam(), RULE, device="cpu", precision="auto", engine="graph")


def test_the_options_are_the_predictors():
    options = PredictorOptions(tiles=3)
    predictor = bright_predictor(tiles=3)
    assert predictor.options == options
    predictor.set_image(noise(), (1.0, 1.0, 1.0))
    assert predictor.session.options == options
    assert predictor.session.scene.zoom == options.zoom


def test_a_box_is_of_the_whole_target_unless_said_otherwise(predictor):
    predictor.add_box((4, 5, 6), (12, 15, 18))
    assert same(predictor, fresh(BoxPrompt((4, 5, 6), (12, 15, 18), False)))


def test_a_sibling_shares_the_network_and_nothing_else(predictor):
    predictor.add_point((10, 12, 14))
    expected = predictor.mask()
    sibling = predictor.sibling()
    assert sibling.network is predictor.network
    assert (sibling.session, sibling.targets) == (None, [])
    sibling.set_image(np.zeros((4, 5, 6), np.uint8), (1.0, 1.0, 1.0))
    sibling.add_point((1, 1, 1), target=3)
    assert sibling.mask(target=3).shape == (4, 5, 6)
    assert predictor.targets == [1]
    np.testing.assert_array_equal(predictor.mask(), expected)
