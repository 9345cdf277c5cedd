"""The challenge's evaluation of one case: a box, then clicks into the errors of all classes.

The first step gives the boxes, where the case has any. Each further step gives every class one
click by `challenge_click`, or none where the class has no error left. Prompts accumulate, and
scores are taken after every step. The evaluated program (`Answerer`) gets prompts alone. It is the
predictor in this process, or predict.py, started anew at each step as the challenge starts its
container.

Classes are numbered by rank: the k-th box belongs to the k-th class in order of its id, and the
answer holds k. A test file does not name the ids, so truth with gaps in its ids is renumbered here.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from utils.prediction.predictor import Predictor
from utils.prompts.click_method import challenge_click
from utils.prompts.kinds import Click, Prompt
from utils.results.metrics import class_masks, dsc, nsd

#: The evaluator reads answers as uint8: a higher id would count as another class.
MAX_CLASS = 255


class Answerer(Protocol):
    """The program that is evaluated."""

    def answer(self, prompts: list[list[Prompt]], previous: np.ndarray | None) -> np.ndarray:
        """Return (D, H, W) class ranks, 0 for none.

        Args:
            prompts: for every class, all its prompts so far, in order.
            previous: the answer of the previous step; None at the first step.
        """


class PredictorAnswerer:
    """The predictor in this process; it gets each prompt once, at the step of that prompt."""

    def __init__(
        self,
        predictor: Predictor,
        image: np.ndarray,
        spacing_xyz: Sequence[float],
        *,
        hounsfield: bool = False,
    ) -> None:
        self._predictor, self._given = predictor, {}
        predictor.set_image(image, spacing_xyz, hounsfield=hounsfield)

    def answer(self, prompts: list[list[Prompt]], previous: np.ndarray | None) -> np.ndarray:
        """Return each voxel's class rank (D, H, W), 0 for none."""
        for rank, own in enumerate(prompts, start=1):
            for prompt in own[self._given.get(rank, 0) :]:
                self._predictor.add(prompt, target=rank)
            self._given[rank] = len(own)
        return self._predictor.segmentation()


@dataclass(frozen=True)
class Steps:
    """The outcome of one case; lists run over the steps, arrays over (steps, classes)."""

    class_ids: list[int]
    dsc: np.ndarray
    nsd: np.ndarray  # with the spacing in the right order
    nsd_official: np.ndarray  # as the evaluator computes it: with the spacing in the wrong order
    seconds: list[float]
    clicks: list[list[Click]]  # by class
    answers: list[np.ndarray]  # (D, H, W) uint8 after the first and the last step


def evaluate(
    answerer: Answerer,
    truth: np.ndarray,
    spacing_xyz: Sequence[float],
    boxes: list[list[Prompt]] | None,
    num_clicks: int,
) -> Steps:
    """Run the protocol.

    Args:
        truth: (D, H, W) class ids or instance numbers.
        boxes: for every class in order of its id a list with its box; None where the case has none.
    """
    class_ids, truth = ranked(truth)
    prompts = [list(own) for own in boxes or [[] for _ in class_ids]]
    clicks: list[list[Click]] = [[] for _ in class_ids]
    answer, rows, seconds, answers = None, [], [], []
    for step in range(1 + num_clicks):
        if step == 0 and boxes is None:
            rows.append(np.zeros((3, len(class_ids))))
            seconds.append(0.0)
            continue
        if step > 0:
            click_all(truth, answer, prompts, clicks)
        start = time.perf_counter()
        answer = answerer.answer(prompts, answer)
        seconds.append(time.perf_counter() - start)
        answer = np.where(answer > MAX_CLASS, 0, answer).astype(np.uint8)
        rows.append(scores_of(truth, answer, spacing_xyz))
        answers.append(answer)
    scores = np.array(rows)
    return Steps(
        class_ids,
        scores[:, 0],
        scores[:, 1],
        scores[:, 2],
        seconds,
        clicks,
        answers[:: len(answers) - 1 or 1],
    )


def ranked(truth: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return the class ids of a label volume, rising, and the volume with each one's rank."""
    ids = [int(value) for value in np.flatnonzero(np.bincount(truth.reshape(-1))) if value]
    table = np.zeros(max(ids, default=0) + 1, np.uint8 if len(ids) <= MAX_CLASS else np.uint16)
    table[ids] = np.arange(1, len(ids) + 1)
    return ids, table[truth]


def click_all(
    truth: np.ndarray,
    answer: np.ndarray | None,
    prompts: list[list[Prompt]],
    clicks: list[list[Click]],
) -> None:
    """Add every class's next click to its prompts."""
    if answer is None:
        answer = np.zeros_like(truth)
    for rank, box, gt_mask, seg_mask in class_masks(truth, answer):
        click = challenge_click(seg_mask, gt_mask)
        if click is None:
            continue
        place = tuple(c + side.start for c, side in zip(click.zyx, box, strict=True))
        prompts[rank - 1].append(Click(place, click.is_foreground))
        clicks[rank - 1].append(Click(place, click.is_foreground))


def scores_of(truth: np.ndarray, answer: np.ndarray, spacing_xyz: Sequence[float]) -> np.ndarray:
    """Return (3, classes): DSC, NSD, and NSD as the evaluator computes it."""
    official, right = tuple(spacing_xyz), tuple(spacing_xyz)[::-1]
    scores = []
    for _, _, gt_mask, seg_mask in class_masks(truth, answer):
        nsds = [nsd(gt_mask, seg_mask, spacing) for spacing in dict.fromkeys((right, official))]
        scores.append((dsc(gt_mask, seg_mask), nsds[0], nsds[-1]))
    return np.array(scores).T
