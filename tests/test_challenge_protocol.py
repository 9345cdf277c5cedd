"""The challenge's steps, worked by hand, and the same from outside through predict.py."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bright_network import bright_predictor
from small_networks import RULE, save_student, small_student

from utils.cases.challenge import read_challenge_case
from utils.prediction.predictor import Predictor
from utils.prompts.click_method import Click, challenge_click
from utils.prompts.kinds import BoxPrompt
from utils.results.metrics import dsc, nsd
from utils.validation.challenge import PredictorAnswerer, evaluate, ranked

ROOT = Path(__file__).parent.parent
SPACING_XYZ = (1.0, 1.2, 2.0)


class Recorder:
    """Answers with what it is given in advance, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.previous = list(answers), [], []

    def answer(self, prompts, previous):
        self.asked.append([list(own) for own in prompts])
        self.previous.append(previous)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def two_balls(shape=(14, 30, 32)) -> np.ndarray:
    truth = np.zeros(shape, np.uint8)
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    truth[(z - 6) ** 2 * 4 + (y - 9) ** 2 + (x - 9) ** 2 <= 36] = 3
    truth[(z - 7) ** 2 * 4 + (y - 20) ** 2 + (x - 22) ** 2 <= 49] = 7
    return truth


def boxes_of(truth):
    boxes = []
    for value in (3, 7):
        places = np.argwhere(truth == value)
        low, high = places.min(axis=0), places.max(axis=0) + 1
        boxes.append([BoxPrompt(tuple(map(float, low)), tuple(map(float, high)), True)])
    return boxes


def test_ids_with_gaps_are_numbered_by_rank():
    ids, ranks = ranked(two_balls())
    assert ids == [3, 7]
    np.testing.assert_array_equal(np.unique(ranks), [0, 1, 2])
    assert (ranks == 2).sum() == (two_balls() == 7).sum()


def test_without_boxes_the_first_step_is_skipped_and_scores_nothing():
    truth = two_balls()
    recorder = Recorder(np.zeros_like(truth))
    steps = evaluate(recorder, truth, SPACING_XYZ, None, 5)
    assert len(recorder.asked) == 5
    assert steps.dsc.shape == (6, 2)
    assert not steps.dsc[0].any()
    assert steps.seconds[0] == 0
    assert recorder.previous[0] is None


def test_the_boxes_come_alone_and_first():
    truth = two_balls()
    recorder = Recorder(ranked(truth)[1])
    steps = evaluate(recorder, truth, SPACING_XYZ, boxes_of(truth), 2)
    assert recorder.asked[0] == boxes_of(truth)
    np.testing.assert_array_equal(steps.dsc, np.ones((3, 2)))


def test_a_class_without_errors_gets_no_click():
    truth = two_balls()
    answer = np.where(truth == 3, 1, 0).astype(np.uint8)
    recorder = Recorder(answer)
    steps = evaluate(recorder, truth, SPACING_XYZ, boxes_of(truth), 3)
    assert steps.clicks[0] == []
    assert len(steps.clicks[1]) == 3
    assert recorder.asked[-1][0] == boxes_of(truth)[0]


def test_clicks_are_the_challenges_on_the_whole_volume():
    truth = two_balls()
    wrong = np.roll(ranked(truth)[1], 3, axis=2)
    recorder = Recorder(wrong)
    evaluate(recorder, truth, SPACING_XYZ, boxes_of(truth), 1)
    for rank, value in ((1, 3), (2, 7)):
        assert recorder.asked[1][rank - 1][1] == challenge_click(wrong == rank, truth == value)


def test_scores_are_those_of_each_class_with_both_spacings():
    truth = two_balls()
    wrong = np.roll(ranked(truth)[1], 2, axis=2)
    steps = evaluate(Recorder(wrong), truth, SPACING_XYZ, boxes_of(truth), 1)
    for n, (rank, value) in enumerate(((1, 3), (2, 7))):
        masks = truth == value, wrong == rank
        assert steps.dsc[0, n] == dsc(*masks)
        assert steps.nsd[0, n] == nsd(*masks, SPACING_XYZ[::-1])
        assert steps.nsd_official[0, n] == nsd(*masks, SPACING_XYZ)


def test_ranks_above_255_count_as_nothing():
    truth = (np.arange(300).reshape(3, 10, 10) + 1).astype(np.uint16)
    steps = evaluate(Recorder(truth), truth, (1, 1, 1), None, 1)
    assert steps.dsc[1, :255].all()
    assert not steps.dsc[1, 255:].any()


