"""Many targets together: computations in lockstep, and the batches that reach the network."""

import math

import numpy as np
import pytest
from bright_network import bright_predictor
from small_networks import RULE, small_sam

from benchmarks.geometry import CarrySession
from utils.prediction import batching, logit_cache
from utils.prediction.lockstep import in_lockstep
from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import ImageSession, PredictorOptions
from utils.volumes.geometry import CropRule

STILL = ZoomRule(passes=0)
LONG = (20, 24, 300)


def adding(name, rounds, width=1):
    """Ask for ``width`` numbers in each round; return the answers."""
    answers = []
    for number in range(rounds):
        answers += yield [(name, number, n) for n in range(width)]
    return answers


def test_computations_may_end_at_different_times():
    asked = []

    def answer(requests):
        asked.append([name for name, _, _ in requests])
        return [f"{name}{number}" for name, number, _ in requests]

    results = in_lockstep([adding("a", 1), adding("b", 3), adding("c", 0), adding("d", 2)], answer)
    assert asked == [["a", "b", "d"], ["b", "d"], ["b"]]
    assert results == [["a0"], ["b0", "b1", "b2"], [], ["d0", "d1"]]


def test_several_answers_go_to_who_asked_for_them():
    results = in_lockstep([adding("a", 2, 3), adding("b", 2, 0), adding("c", 2)], lambda r: r)
    assert results[0] == [("a", number, n) for number in range(2) for n in range(3)]
    assert results[1:] == [[], [("c", 0, 0), ("c", 1, 0)]]


def test_an_answer_too_few_is_not_passed_over():
    with pytest.raises(ValueError, match="2 requests got 1 answers"):
        in_lockstep([adding("a", 1, 2)], lambda requests: requests[:1])


def test_nothing_to_ask_asks_nobody():
    assert in_lockstep([], None) == []
    assert in_lockstep([adding("a", 0)], None) == [[]]


def test_an_error_in_one_computation_is_everybodys():
    def broken():
        yield [1]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_lockstep([adding("a", 3), broken()], lambda requests: requests)


class Watched:
    """An engine that notes how large its batches are."""

    def __init__(self, engine):
        self.engine, self.encoded, self.decoded = engine, [], []
        self.name = engine.name

    def encode(self, images):
        self.encoded.append(len(images))
        return self.engine.encode(images)

    def decode(self, image_embeddings, *prompts):
        self.decoded.append(len(image_embeddings))
        return self.engine.decode(image_embeddings, *prompts)


def predictor_on(image, batch_size=16, **options):
    predictor = Predictor(small_sam(), RULE, options=PredictorOptions(**options))
    predictor.network.engine = Watched(predictor.network.engine)
    predictor.network.batch_size = batch_size
    predictor.set_image(image, (1.0, 1.0, 1.0))
    return predictor


