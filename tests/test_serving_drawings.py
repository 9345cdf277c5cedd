"""Scribbles and lassos as prompts: a click in the middle, then where the mask is wrong on them."""

import numpy as np
import pytest
from serving_helpers import CENTRES, SHAPE, open_session, small_scan

from utils.prompts.kinds import BoxPrompt, Click, PromptError
from utils.serving.drawings import (
    Drawing,
    checked_drawing,
    deepest_of,
    drawing_prompts,
    middle_of,
)

BAR = np.ones((1, 3, 21), bool)  # its middle is (0, 1, 10)
VOLUME = small_scan().volume


def drawing(drawn=BAR, start=(0, 0, 0), is_foreground=True, is_lasso=False):
    return Drawing(drawn, start, is_foreground, is_lasso)


def checked(drawn, sides=None, shape=None, is_foreground=True, is_lasso=False):
    kind = {"is_foreground": is_foreground, "is_lasso": is_lasso}
    return checked_drawing(drawn, sides, shape or drawn.shape, **kind)


def bent():
    """A curve like a horseshoe; its middle is not near its centre of mass."""
    drawn = np.zeros((1, 21, 11), bool)
    drawn[0, 0, :], drawn[0, -1, :], drawn[0, :, 0] = True, True, True
    return drawn


def test_the_middle_is_half_way_along_the_curve():
    assert middle_of(BAR) == (0, 1, 10)
    assert middle_of(bent()) == (0, 10, 0)
    assert middle_of(np.ones((1, 1, 1), bool)) == (0, 0, 0)


def test_of_several_curves_the_largest_counts():
    drawn = np.zeros((1, 9, 40), bool)
    drawn[0, 1, :30], drawn[0, 7, 20:] = True, True
    assert middle_of(drawn)[1] == 1


@pytest.mark.parametrize("is_foreground", [True, False])
def test_clicks_are_added_where_the_mask_is_wrong_on_the_curve(is_foreground):
    right = np.zeros(BAR.shape, bool)
    right[..., :14] = True
    asked = []

    def mask_after(clicks):
        asked.append(list(clicks))
        mended = right if len(clicks) == 1 else np.ones_like(right)
        return mended == is_foreground

    bar = drawing(start=(5, 6, 7), is_foreground=is_foreground)
    clicks = drawing_prompts(bar, VOLUME, True, mask_after)
    middle = Click((5, 7, 17), is_foreground)
    assert clicks == [middle, Click((5, 7, 24), is_foreground)]  # of columns 14 to 20
    assert asked == [[middle], clicks]


def test_clicks_end_although_the_mask_stays_wrong():
    clicks = drawing_prompts(drawing(), VOLUME, True, lambda _: np.zeros(BAR.shape, bool))
    assert len(clicks) == 3


def test_the_deepest_voxel_of_an_outline_is_far_from_its_border_on_the_slice():
    region = np.zeros((1, 30, 30), bool)
    region[0, 2:27, 4:29], region[0, 10, :4] = True, True
    assert deepest_of(region) == (0, 14, 16)
    assert deepest_of(np.ones((1, 1, 1), bool)) == (0, 0, 0)
    assert deepest_of(np.ones((5, 5, 5), bool)) == (2, 2, 2)


DISC = np.ones((1, 9, 9), bool)
WITH_BOX = [BoxPrompt((3, 3, 4), (10, 12, 13), middle_slice=True), Click((6, 7, 8), True)]


@pytest.mark.parametrize(
    ("click_rows", "box_rows", "is_boxed"),
    [(9, 9, False), (2, 9, True), (2, 1, False), (5, 9, False)],
)
def test_a_lasso_around_a_new_target_gets_a_box_if_the_clicks_mask_is_unlike_it(
    click_rows, box_rows, is_boxed
):
    lasso = checked(DISC, [[6, 7], [3, 12], [4, 13]], SHAPE, is_lasso=True)
    assert lasso.box == (slice(6, 7), slice(0, 16), slice(0, 17))  # with room to see leaks

    def mask_after(prompts):
        mask = lasso.drawn.copy()
        mask[:, 3 + (box_rows if prompts == WITH_BOX else click_rows) :] = False
        return mask

    expected = WITH_BOX if is_boxed else WITH_BOX[1:]
    assert drawing_prompts(lasso, VOLUME, True, mask_after) == expected


def test_other_lassos_are_clicks():
    lasso = checked(DISC, [[6, 7], [3, 12], [4, 13]], SHAPE, is_lasso=True)
    assert drawing_prompts(lasso, VOLUME, False, lambda _: lasso.drawn) == WITH_BOX[1:]
    outside = checked(DISC, [[6, 7], [3, 12], [4, 13]], SHAPE, False, is_lasso=True)
    nothing = np.zeros_like(outside.drawn)
    assert drawing_prompts(outside, VOLUME, True, lambda _: nothing) == [Click((6, 7, 8), False)]


def test_a_drawing_is_cut_to_its_box():
    drawn = np.zeros((5, 6, 7))
    drawn[1, 2, 3:6] = 0.5
    scribble = checked(drawn, [[10, 15], [0, 6], [1, 8]], (20, 6, 8), is_foreground=False)
    assert scribble.start_zyx == (11, 2, 4)
    assert scribble.drawn.shape == (1, 1, 3)
    assert scribble.drawn.all()
    assert not scribble.is_foreground


WRONG = {
    "nothing is drawn": (np.zeros((2, 2, 2)), [[0, 2]] * 3),
    "too much is drawn": (np.ones((50, 50, 50)), [[0, 50]] * 3),
    "another shape than the box": (np.ones((2, 2, 3)), [[0, 2]] * 3),
    "two axes": (np.ones((2, 2)), [[0, 2]] * 3),
    "beyond the image": (np.ones((2, 2, 2)), [[0, 2], [0, 2], [59, 61]]),
    "before the image": (np.ones((2, 2, 2)), [[0, 2], [0, 2], [-1, 1]]),
    "between voxels": (np.ones((2, 2, 2)), [[0, 2], [0, 2], [0.5, 2.5]]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_drawing_that_cannot_be_used_is_refused(name):
    with pytest.raises(PromptError, match="the drawing"):
        checked(*WRONG[name], (60, 60, 60))


def test_a_drawing_over_a_huge_box_is_refused():
    drawn = np.zeros((300, 300, 300), bool)
    drawn[0, 0, 0] = drawn[-1, -1, -1] = True
    with pytest.raises(PromptError, match="on one slice"):
        checked(drawn)


def test_a_failing_drawing_leaves_the_session_as_it_was(monkeypatch):
    session = open_session(small_scan())
    session.add(1, Click(CENTRES[0], True))
    labels, prompts = session.labels.copy(), session.prompts
    scribble = checked(np.indices(SHAPE)[0] == 4)
    update = type(session._masks).update

    def broken(*_):
        raise MemoryError

    monkeypatch.setattr(type(session._masks), "update", broken)
    with pytest.raises(MemoryError):
        session.draw(1, scribble)
    monkeypatch.setattr(type(session._masks), "update", update)
    assert session.prompts == prompts
    np.testing.assert_array_equal(session.labels, labels)
    session.refresh()
    np.testing.assert_array_equal(session.labels, labels)
