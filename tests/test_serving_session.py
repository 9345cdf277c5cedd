"""A session gives the masks of `Predictor`, whatever was undone, done again or refused before."""

import numpy as np
import pytest
from serving_helpers import CENTRES, SHAPE, open_session, plain_masks, small_scan
from small_cases import ball

from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt, PromptError
from utils.serving import session as session_module
from utils.serving.refusals import Refusal
from utils.serving.session import Session, Target

INSIDE = [Click(centre, True) for centre in CENTRES]
OUTSIDE = Click((6, 7, 20), False)
BOX = BoxPrompt((9.0, 12.0, 16.0), (18.0, 21.0, 25.0))


def pasted(before, change):
    """Paste a change over a copy of a label map, as a client does."""
    after = before.copy()
    if change.box is not None:
        after[change.box] = change.labels
    return after


def check(session, shown):
    """The session's labels are a fresh predictor's, and what the changes led a client to."""
    expected = plain_masks(session.prompts)
    np.testing.assert_array_equal(session.labels, expected)
    np.testing.assert_array_equal(shown, expected)
    for target in session.prompts:
        assert session.voxels(target) == np.count_nonzero(expected == target)


def test_masks_are_a_fresh_predictors_after_every_step_of_a_long_walk():
    rng = np.random.default_rng(3)
    session = open_session()
    session.add_target("second")
    session.add_target("third")
    shown = np.zeros(SHAPE, np.uint8)
    for step in range(15):
        kind = rng.choice(["click", "click", "box", "undo", "undo", "redo", "clear", "mask"])
        target = int(rng.integers(1, 4))
        if kind == "click":
            place = tuple(int(rng.integers(n)) for n in SHAPE)
            change = session.add(target, Click(place, bool(rng.integers(3))))
        elif kind == "box":
            start = rng.integers(0, 10, 3)
            change = session.add(
                target, BoxPrompt(tuple(start.astype(float)), tuple((start + 8).astype(float)))
            )
        elif kind == "mask":
            change = session.add(target, MaskPrompt(ball(SHAPE, CENTRES[0], 3 + step / 20)))
        elif kind == "clear":
            change = session.clear(target)
        else:
            change = getattr(session, kind)()
        shown = shown if change is None else pasted(shown, change)
        np.testing.assert_array_equal(session.labels, shown)
        if step % 5 == 4:
            check(session, shown)
    assert shown.any()


def test_undo_goes_back_to_the_start_and_redo_to_the_end():
    session = open_session()
    session.add_target("second")
    masks = [session.labels.copy()]
    for target, prompt in ((1, INSIDE[0]), (2, BOX), (1, OUTSIDE), (2, INSIDE[1])):
        session.add(target, prompt)
        masks.append(session.labels.copy())
    for mask in masks[-2::-1]:
        session.undo()
        np.testing.assert_array_equal(session.labels, mask)
    assert session.undo() is not None  # the second target goes
    assert session.undo() is None
    assert list(session.prompts) == [1]
    session.redo()
    for mask in masks[1:]:
        session.redo()
        np.testing.assert_array_equal(session.labels, mask)
    assert session.redo() is None


def test_a_new_step_drops_what_was_undone():
    session = open_session()
    session.add(1, INSIDE[0])
    session.add(1, OUTSIDE)
    session.undo()
    session.add(1, INSIDE[1])
    assert session.redo() is None
    check(session, session.labels)


def test_a_change_is_no_larger_than_what_changed():
    session = open_session()
    before = session.labels.copy()
    change = session.add(1, INSIDE[0])
    differs = np.argwhere(session.labels != before)
    assert [side.start for side in change.box] == differs.min(axis=0).tolist()
    assert [side.stop for side in change.box] == (differs.max(axis=0) + 1).tolist()


def test_targets_compete_and_no_mask_eats_another_targets_click():
    session = open_session()
    session.add_target("second")
    session.add(1, INSIDE[0])
    session.add(2, INSIDE[1])
    assert session.labels[CENTRES[0]] == 1
    assert session.labels[CENTRES[1]] == 2


@pytest.mark.parametrize(
    ("target", "prompt"),
    [
        (1, Click((20, 0, 0), True)),
        (1, Click((0, 0, -1), True)),
        (1, BoxPrompt((30.0, 0.0, 0.0), (40.0, 2.0, 2.0))),
        (1, MaskPrompt(ball((4, 5, 6), (2, 2, 2), 2))),
    ],
    ids=["beyond", "before", "box-outside", "mask-of-another-shape"],
)
def test_a_refused_prompt_changes_nothing(target, prompt):
    session = open_session()
    session.add(1, INSIDE[0])
    before, revision, steps = session.labels.copy(), session.revision, session.history.undo_steps
    with pytest.raises(PromptError):
        session.add(target, prompt)
    assert (session.revision, session.history.undo_steps) == (revision, steps)
    np.testing.assert_array_equal(session.labels, before)
    session.add(1, OUTSIDE)
    check(session, session.labels)


def test_a_network_that_fails_changes_nothing(monkeypatch):
    session = open_session()
    session.add(1, INSIDE[0])
    before, prompts = session.labels.copy(), session.prompts
    decode = session.predictor.decoder.decode
    monkeypatch.setattr(session.predictor.decoder, "decode", broken)
    with pytest.raises(MemoryError):
        session.add(1, OUTSIDE)
    monkeypatch.setattr(session.predictor.decoder, "decode", decode)
    assert session.prompts is prompts
    np.testing.assert_array_equal(session.labels, before)
    session.add(1, INSIDE[1])
    check(session, session.labels)


