"""Prompts that count: boxes that later clicks contradict are dropped."""

import numpy as np
import pytest
from small_networks import RULE, small_sam
from test_box_sessions import boxes_asked, predictor_on
from test_session_steps import labels_asked

from utils.prediction.predictor import Predictor
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt
from utils.prompts.standing import drops_box, standing

BOX = BoxPrompt((10.0, 20.0, 30.0), (30.0, 40.0, 50.0))  # its middle is (19.5, 29.5, 39.5)
LATER = BoxPrompt((0.0, 20.0, 30.0), (20.0, 40.0, 50.0))
MIDDLE, BESIDE = (20, 30, 40), (20, 30, 47)  # BESIDE: in the box, not in its middle
NEAR, FAR = (20, 30, 55), (20, 30, 70)  # outside of the box


def fg(zyx):
    return Click(zyx, True)


def bg(zyx):
    return Click(zyx, False)


@pytest.mark.parametrize(
    "prompts",
    [
        [fg(MIDDLE), bg(NEAR)],
        [BOX, fg(MIDDLE), bg(BESIDE)],
        [BOX, bg(BESIDE), bg(NEAR)],
        [BOX, fg(BESIDE), bg(MIDDLE)],
        [BOX, fg(NEAR)],
        [BOX, bg(FAR)],
        [bg(MIDDLE), BOX],
        [BOX, LATER, bg((25, 30, 40))],
    ],
)
def test_prompts_that_agree_all_count(prompts):
    assert standing(prompts) == prompts


@pytest.mark.parametrize(
    "clicks",
    [
        [bg(MIDDLE)],
        [bg(BESIDE), bg(MIDDLE)],
        [fg(NEAR), bg(MIDDLE)],
        [fg(FAR)],
        [fg(MIDDLE), fg(FAR)],
    ],
)
def test_a_contradicted_box_is_dropped(clicks):
    assert standing([BOX, *clicks]) == clicks


def test_with_a_box_go_the_boxes_before_it():
    assert standing([BOX, LATER, bg((10, 30, 40))]) == [bg((10, 30, 40))]


def test_a_box_after_a_dropped_one_counts():
    assert standing([BOX, bg(MIDDLE), LATER]) == [bg(MIDDLE), LATER]


def test_without_the_box_the_first_foreground_click_comes_first():
    given = [BOX, bg(MIDDLE), bg(BESIDE), fg(NEAR), bg(FAR)]
    assert standing(given) == [fg(NEAR), bg(MIDDLE), bg(BESIDE), bg(FAR)]


def test_a_mask_to_start_from_stays_first():
    mask = MaskPrompt(np.ones((40, 60, 90), bool))
    assert standing([mask, BOX, bg(MIDDLE), fg(NEAR)]) == [mask, bg(MIDDLE), fg(NEAR)]


def test_a_target_without_its_box_is_empty_until_a_foreground_click():
    predictor = predictor_on((60, 60, 60))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    assert predictor.mask().any()
    predictor.add_point((18, 18, 18), False)
    assert not predictor.mask().any()
    predictor.add_point((20, 18, 18), False)
    assert not predictor.mask().any()
    predictor.add_point((18, 10, 18))
    assert predictor.mask()[18, 10, 18]
    assert labels_asked(predictor) == [[], [True], [True, False], [True, False, False]]
    assert boxes_asked(predictor)[1:] == [None, None, None]


def test_undo_brings_a_dropped_box_back():
    predictor = predictor_on((60, 60, 60))
    predictor.add_box((10, 12, 14), (26, 24, 22))
    before = predictor.mask()
    predictor.add_point((18, 18, 18), False)
    predictor.mask()
    predictor.undo()
    assert (predictor.mask() == before).all()


def test_drop_boxes_off_keeps_the_box():
    predictor = predictor_on((60, 60, 60), drop_boxes=False)
    predictor.add_box((10, 12, 14), (26, 24, 22))
    predictor.add_point((18, 18, 18), False)
    predictor.mask()
    assert None not in boxes_asked(predictor)


def masks_after(prompts) -> list[np.ndarray]:
    """Return the mask after each prompt from a small network with random weights alone."""
    predictor = Predictor(small_sam(), RULE, options=PredictorOptions(honour_clicks=False))
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 40)).astype(np.uint8)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    masks = []
    for prompt in prompts:
        predictor.add(prompt)
        masks.append(predictor.mask())
    return masks


def test_a_dropped_box_leaves_no_trace():
    box = BoxPrompt((8.0, 8.0, 8.0), (24.0, 24.0, 24.0))
    clicks = [fg((28, 14, 15)), bg((30, 30, 12)), fg((12, 28, 20))]
    with_box = masks_after([box, bg((15, 15, 15)), *clicks])
    without = masks_after([clicks[0], bg((15, 15, 15)), *clicks[1:]])
    assert (with_box[2] == without[1]).all()
    assert (with_box[4] == without[3]).all()
    assert without[3].any()


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([], False),
        ([BOX], False),
        ([BOX, bg(BESIDE)], False),
        ([BOX, bg(MIDDLE)], True),
        ([BOX, bg(MIDDLE), fg(NEAR)], False),
        ([BOX, fg(FAR)], True),
        ([BOX, LATER], False),
    ],
)
def test_the_click_that_drops_a_box_is_told_from_others(prompts, expected):
    assert drops_box(prompts) is expected
