"""Pictures of segmentations, click curves and training curves (matplotlib's Agg, no torch).

Figures are made without pyplot, so nothing global is opened, kept or configured, and a server
without a display draws them too. Files appear whole or not at all.

Truth is green and prediction magenta: a pair that colour-blind readers can tell apart. Planes are
drawn in millimetres. Axial: x to the right, y downwards; coronal and sagittal: z upwards, so that
superior is on top where the axes grow as in the challenge's files.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from utils.errors import InputError
from utils.files.atomic import atomic_path

TRUTH_COLOUR, PREDICTION_COLOUR = "#39d353", "#ff4fd8"
FOREGROUND_COLOUR, BACKGROUND_COLOUR = "#ffd60a", "#4cc9f0"
INK, GREY = "#222222", "#8a8a8a"
#: Okabe and Ito's colour-blind-safe series, without the yellow that vanishes on white.
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Click = tuple[tuple[int, int, int], bool]

#: Context around truth, prediction and clicks, and the smallest view, in mm.
_MARGIN_MM, _SMALLEST_VIEW_MM = 15.0, 60.0
#: A click appears in planes that are at most this far away (or one voxel).
_CLICK_REACH_MM = 4.0
_FIGURE_WIDTH = 10.0  # inches
_DPI = 150

_LEGEND = {"frameon": False, "fontsize": 9, "labelcolor": INK}
_SMALL = {"fontsize": 9, "color": INK}
_NUMBER = {"fontsize": 6.5, "color": INK, "fontweight": "bold"}


class _Plane(NamedTuple):
    name: str
    normal: int  # the axis looked along; rows and columns are the other two
    rows: int
    columns: int
    upwards: bool


_PLANES = (
    _Plane("axial", 0, 1, 2, upwards=False),
    _Plane("coronal", 1, 0, 2, upwards=True),
    _Plane("sagittal", 2, 0, 1, upwards=True),
)


class _View(NamedTuple):
    centre: np.ndarray  # (3,) the voxel that all planes go through
    box: tuple[slice, slice, slice]  # what is shown
    spacing: np.ndarray  # (3,) mm
    levels: np.ndarray  # (2,) intensities drawn black and white


def draw_overlay(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_zyx: Sequence[float],
    clicks: Sequence[Click] = (),
    title: str = "",
) -> None:
    """Draw the three planes through the truth's centre, with both outlines and the clicks.

    Args:
        path: picture to write; the suffix decides the format.
        image: (D, H, W) intensities.
        truth, prediction: (D, H, W) masks; either may be empty.
        spacing_zyx: mm.
        clicks: ((z, y, x), is_foreground) in the order clicked.
        title: one line above the planes.
    """
    truth, prediction = np.asarray(truth) != 0, np.asarray(prediction) != 0
    if image.ndim != 3 or not image.shape == truth.shape == prediction.shape:
        raise InputError(
            f"{Path(path).name}: image, truth and prediction have shapes {image.shape}, "
            f"{truth.shape}, {prediction.shape}; expected one (D, H, W) grid. Paste the prediction "
            "back onto the case's grid before drawing it."
        )
    spacing = np.array(spacing_zyx, dtype=float)
    centre = _centre(truth if truth.any() else prediction)
    box = _view_box(truth | prediction, clicks, centre, spacing)
    view = _View(centre, box, spacing, np.percentile(image[box], (0.5, 99.5)))
    extents = np.array([side.stop - side.start for side in box]) * spacing
    widths = [extents[plane.columns] for plane in _PLANES]
    height = max(extents[plane.rows] for plane in _PLANES) / sum(widths) * _FIGURE_WIDTH

    figure = Figure(figsize=(_FIGURE_WIDTH, height + 0.9), layout="constrained")
    all_axes = figure.subplots(1, 3, width_ratios=widths)
    for axes, plane in zip(all_axes, _PLANES, strict=True):
        _draw_plane(axes, plane, (image, truth, prediction), view)
        _draw_clicks(axes, plane, clicks, view)
    _draw_scale_bar(all_axes[0])
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    figure.legend(handles=_legend(clicks), loc="outside lower center", ncols=4, **_LEGEND)
    _save(figure, path)


def draw_click_curve(
    path: Path,
    curves: Mapping[str, Sequence[float]],
    *,
    ylabel: str = "DSC",
    baseline: tuple[str, float] | None = None,
) -> None:
    """Draw mean scores over the clicks, one named curve a model.

    Args:
        path: picture to write.
        curves: by name, the score after click 1, 2, ...; the legend repeats the last.
        ylabel: what the scores are; the axis runs from 0 to 1.
        baseline: name and score of what needs no network, drawn as a dashed line.
    """
    if not curves or not all(len(scores) for scores in curves.values()):
        raise InputError(
            f"{Path(path).name}: nothing to draw in {dict(curves)}; expected at least one score "
            "a curve. Leave out models that were not evaluated."
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
        axes.axhline(score, color=GREY, lw=1.2, ls=(0, (4, 3)), label=f"{name}: {score:.3f}")
    axes.set_xlabel("clicks", color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.set(ylim=(0, 1), xlim=(0.8, most + 0.2))
    axes.set_xticks(range(1, most + 1))
    _tidy(axes)
    figure.legend(loc="outside upper left", ncols=3, **_LEGEND)
    _save(figure, path)


def draw_training_curve(path: Path, metrics_jsonl_path: Path) -> None:
    """Draw the loss, raw and smoothed, and the learning rate of a ``metrics.jsonl``.

    Every line is an object with ``step`` and ``loss``, and may have ``lr``. The loss axis is
    logarithmic where the losses are positive and differ enough to need it.
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
        _tidy(each)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, **_LEGEND)
    _save(figure, path)


