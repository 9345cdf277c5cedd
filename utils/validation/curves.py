"""What the challenge report draws of its cases."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from utils.results.curves import spread_figure
from utils.validation.scores import CaseScore
from utils.validation.tables import WITH_BOX, WITHOUT_BOX, num_steps


class Overlay(NamedTuple):
    """A picture of a case for the report."""

    case: str
    title: str  # what is drawn, in a line
    png_bytes: bytes


def score_figure(scores: Sequence[CaseScore], metric: str, ylabel: str) -> Figure:
    """Draw a score over the steps: the cases with a box, and those without from the first click.

    Args:
        scores: at least one case.
        metric: field of `StepScores` to draw.
        ylabel: what it is called.
    """
    steps = ["box", *map(str, range(1, num_steps(scores)))]
    boxed = [getattr(case.scores, metric) for case in scores if case.has_box]
    clicked = [getattr(case.scores, metric)[1:] for case in scores if not case.has_box]
    series = {WITH_BOX: np.array(boxed), WITHOUT_BOX: np.array(clicked)}
    return spread_figure(series, steps, ylabel)