def test_later_clicks_help_a_network_that_follows_the_image():
    truth = two_balls()
    image = np.where(truth == 3, 200, 0).astype(np.uint8)
    predictor = bright_predictor()
    answerer = PredictorAnswerer(predictor, image, SPACING_XYZ)
    steps = evaluate(answerer, np.where(truth == 3, 3, 0), SPACING_XYZ, None, 5)
    assert steps.dsc[1, 0] > 0.85
    assert (np.diff(steps.dsc[1:, 0]) > -0.02).all()


class FromOutside:
    """Starts predict.py anew for every answer, with files as the challenge writes them."""

    def __init__(self, folder: Path, image: np.ndarray, checkpoint: Path) -> None:
        self.folder, self.image, self.checkpoint = folder, image, checkpoint

    def answer(self, prompts, previous):
        arrays = {"imgs": self.image, "spacing": np.array(SPACING_XYZ)}
        boxes = [_box_entry(p) for own in prompts for p in own if isinstance(p, BoxPrompt)]
        if boxes:
            arrays["boxes"] = np.array(boxes, dtype=object)
        clicks = [[p for p in own if isinstance(p, Click)] for own in prompts]
        if any(clicks):
            arrays["clicks"] = np.array([_click_entry(own) for own in clicks], dtype=object)
            kinds = [["fg" if c.is_foreground else "bg" for c in own] for own in clicks]
            most = max(map(len, kinds))
            rows = [[None] * (most - len(row)) + row for row in kinds]
            arrays["clicks_order"] = np.array(rows, dtype=object)
        if previous is not None:
            arrays["prev_pred"] = previous
        inputs = self.folder / "inputs"
        inputs.mkdir(exist_ok=True)
        np.savez_compressed(inputs / "CT_AMOS_0001.npz", **arrays)
        subprocess.run(
            [
                *(sys.executable, ROOT / "predict.py", "--input", inputs),
                *("--output", self.folder / "outputs", "--checkpoint", self.checkpoint),
            ],
            check=True,
            capture_output=True,
        )
        return np.load(self.folder / "outputs" / "CT_AMOS_0001.npz")["segs"]


def _box_entry(box: BoxPrompt) -> dict:
    (z0, y0, x0), (z1, y1, x1) = box.start_zyx, box.stop_zyx
    return {
        **{"z_min": int(z0), "z_max": int(z1) - 1, "z_mid": int((z0 + z1) // 2)},
        **{"z_mid_y_min": int(y0), "z_mid_y_max": int(y1) - 1},
        **{"z_mid_x_min": int(x0), "z_mid_x_max": int(x1) - 1},
    }


def _click_entry(clicks: list[Click]) -> dict:
    return {
        kind: [list(c.zyx) for c in clicks if c.is_foreground == value]
        for kind, value in (("fg", True), ("bg", False))
    }


@pytest.mark.parametrize("with_boxes", [True, False], ids=["boxes", "clicks"])
def test_a_container_started_anew_each_step_scores_the_same(tmp_path, with_boxes):
    truth = two_balls()
    noise = np.random.default_rng(0).integers(0, 60, truth.shape)
    image = (noise + 120 * (truth > 0)).astype(np.uint8)
    boxes = boxes_of(truth) if with_boxes else None
    inside = PredictorAnswerer(Predictor(small_student(), RULE), image, SPACING_XYZ)
    outside = FromOutside(tmp_path, image, save_student(tmp_path / "student.pth"))
    ours = evaluate(inside, truth, SPACING_XYZ, boxes, 3)
    theirs = evaluate(outside, truth, SPACING_XYZ, boxes, 3)
    assert ours.clicks == theirs.clicks
    np.testing.assert_array_equal(ours.dsc, theirs.dsc)
    np.testing.assert_array_equal(ours.nsd_official, theirs.nsd_official)
    assert any(ours.dsc[-1])


def test_what_is_written_from_outside_is_read_as_the_same_prompts(tmp_path):
    truth = two_balls()
    clicks = [[Click((1, 2, 3), True), Click((4, 5, 6), False)], [Click((7, 8, 9), True)]]
    prompts = [box + own for box, own in zip(boxes_of(truth), clicks, strict=True)]
    outside = FromOutside(tmp_path, truth, save_student(tmp_path / "student.pth"))
    outside.answer(prompts, None)
    case = read_challenge_case(tmp_path / "inputs" / "CT_AMOS_0001.npz")
    assert case.prompts == prompts
