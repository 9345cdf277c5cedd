"""Curves: scores over clicks, and loss, learning rate and scores over the steps of a training."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from utils.errors import InputError
from utils.files.safe_read import open_regular, reading
from utils.files.strict_json import JsonError, parse_json
from utils.results.style import DASHES, GREY, INK, LEGEND, SERIES_COLOURS, tidy


class MetricsRow(TypedDict):
    """What is drawn of a line of ``metrics.jsonl``."""

    step: float
    loss: float
    lr: NotRequired[float]


_BAND = {"alpha": 0.16, "lw": 0}


def click_curve_figure(
    curves: Mapping[str, Sequence[float]],
    *,
    ylabel: str = "DSC",
    baseline: tuple[str, float] | None = None,
) -> Figure:
    """Draw mean scores over the clicks, one curve a model.

    Args:
        curves: by model, the score after click 1, 2, ...; the legend repeats the last.
        ylabel: what the scores are; the axis runs from 0 to 1.
        baseline: name and score of a method without a network, drawn as a dashed line.
    """
    if not curves or not all(len(scores) for scores in curves.values()):
        raise InputError(
            f"{ylabel} over clicks: the curves are {dict(curves)}; expected at least one score a "
            "curve, and at least one curve. Leave out models that were not evaluated."
        )
    most = max(len(scores) for scores in curves.values())
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    for (name, scores), colour in zip(curves.items(), cycle(SERIES_COLOURS), strict=False):
        steps = np.arange(1, len(scores) + 1)
        label = f"{name}: {scores[-1]:.3f}"
        axes.plot(steps, scores, "o-", color=colour, lw=2, ms=5, label=label, clip_on=False)
    if baseline:
        name, score = baseline
        axes.axhline(score, color=GREY, lw=1.2, ls=DASHES, label=f"{name}: {score:.3f}")
    axes.set_xlabel("clicks", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.set(ylim=(0, 1), xlim=(0.8, most + 0.2))
    axes.set_xticks(range(1, most + 1))
    tidy(axes)
    figure.legend(loc="outside upper left", ncols=3, **LEGEND)
    return figure


def spread_figure(series: Mapping[str, np.ndarray], steps: Sequence[str], ylabel: str) -> Figure:
    """Draw the scores of many cases over the steps: median, middle half and mean.

    Args:
        series: by name, (cases, n) scores of the last n steps. A series without cases is not
            drawn, and no other series takes its colour.
        steps: names of the steps, for the axis of clicks.
        ylabel: what the scores are; the axis runs from 0 to 1.
    """
    places = np.arange(len(steps))
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    handles = []
    for (name, scores), colour in zip(series.items(), cycle(SERIES_COLOURS), strict=False):
        if len(scores):
            _draw_spread(axes, places[-scores.shape[1] :], scores, colour)
            label = f"{name}, {len(scores)} case{'s' if len(scores) > 1 else ''}"
            handles.append(Line2D([], [], color=colour, lw=2, marker="o", ms=5, label=label))
    axes.set_xlabel("clicks", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.set(ylim=(0, 1), xlim=(-0.2, places[-1] + 0.2))
    axes.set_xticks(places, steps)
    tidy(axes)
    handles += _spread_handles()
    figure.legend(handles=handles, loc="outside upper left", ncols=3, **LEGEND)
    return figure


def training_curve_figure(metrics_jsonl_path: Path) -> Figure:
    """Draw the loss, raw and smoothed, and the learning rate of a ``metrics.jsonl``.

    Every line is an object with ``step`` and ``loss``, and may have ``lr``. The loss axis is
    logarithmic if all losses are positive and the largest is over four times the smallest.
    """
    rows = _read_metrics(Path(metrics_jsonl_path))
    steps = np.array([row["step"] for row in rows])
    loss = np.array([row["loss"] for row in rows], dtype=float)
    has_rate = all("lr" in row for row in rows)

    figure = Figure(figsize=(6.5, 4.2 if has_rate else 3.6), layout="constrained")
    if has_rate:
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        strip.plot(steps, [row["lr"] for row in rows], color=GREY, lw=1.5)
        strip.set_ylim(bottom=0)
        strip.set_ylabel("learning\nrate", fontsize=9, color=INK)
        strip.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        strip.yaxis.get_offset_text().set(color=INK, fontsize=8)
    else:
        axes = strip = figure.subplots()
    window = max(1, len(loss) // 25)
    colour = SERIES_COLOURS[0]
    axes.plot(steps, loss, color=colour, lw=0.8, alpha=0.35, label="loss of a step")
    axes.plot(steps, _running_mean(loss, window), color=colour, lw=2, label=f"mean over {window}")
    axes.set_ylabel("loss", color=INK)
    if loss.min() > 0 and loss.max() > 4 * loss.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.01)
    strip.set_xlabel("optimizer step", color=INK)
    for each in figure.axes:
        tidy(each)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, **LEGEND)
    return figure


def validation_curve_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw DSC on held-out crops over the steps of a training, one curve a number of clicks.

    Args:
        rows: of ``validation.jsonl``: ``step``, ``score`` (the best step has the highest), and
            ``dsc_<n>`` after n clicks.
    """
    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    names = [key for key in rows[0] if key.startswith("dsc_")]
    for name, colour in zip(names, cycle(SERIES_COLOURS), strict=False):
        scores = [row[name] for row in rows]
        clicks = name.removeprefix("dsc_")
        label = f"{clicks} click{'s' if clicks != '1' else ''}: {scores[-1]:.3f}"
        axes.plot(steps, scores, "o-", color=colour, lw=2, ms=4, label=label)
    best = max(rows, key=lambda row: row["score"])["step"]
    axes.axvline(best, color=GREY, lw=1.2, ls=DASHES, label=f"best: step {best}")
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("DSC on held-out crops", color=INK)
    axes.set_ylim(0, 1)
    tidy(axes)
    figure.legend(loc="outside upper left", ncols=4, **LEGEND)
    return figure


def _draw_spread(axes: Axes, steps: np.ndarray, scores: np.ndarray, colour: str) -> None:
    """Draw (cases, steps) scores as their median, middle half and mean."""
    low, median, high = np.percentile(scores, (25, 50, 75), axis=0)
    axes.fill_between(steps, low, high, color=colour, **_BAND)
    axes.plot(steps, median, "o-", color=colour, lw=2, ms=5, clip_on=False)
    axes.plot(steps, scores.mean(axis=0), color=colour, lw=1.3, ls=DASHES)


def _spread_handles() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=GREY, lw=2, marker="o", ms=5, label="median"),
        Line2D([], [], color=GREY, lw=1.3, ls=DASHES, label="mean"),
        Patch(color=GREY, label="middle half of the cases", **_BAND),
    ]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Average each value with its neighbours, with fewer of them near the ends."""
    kernel = np.ones(window)
    totals = np.convolve(values, kernel, mode="same")
    return totals / np.convolve(np.ones(len(values)), kernel, mode="same")


def _read_metrics(path: Path) -> list[MetricsRow]:
    """Return the lines of a ``metrics.jsonl`` whose step and loss are finite."""
    with reading(path, "the metrics.jsonl of a training run"), open_regular(path) as file:
        lines = file.read().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, MetricsRow)
        except JsonError as error:
            raise InputError(
                f"{path}: line {number} is no line of training metrics ({error}); expected a JSON "
                'object with numbers "step" and "loss". Give the metrics.jsonl of a training run.'
            ) from error
        if all(map(np.isfinite, row.values())):
            rows.append(row)
    if not rows:
        raise InputError(
            f"{path}: holds no step with a finite loss; expected at least one. Train first."
        )
    return rows
