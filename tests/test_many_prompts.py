"""Hundreds of prompts: work and memory grow with their number, not with its square."""

import time
import tracemalloc

import numpy as np
import pytest
from small_networks import RULE, small_sam

from utils.prediction.honouring import honour_clicks
from utils.prediction.masks import LogitBox
from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import Click, MaskPrompt

SHAPE = (20, 24, 28)


class Noting:
    """An engine that notes how many clicks it is given."""

    def __init__(self, engine):
        self.engine, self.name, self.clicks = engine, engine.name, []

    def encode(self, images):
        return self.engine.encode(images)

    def decode(self, image_embeddings, points, labels, masks):
        self.clicks.append(points.shape[1])
        return self.engine.decode(image_embeddings, points, labels, masks)


@pytest.fixture(scope="module")
def network():
    return small_sam()


def ready(network, shape=SHAPE, **options):
    predictor = Predictor(network, RULE, options=PredictorOptions(**options))
    predictor.network.engine = Noting(predictor.network.engine)
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    predictor.set_image(image, (1.0, 1.1, 1.2))
    return predictor


def clicks(number, shape=SHAPE, seed=1):
    rng = np.random.default_rng(seed)
    return [(tuple(int(rng.integers(0, n)) for n in shape), bool(k % 3)) for k in range(number)]


def click_all(predictor, places):
    for zyx, positive in places:
        predictor.add_point(zyx, positive)


def block(start):
    mask = np.zeros(SHAPE, bool)
    mask[start : start + 6, 5:15, 6:16] = True
    return mask


@pytest.mark.parametrize("shape", [SHAPE, (20, 24, 300)], ids=str)
def test_twice_the_clicks_take_about_twice_the_decoding(network, shape):
    work = []
    for number in (100, 200):
        predictor = ready(network, shape)
        click_all(predictor, clicks(number, shape))
        predictor.mask()
        work.append((len(predictor.network.engine.clicks), sum(predictor.network.engine.clicks)))
    (decodings, shown), (twice_decodings, twice_shown) = work
    assert twice_decodings <= 2.2 * decodings
    assert twice_shown <= 2.5 * shown


def test_twice_the_clicks_take_about_twice_the_time(network):
    seconds = []
    for number in (50, 200):
        predictor = ready(network)
        click_all(predictor, clicks(number))
        start = time.process_time()
        predictor.mask()
        seconds.append(time.process_time() - start)
    assert seconds[1] < 6.5 * seconds[0]  # four times the clicks


def test_the_newest_clicks_are_decoded_and_older_ones_act_through_the_mask(network):
    predictor = ready(network, most_clicks=3, zoom=ZoomRule(passes=0))
    click_all(predictor, clicks(5))
    predictor.mask()
    assert predictor.network.engine.clicks == [1, 2, 3, 3, 3]
    answers = []
    for first in ((2, 2, 2), (17, 20, 25)):
        predictor = ready(network, most_clicks=3, zoom=ZoomRule(passes=0))
        click_all(predictor, [(first, True), *clicks(5)])
        answers.append(predictor.logits(1).values)
    assert not np.array_equal(*answers)


def test_all_of_a_few_dozen_clicks_are_decoded(network):
    answers = []
    for kept in (PredictorOptions().most_clicks, 10_000):
        predictor = ready(network, most_clicks=kept)
        click_all(predictor, clicks(40))
        answers.append(predictor.logits(1).values)
    np.testing.assert_array_equal(*answers)


def test_every_one_of_many_clicks_is_honoured(network):
    predictor = ready(network)
    places = dict(clicks(300))
    click_all(predictor, places.items())
    mask = predictor.mask()
    assert [mask[zyx] for zyx in places] == list(places.values())


def test_clicks_one_by_one_or_at_once_give_one_answer(network):
    at_once, one_by_one = ready(network), ready(network)
    click_all(at_once, clicks(90))
    for place in clicks(90):
        click_all(one_by_one, [place])
        answer = one_by_one.mask()
    np.testing.assert_array_equal(at_once.mask(), answer)


def test_logits_are_not_copied_for_each_corrected_click():
    values = np.full((60, 60, 60), -6.0, np.float32)
    whole = LogitBox((slice(0, 60),) * 3, values)
    many = [Click(zyx, True) for zyx, _ in clicks(400, (60, 60, 60))]
    start = time.process_time()
    mended = honour_clicks(whole, many, [], (1.0, 1.0, 1.0), 2.0, (60, 60, 60))
    assert time.process_time() - start < 2
    assert all(mended.logits.values[click.zyx] > 0 for click in many)
    assert (mended.undone().values == -6).all()


def test_a_mask_prompt_is_kept_as_the_bits_of_its_box():
    mask = np.zeros((100, 200, 200), bool)
    mask[10:20, 30:70, 50:90] = np.random.default_rng(0).random((10, 40, 40)) > 0.5
    prompt = MaskPrompt(mask)
    np.testing.assert_array_equal(prompt.mask, mask)
    assert prompt.nbytes <= 10 * 40 * 40 / 8 + 1
    mask[...] = True
    assert prompt.mask.sum() < 10 * 40 * 40


def test_masks_that_were_replaced_take_almost_no_memory(network):
    image = np.zeros((100, 100, 100), np.uint8)
    predictor = Predictor(network, RULE)
    predictor.set_image(image, (1.0, 1.0, 1.0))
    mask = np.zeros(image.shape, bool)
    mask[5:95, 5:95, 5:95] = True
    tracemalloc.start()
    for number in range(10):
        mask[number, number, number] = False
        predictor.add_mask(mask)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2 * 10 * mask.size / 8
    assert predictor.mask()[50, 50, 50]


def test_undo_brings_back_what_a_mask_has_replaced(network):
    predictor, answers = ready(network), []
    click_all(predictor, clicks(3))
    answers.append(predictor.mask())
    for start in (2, 8):
        predictor.add_mask(block(start))
        answers.append(predictor.mask())
        predictor.add_point((start + 2, 8, 9), False)
        answers.append(predictor.mask())
    for answer in answers[-2::-1]:
        predictor.undo()
        np.testing.assert_array_equal(predictor.mask(), answer)
    predictor.undo()
    again = ready(network)
    click_all(again, clicks(2))
    np.testing.assert_array_equal(predictor.mask(), again.mask())


def test_a_mask_taken_back_before_it_was_decoded_changes_nothing(network):
    predictor = ready(network)
    click_all(predictor, clicks(3))
    before = predictor.mask()
    predictor.add_mask(block(4))
    predictor.undo()
    np.testing.assert_array_equal(predictor.mask(), before)