def broken(requests):
    raise MemoryError


def test_a_prompt_for_no_target_is_refused():
    session = open_session()
    with pytest.raises(Refusal, match="there is no target 2"):
        session.add(2, INSIDE[0])


def test_without_an_image_nothing_can_be_done():
    session = Session(open_session().predictor)
    for call in (
        lambda: session.add(1, INSIDE[0]), session.clear, session.add_target, session.whole_mask,
    ):  # fmt: skip
        with pytest.raises(Refusal, match="there is no image yet"):
            call()


def test_a_removed_target_comes_back_with_its_prompts():
    session = open_session()
    number = session.add_target("kidney", "#123456")
    session.add(number, INSIDE[1])
    mask = session.labels.copy()
    session.remove_target(number)
    assert not (session.labels == number).any()
    session.undo()
    np.testing.assert_array_equal(session.labels, mask)
    assert session.targets[number] == Target("kidney", "#123456")


def test_the_last_target_stays_without_its_prompts():
    session = open_session()
    session.add(1, INSIDE[0])
    session.remove_target(1)
    assert dict(session.prompts) == {1: ()}
    assert not session.labels.any()


def test_prompts_that_wait_are_computed_at_once_later():
    session = open_session()
    assert session.add(1, INSIDE[0], run=False).box is None
    assert not session.labels.any()
    session.add(1, OUTSIDE, run=False)
    change = session.refresh()
    check(session, pasted(np.zeros(SHAPE, np.uint8), change))


def test_a_mask_shown_as_it_is_gives_way_to_the_next_computed_one():
    session = open_session()
    session.add(1, INSIDE[0])
    given = np.zeros(SHAPE, np.uint8)
    given[0, :, :] = 1
    before = session.labels.copy()
    shown = pasted(before, session.show(given))
    np.testing.assert_array_equal(session.labels, given)
    shown = pasted(shown, session.add(1, OUTSIDE))
    check(session, shown)


def test_another_image_starts_anew():
    session = open_session()
    session.add(1, INSIDE[0])
    session.set_scan(small_scan(seed=5))
    assert (session.history.undo_steps, dict(session.prompts)) == (0, {1: ()})
    assert not session.labels.any()
    session.add(1, INSIDE[0])
    np.testing.assert_array_equal(session.labels, plain_masks({1: [INSIDE[0]]}, small_scan(seed=5)))


def test_a_session_holds_a_bounded_number_of_prompts(monkeypatch):
    monkeypatch.setattr(session_module, "MOST_PROMPTS", 2)
    session = open_session()
    session.add(1, INSIDE[0])
    session.add(1, OUTSIDE)
    with pytest.raises(PromptError, match="the session holds 2 prompts"):
        session.add(1, INSIDE[1])
    session.undo()
    session.add(1, INSIDE[1])


def test_there_are_as_many_targets_as_a_label_map_holds():
    session = open_session()
    for _ in range(254):
        session.add_target()
    with pytest.raises(Refusal, match="there are 255 targets"):
        session.add_target()
    assert session.targets[255].name == "target 255"


def test_an_id_is_used_again_where_all_were_used_and_targets_were_removed():
    session = open_session()
    for _ in range(254):
        session.add_target()
    session.remove_target(7)
    assert session.add_target("again") == 7
    assert session.targets[7].name == "again"


def test_undo_and_redo_still_work_where_no_further_step_is_taken(monkeypatch):
    session, click = open_session(), Click(CENTRES[0], True)
    session.add(1, click)
    monkeypatch.setattr(session_module, "MOST_STEPS", 1)
    with pytest.raises(PromptError):
        session.add(1, OUTSIDE)
    session.undo()
    assert not session.labels.any()
    session.redo()
    assert session.prompts[1] == (click,)


def test_a_target_that_cannot_be_added_leaves_no_name(monkeypatch):
    session = open_session()
    monkeypatch.setattr(session_module, "MOST_STEPS", 0)
    with pytest.raises(PromptError):
        session.add_target("second")
    assert session.targets.keys() == session.prompts.keys() == {1}


def test_masks_in_the_history_take_bounded_memory_and_the_newest_steps_stay(monkeypatch):
    monkeypatch.setattr(session_module, "MASK_BYTES", 300)
    session = open_session()
    for shift in range(20):
        session.add(1, MaskPrompt(ball(SHAPE, (6 + shift % 3, 8, 8), 4)), run=False)
        session.add(1, OUTSIDE, run=False)
    steps = 0
    while session.undo() is not None:
        steps += 1
    assert 2 <= steps < 20
    assert session.prompts[1]  # the oldest steps are gone, and with them the empty start


def test_an_image_that_finds_no_memory_changes_nothing(monkeypatch):
    session = open_session()
    session.add(1, INSIDE[0])
    before = session.labels.copy()

    def no_room(shape):
        raise MemoryError

    monkeypatch.setattr(session_module, "LabelMap", no_room)
    with pytest.raises(MemoryError):
        session.set_scan(small_scan(seed=5))
    np.testing.assert_array_equal(session.labels, before)
    session.add(1, OUTSIDE)
    check(session, session.labels)
