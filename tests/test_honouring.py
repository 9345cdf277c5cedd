"""Clicks honoured in logits: what is changed can be taken back, and is all that differs."""

import numpy as np
import pytest
from serving_helpers import CENTRES, SHAPE, small_predictor, voxels

from utils.prediction import predictor as predictor_module
from utils.prediction.honouring import honour_clicks
from utils.prediction.masks import LogitBox
from utils.prompts.kinds import Click
from utils.serving.label_map import LabelMap

VOXEL_MM = (1.2, 1.1, 1.0)
WHOLE = (slice(4, 16), slice(5, 20), slice(3, 25))


def some_logits(seed=0):
    values = np.random.default_rng(seed).normal(0, 3, [s.stop - s.start for s in WHOLE])
    return LogitBox(WHOLE, values.astype(np.float32))


def some_clicks(count, seed=1):
    rng = np.random.default_rng(seed)
    places = {tuple(rng.integers(0, SHAPE).tolist()) for _ in range(count)}
    return [Click(place, bool(rng.integers(2))) for place in sorted(places)]


def on_image(logits):
    whole = np.full(SHAPE, -20.0, np.float32)
    whole[logits.box] = logits.values
    return whole


@pytest.mark.parametrize("count", [0, 1, 5, 60])
def test_undone_logits_are_the_given_ones_bit_for_bit(count):
    logits = some_logits()
    given = logits.values.copy()
    honoured = honour_clicks(logits, some_clicks(count), [], VOXEL_MM, 2.0, SHAPE)
    assert all(
        (on_image(honoured.logits)[click.zyx] > 0) == click.is_foreground
        for click in some_clicks(count)
    )
    undone = honoured.undone()
    assert undone.box == WHOLE
    np.testing.assert_array_equal(undone.values, given)


@pytest.mark.parametrize("seed", range(6))
def test_logits_of_other_clicks_differ_in_the_spots_of_one_of_them_alone(seed):
    own, others = some_clicks(12, seed), [c for c in some_clicks(20, seed + 50) if c.is_foreground]
    few, many = (
        honour_clicks(some_logits(seed), own, others[:n], VOXEL_MM, 2.0, SHAPE) for n in (2, 6)
    )
    differs = on_image(few.logits) != on_image(many.logits)
    for spot in few.spots ^ many.spots:
        differs[spot.box] = False
    assert not differs.any()
    assert few.spots & many.spots  # not all of them are others


@pytest.mark.parametrize("room", [0, 20_000, 2**29])
def test_labels_are_right_whatever_logits_were_dropped(monkeypatch, room):
    monkeypatch.setattr(predictor_module, "LOGIT_BYTES", room)
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    shown, rng = LabelMap(SHAPE), np.random.default_rng(0)
    for step in range(25):
        target = int(rng.integers(1, 5))
        if step % 6 == 5 and predictor.targets:
            predictor.undo(target=predictor.targets[-1])
        else:
            near = rng.integers(-4, 5, 3) + CENTRES[target % 2]
            predictor.add_point(tuple(near.tolist()), bool(rng.integers(3)), target=target)
        shown.update(predictor.versions(), predictor.shared_logits)
        assert sum(kept.nbytes for kept in predictor._kept.values()) <= room
        np.testing.assert_array_equal(shown.labels, predictor.segmentation())


def test_a_click_of_another_target_computes_no_logits_anew(monkeypatch):
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    predictor.add_box((0, 0, 0), SHAPE, target=1)
    shown, computed = LabelMap(SHAPE), []
    shown.update(predictor.versions(), predictor.shared_logits)
    logits = predictor.session.logits
    monkeypatch.setattr(predictor.session, "logits", lambda s: computed.append(s) or logits(s))
    inside = tuple(np.argwhere(shown.labels == 1)[40].tolist())
    predictor.add_point(inside, target=2)
    shown.update(predictor.versions(), predictor.shared_logits)
    assert len(computed) == 1  # of target 2
    assert shown.labels[inside] == 2
    np.testing.assert_array_equal(shown.labels, predictor.segmentation())


def test_logits_that_were_returned_never_change():
    predictor = small_predictor()
    predictor.set_image(voxels(), (1.2, 1.1, 1.0))
    predictor.add_box((0, 0, 0), SHAPE, target=1)
    logits = predictor.logits(1)
    before = logits.values.copy()
    predictor.add_point(tuple((np.argwhere(before > 0)[40] + logits.start).tolist()), target=2)
    assert not np.array_equal(predictor.logits(1).values, before)
    np.testing.assert_array_equal(logits.values, before)