def draw_validation_curve(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Draw DSC on held-out crops over the steps of a training, one curve a number of clicks.

    Args:
        path: picture to write.
        rows: of ``validation.jsonl``: ``step``, and ``dsc_<n>`` after n clicks.
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
    axes.axvline(best, color=GREY, lw=1.2, ls=(0, (4, 3)), label=f"best: step {best}")
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("DSC on held-out crops", color=INK)
    axes.set_ylim(0, 1)
    _tidy(axes)
    figure.legend(loc="outside upper left", ncols=4, **_LEGEND)
    _save(figure, path)


def _centre(mask: np.ndarray) -> np.ndarray:
    """Return the median voxel of ``mask`` along each axis; the volume's middle if it is empty."""
    if not mask.any():
        return np.array(mask.shape) // 2
    return np.array([int(np.median(indices)) for indices in np.nonzero(mask)])


def _view_box(
    masks: np.ndarray, clicks: Sequence[Click], centre: np.ndarray, spacing: np.ndarray
) -> tuple[slice, ...]:
    """Return the box to show: masks and clicks with a margin, about a cube in mm, clipped."""
    shown = np.concatenate([np.argwhere(masks), [centre], *([zyx] for zyx, _ in clicks)])
    low, high = shown.min(axis=0), shown.max(axis=0) + 1
    edge_mm = max(((high - low) * spacing).max() + 2 * _MARGIN_MM, _SMALLEST_VIEW_MM)
    half = edge_mm / spacing / 2
    start = np.floor(np.maximum((low + high) / 2 - half, 0)).astype(int)
    stop = np.ceil(np.minimum((low + high) / 2 + half, masks.shape)).astype(int)
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def _draw_plane(
    axes: Axes,
    plane: _Plane,
    volumes: tuple[np.ndarray, np.ndarray, np.ndarray],
    view: _View,
) -> None:
    """Draw one plane of (image, truth, prediction) in mm from the volume's corner."""
    image, truth, prediction = (
        np.take(v, view.centre[plane.normal], plane.normal) for v in volumes
    )
    rows, columns = view.box[plane.rows], view.box[plane.columns]
    row_mm, column_mm = view.spacing[plane.rows], view.spacing[plane.columns]
    axes.imshow(
        image,
        cmap="gray",
        vmin=view.levels[0],
        vmax=view.levels[1],
        extent=(0, image.shape[1] * column_mm, image.shape[0] * row_mm, 0),
    )
    for mask, colour in ((prediction, PREDICTION_COLOUR), (truth, TRUTH_COLOUR)):
        if mask.any():
            ringed = np.pad(mask, 1).astype(float)  # closes outlines at the volume's border
            x = (np.arange(ringed.shape[1]) - 0.5) * column_mm
            y = (np.arange(ringed.shape[0]) - 0.5) * row_mm
            axes.contour(x, y, ringed, levels=[0.5], colors=colour, linewidths=1.6)
    bottom, top = rows.stop * row_mm, rows.start * row_mm
    if plane.upwards:
        bottom, top = top, bottom
    axes.set(
        xlim=(columns.start * column_mm, columns.stop * column_mm),
        ylim=(bottom, top),
        xticks=[],
        yticks=[],
        anchor="N",
    )
    axes.spines[:].set_visible(False)
    place, count = view.centre[plane.normal], volumes[0].shape[plane.normal]
    axes.set_title(f"{plane.name}  {'zyx'[plane.normal]} = {place} of {count}", **_SMALL)


def _draw_clicks(axes: Axes, plane: _Plane, clicks: Sequence[Click], view: _View) -> None:
    """Draw the clicks near the plane as dots, numbered in the order clicked if there are few."""
    step = view.spacing[plane.normal]
    for number, (zyx, is_foreground) in enumerate(clicks, start=1):
        if abs(zyx[plane.normal] - view.centre[plane.normal]) * step > max(_CLICK_REACH_MM, step):
            continue
        place = (
            (zyx[plane.columns] + 0.5) * view.spacing[plane.columns],
            (zyx[plane.rows] + 0.5) * view.spacing[plane.rows],
        )
        colour = FOREGROUND_COLOUR if is_foreground else BACKGROUND_COLOUR
        few = len(clicks) < 10
        axes.plot(*place, "o", color=colour, ms=9 if few else 5, mec=INK, mew=0.8)
        if few:
            axes.annotate(str(number), place, ha="center", va="center_baseline", **_NUMBER)


def _draw_scale_bar(axes: Axes) -> None:
    """Draw a bar of a round length, about a quarter of the width, into the lower left corner."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    length = max(n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n == 1 or n <= 0.3 * (right - left))
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    rim = [withStroke(linewidth=2, foreground=INK)]
    bar = Rectangle((x, y), length, 0.012 * (top - bottom), fc="white", ec=INK, lw=0.6)
    axes.add_patch(bar)
    axes.annotate(
        f"{length} mm",
        (x, y),
        xytext=(0, 6),
        textcoords="offset points",
        color="white",
        fontsize=8,
        path_effects=rim,
    )


def _legend(clicks: Sequence[Click]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, lw=2.5, label="truth"),
        Line2D([], [], color=PREDICTION_COLOUR, lw=2.5, label="prediction"),
    ]
    for kind, colour, name in (
        (True, FOREGROUND_COLOUR, "click: object"),
        (False, BACKGROUND_COLOUR, "click: background"),
    ):
        if any(is_foreground == kind for _, is_foreground in clicks):
            style = {"marker": "o", "ms": 7, "mec": INK, "mew": 0.8, "ls": ""}
            handles.append(Line2D([], [], color=colour, label=name, **style))
    return handles


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Average each value with its neighbours, with fewer of them near the ends."""
    kernel = np.ones(window)
    totals = np.convolve(values, kernel, mode="same")
    return totals / np.convolve(np.ones(len(values)), kernel, mode="same")


def _read_metrics(path: Path) -> list[dict]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        rows = [row for row in rows if np.isfinite(row["loss"]) and np.isfinite(row["step"])]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as training metrics ({error!r}); expected one JSON object a "
            'line with numbers "step" and "loss". Give the metrics.jsonl of a training run.'
        ) from error
    if not rows:
        raise InputError(
            f"{path}: holds no step with a finite loss; expected at least one. Train first."
        )
    return rows


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=_DPI)
