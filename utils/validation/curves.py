"""Pictures inside the challenge report, as PNG bytes: the same input, the same bytes (no torch).

Colours and style are those of utils/results/pictures.py.
"""

import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from utils.results.pictures import _LEGEND, GREY, INK, SERIES_COLOURS, Click, _tidy, draw_overlay
from utils.validation.scores import CaseScore
from utils.validation.tables import WITH_BOX, WITHOUT_BOX, num_steps

_DPI = 150
_BAND = {"alpha": 0.16, "lw": 0}


class Overlay(NamedTuple):
    """A picture of a case for the report."""

    case: str
    title: str  # what is drawn, in a line
    png_bytes: bytes


def case_overlay(
    case: str,
    title: str,
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_zyx: Sequence[float],
    clicks: Sequence[Click] = (),
) -> Overlay:
    """Draw a case as `draw_overlay` does; arrays (D, H, W), spacing in mm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.png"
        draw_overlay(path, image, truth, prediction, spacing_zyx=spacing_zyx, clicks=clicks)
        return Overlay(case, title, path.read_bytes())


def score_curves(scores: Sequence[CaseScore], metric: str, ylabel: str) -> bytes:
    """Draw a score of the cases over the steps: median, middle half and mean.

    Args:
        scores: cases; those with a box and those without are two series, the latter starting at
            the first click.
        metric: field of `StepScores` to draw.
        ylabel: what it is called.

    Returns:
        The PNG file.
    """
    steps = np.arange(num_steps(scores))  # 0 is the box
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    handles = []
    for name, boxed, colour in zip(
        (WITH_BOX, WITHOUT_BOX), (True, False), SERIES_COLOURS, strict=False
    ):
        curves = [getattr(c.scores, metric) for c in scores if c.has_box == boxed]
        if curves:
            first = 0 if boxed else 1
            _draw_spread(axes, steps[first:], np.array(curves)[:, first:], colour)
            label = f"{name}, {len(curves)} case{'s' if len(curves) > 1 else ''}"
            handles.append(Line2D([], [], color=colour, lw=2, marker="o", ms=5, label=label))
    axes.set_xlabel("clicks", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.set(ylim=(0, 1), xlim=(-0.2, steps[-1] + 0.2))
    axes.set_xticks(steps, ["box", *map(str, steps[1:])])
    _tidy(axes)
    figure.legend(handles=handles + _style_handles(), loc="outside upper left", ncols=3, **_LEGEND)
    return _png(figure)


def _draw_spread(axes: Axes, steps: np.ndarray, curves: np.ndarray, colour: str) -> None:
    """Draw (cases, steps) curves as their median, middle half and mean."""
    low, median, high = np.percentile(curves, (25, 50, 75), axis=0)
    axes.fill_between(steps, low, high, color=colour, **_BAND)
    axes.plot(steps, median, "o-", color=colour, lw=2, ms=5, clip_on=False)
    axes.plot(steps, curves.mean(axis=0), color=colour, lw=1.3, ls=(0, (4, 3)))


def _style_handles() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=GREY, lw=2, marker="o", ms=5, label="median"),
        Line2D([], [], color=GREY, lw=1.3, ls=(0, (4, 3)), label="mean"),
        Patch(color=GREY, label="middle half of the cases", **_BAND),
    ]


def _png(figure: Figure) -> bytes:
    """Return the picture without matplotlib's name and version, which are all that could change."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