def noise(shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def click_six(predictor):
    for target in range(1, 7):
        predictor.add_point((3 * target, 12, 15), target=target)


def test_targets_in_one_region_take_one_call_each_of_encoder_and_decoder():
    predictor = predictor_on(noise((24, 28, 30)), zoom=STILL)
    click_six(predictor)
    predictor.segmentation()
    assert predictor.network.engine.encoded == [1]
    assert predictor.network.engine.decoded == [6]
    assert predictor.decoder.encoder_runs == 1


def test_targets_with_more_clicks_than_others_go_on_alone():
    predictor = predictor_on(noise((24, 28, 30)), zoom=STILL)
    click_six(predictor)
    predictor.add_point((20, 20, 20), False, target=2)
    predictor.add_point((22, 9, 20), False, target=2)
    predictor.add_point((20, 20, 20), False, target=5)
    predictor.segmentation()
    assert predictor.network.engine.decoded == [6, 2, 1]


def test_targets_in_different_regions_are_encoded_together():
    predictor = predictor_on(noise(LONG), zoom=STILL)
    for target, x in enumerate((20, 90, 160, 230), start=1):
        predictor.add_point((10, 12, x), target=target)
    predictor.segmentation()
    assert predictor.network.engine.encoded == [4]
    assert predictor.network.engine.decoded == [4]


def test_no_batch_is_larger_than_allowed():
    answers = []
    for batch_size in (4, 16):
        predictor = predictor_on(noise(LONG), batch_size, zoom=STILL)
        for target in range(1, 11):
            predictor.add_point((10, 12, 25 * target), target=target)
        answers.append(predictor.segmentation())
        assert predictor.network.engine.encoded == ([4, 4, 2] if batch_size == 4 else [10])
        assert predictor.network.engine.decoded == predictor.network.engine.encoded
    assert (answers[0] != answers[1]).mean() < 1e-4


def test_on_a_cpu_targets_answer_with_the_same_bits_whatever_is_asked_beside():
    answers = []
    for targets in ([2], [1, 2, 3]):
        predictor = Predictor(small_sam(), RULE, options=PredictorOptions(zoom=STILL))
        predictor.set_image(noise(LONG), (1.0, 1.0, 1.0))
        for target in targets:
            predictor.add_point((10, 12, 70 * target), target=target)
        predictor.segmentation()
        answers.append(predictor.logits(2).values)
    assert np.array_equal(*answers)


def test_engines_that_build_kernels_for_each_batch_size_see_few_sizes():
    answers = []
    for name in ("eager", "compiled"):
        predictor = predictor_on(noise((24, 28, 30)), zoom=STILL)
        predictor.network.engine.name = name
        click_six(predictor)
        answers.append(predictor.segmentation())
        assert predictor.network.engine.decoded == [6 if name == "eager" else 8]
    assert (answers[0] != answers[1]).mean() < 1e-4


def prompted(session=ImageSession, **options):
    """Return a predictor with targets of every kind: far clicks, boxes, masks, any number."""
    predictor = predictor_on(noise(LONG), **options)
    scene, cells = predictor.session.scene, predictor.decoder.cells
    predictor.session = session(scene, cells, predictor.options)
    mask = np.zeros(LONG, bool)
    mask[5:12, 5:15, 100:110] = True
    predictor.add_point((10, 12, 30), target=1)
    predictor.add_point((4, 20, 36), False, target=1)
    predictor.add_point((10, 12, 280), target=1)
    predictor.add_point((9, 9, 31), target=1)
    predictor.add_box((2, 3, 60), (18, 20, 90), middle_slice=True, target=2)
    predictor.add_point((9, 9, 95), target=2)
    predictor.add_mask(mask, target=3)
    predictor.add_point((9, 9, 99), False, target=4)
    predictor.add_box((0, 0, 0), LONG, target=5)
    predictor.add_mask(mask, target=6)
    predictor.add_point((9, 9, 106), target=6)
    predictor.add_point((10, 12, 200), target=70)
    return predictor


@pytest.mark.parametrize(
    "options", [{}, {"session": CarrySession}, {"zoom": STILL}], ids=["zooms", "masks", "far parts"]
)
def test_together_targets_become_what_they_become_one_at_a_time(options):
    together, one_by_one = prompted(**options), prompted(**options)
    answer = together.segmentation()
    states = [states[-1] for states in together._states.values()]
    assert any(state.other_views for state in states) == ("zoom" in options)
    assert len({state.region.spacing_mm for state in states}) > 2
    for target in one_by_one.targets:
        alone, beside = one_by_one.logits(target), together.logits(target)
        assert alone.box == beside.box
        scale = np.abs(alone.values).max(initial=1)
        np.testing.assert_allclose(beside.values, alone.values, rtol=1e-4, atol=1e-4 * scale)
    # Products of another batch size round differently, and logits about 0 may change sides.
    assert (one_by_one.segmentation() != answer).mean() < 1e-4
    assert len(together.network.engine.decoded) < len(one_by_one.network.engine.decoded)
    assert sum(together.network.engine.decoded) == sum(one_by_one.network.engine.decoded)
    assert together.decoder.encoder_runs == one_by_one.decoder.encoder_runs


def large_targets(numbers):
    """Return a predictor on a bright block that fills many cubes, and the sizes of its batches."""
    image = np.zeros((64, 64, 64), np.uint8)
    image[4:60, 4:60, 4:60] = 200
    predictor = bright_predictor(CropRule(size=32, spacing_mm=1.0), zoom=STILL)
    asked, decode_all = [], predictor.network.decode_all
    predictor.network.decode_all = lambda given: asked.append(len(given)) or decode_all(given)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    for target in numbers:
        predictor.add_box((4, 4, 4), (60, 60, 60), target=target)
    predictor.segmentation()
    return predictor, asked


def test_tiles_of_all_targets_are_decoded_together():
    one, asked = large_targets([1])
    tiles = sum(asked[1:])
    assert tiles > 8
    assert len(asked) == 1 + math.ceil(tiles / 16)
    two, asked = large_targets([1, 2])
    assert asked[0] == 2
    assert sum(asked[1:]) == 2 * tiles
    assert len(asked) == 1 + math.ceil(2 * tiles / 16)
    assert two.decoder.encoder_runs == one.decoder.encoder_runs


@pytest.mark.parametrize("kept", [0, 3])
def test_embeddings_that_are_not_kept_are_computed_anew(monkeypatch, kept):
    """Ten regions at once, of which few may be kept: not even those of the batch in flight."""
    one = 4**3 * 48 * 4  # bytes
    answers = []
    for room in (batching.EMBEDDING_BYTES, kept * one):
        monkeypatch.setattr(batching, "EMBEDDING_BYTES", room)
        predictor = predictor_on(noise(LONG), zoom=STILL)
        for target in range(1, 11):
            predictor.add_point((10, 12, 25 * target), target=target)
        answers.append(predictor.segmentation())
    np.testing.assert_array_equal(*answers)
    held = [e.untyped_storage().nbytes() for e in predictor.decoder._embeddings.values()]
    assert sum(held) == kept * one


def test_only_targets_with_new_prompts_are_pasted_again(monkeypatch):
    predictor = predictor_on(noise((24, 28, 30)))
    click_six(predictor)
    predictor.segmentation()
    pasted, logits = [], predictor.session.logits
    monkeypatch.setattr(predictor.session, "logits", lambda s: pasted.append(s) or logits(s))
    predictor.add_point((20, 20, 20), False, target=2)
    predictor.segmentation()
    assert len(pasted) == 1


@pytest.mark.parametrize("room", [0, logit_cache.LOGIT_BYTES])
def test_cached_logits_do_not_change_the_answer(monkeypatch, room):
    """A click of one target inside the mask of another, an undo, a reset."""
    monkeypatch.setattr(logit_cache, "LOGIT_BYTES", room)
    predictor, steps = predictor_on(noise((24, 28, 30))), []
    click_six(predictor)
    first = predictor.segmentation()
    place = tuple(map(int, np.argwhere(first == first.max())[0]))
    predictor.add_point(place, target=9)
    steps.append((predictor.segmentation(), [9]))
    predictor.undo(target=9)
    steps.append((predictor.segmentation(), []))
    predictor.reset(2)
    predictor.add_point((6, 12, 16), target=2)
    predictor.reset(2)
    predictor.add_point((6, 12, 15), target=2)
    steps.append((predictor.segmentation(), []))
    assert steps[0][0][place] == 9
    for answer, more in steps:
        anew = predictor_on(noise((24, 28, 30)))
        click_six(anew)
        for target in more:
            anew.add_point(place, target=target)
        np.testing.assert_array_equal(answer, anew.segmentation())
