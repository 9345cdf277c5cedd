"""Overlays: the three planes through a target, with both outlines and the clicks.

The truth is green and the prediction magenta, which colour-blind readers can tell apart. Planes are
drawn in millimetres. Axial: x to the right, y downwards; coronal and sagittal: z upwards, so that
superior is on top if the array's axes point as in the challenge's files.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from utils.errors import InputError
from utils.prompts.kinds import Click
from utils.results.style import INK, LEGEND

TRUTH_COLOUR, PREDICTION_COLOUR = "#39d353", "#ff4fd8"
FOREGROUND_COLOUR, BACKGROUND_COLOUR = "#ffd60a", "#4cc9f0"

#: The margin around truth, prediction and clicks, and the smallest view, in mm.
_MARGIN_MM, _SMALLEST_VIEW_MM = 15.0, 60.0
#: A plane shows the clicks that are at most this far from it, or one voxel if that is more.
_CLICK_REACH_MM = 4.0
_FIGURE_WIDTH = 10.0  # inches

_SMALL = {"fontsize": 9, "color": INK}
_NUMBER = {"fontsize": 6.5, "color": INK, "fontweight": "bold"}


class _Plane(NamedTuple):
    name: str
    normal: int  # the axis perpendicular to the plane; rows and columns are the other two
    rows: int
    columns: int
    upwards: bool


_PLANES = (
    _Plane("axial", 0, 1, 2, upwards=False),
    _Plane("coronal", 1, 0, 2, upwards=True),
    _Plane("sagittal", 2, 0, 1, upwards=True),
)


class _View(NamedTuple):
    centre: np.ndarray  # (3,) the voxel that all planes contain
    box: tuple[slice, slice, slice]  # what is shown
    spacing: np.ndarray  # (3,) mm
    levels: np.ndarray  # (2,) intensities drawn black and white


def overlay_figure(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_zyx: Sequence[float],
    clicks: Sequence[Click] = (),
    title: str = "",
) -> Figure:
    """Draw the three planes through the truth's centre, with both outlines and the clicks.

    Without a truth the planes go through the prediction's centre, without both through the
    volume's.

    Args:
        image: (D, H, W) intensities.
        truth, prediction: (D, H, W) masks; either may be empty.
        spacing_zyx: mm.
        clicks: in the order clicked.
        title: one line above the planes.
    """
    truth, prediction = np.asarray(truth) != 0, np.asarray(prediction) != 0
    if image.ndim != 3 or not image.shape == truth.shape == prediction.shape:
        raise InputError(
            f"{title or 'overlay'}: image, truth and prediction have shapes {image.shape}, "
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
    figure.legend(handles=_legend(clicks), loc="outside lower center", ncols=4, **LEGEND)
    return figure


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
    """Draw a bar of a round length, about a quarter of the width, in the lower left corner."""
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
