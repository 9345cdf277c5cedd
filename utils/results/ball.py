"""The baseline without a network: a ball around the click.

A network is worth its time only if it scores higher than the best ball of one fixed radius.
"""

from collections.abc import Sequence

import numpy as np

from utils.errors import InputError
from utils.results.metrics import nsd

#: Radii that validation tries, in mm.
BALL_RADII_MM = np.arange(1.0, 101.0)


def ball_dsc_curve(
    gt_mask: np.ndarray,
    click_zyx: Sequence[int],
    spacing_zyx: Sequence[float],
    radii_mm: Sequence[float],
) -> np.ndarray:
    """Return the DSC of the ball of each radius around the click with the truth.

    A ball holds the voxels whose centres are at most the radius away from the click's, and is
    clipped to the volume. One histogram of the distances serves all radii.

    Args:
        gt_mask: (D, H, W) booleans, not empty.
        click_zyx: voxel inside the volume.
        spacing_zyx: mm.
        radii_mm: increasing.

    Returns:
        (len(radii_mm),) scores.
    """
    gt_mask = np.asarray(gt_mask).astype(bool, copy=False)
    radii = _checked_radii(radii_mm)
    if not gt_mask.any():
        raise InputError("the truth is empty; expected at least one voxel. Leave the class out.")
    if any(not 0 <= c < n for c, n in zip(click_zyx, gt_mask.shape, strict=True)):
        raise InputError(
            f"the click (z, y, x) {tuple(click_zyx)} is outside of the volume (D, H, W) "
            f"{gt_mask.shape}; expected a voxel of it. Give the click in array order."
        )
    squared, box = _squared_distances(click_zyx, spacing_zyx, gt_mask.shape, radii[-1])
    first_ball = np.searchsorted(radii**2, squared.ravel())
    inside = gt_mask[box].ravel()
    ball = np.cumsum(np.bincount(first_ball, minlength=len(radii) + 1)[:-1])
    overlap = np.cumsum(np.bincount(first_ball[inside], minlength=len(radii) + 1)[:-1])
    return 2.0 * overlap / (ball + np.count_nonzero(gt_mask))


def ball_nsd(
    gt_mask: np.ndarray,
    click_zyx: Sequence[int],
    spacing_zyx: Sequence[float],
    radius_mm: float,
) -> float:
    """Return the NSD (2 mm) of one ball around the click with the truth; see `ball_dsc_curve`."""
    ball = np.zeros(gt_mask.shape, bool)
    squared, box = _squared_distances(click_zyx, spacing_zyx, gt_mask.shape, radius_mm)
    ball[box] = squared <= radius_mm**2
    return nsd(gt_mask, ball, spacing_zyx)


def best_fixed_radius(curves: np.ndarray, radii_mm: Sequence[float]) -> tuple[float, float]:
    """Return the radius with the highest mean score and that mean; the smallest among equals.

    Args:
        curves: (cases, radii) scores from `ball_dsc_curve`.
        radii_mm: the radii of the columns.
    """
    curves, radii = np.asarray(curves, dtype=np.float64), _checked_radii(radii_mm)
    if curves.ndim != 2 or len(curves) == 0 or curves.shape[1] != len(radii):
        raise InputError(
            f"the curves have shape {curves.shape}; expected (cases, {len(radii)}) with at least "
            "one case. Stack one curve a case, all for these radii."
        )
    means = curves.mean(axis=0)
    best = int(np.argmax(means))
    return float(radii[best]), float(means[best])


def _squared_distances(
    click_zyx: Sequence[int], spacing_zyx: Sequence[float], shape: tuple[int, ...], radius_mm: float
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Return squared distances to the click in mm2, and the box of the volume that they fill."""
    axes, box = [], []
    for click, step, size in zip(click_zyx, spacing_zyx, shape, strict=True):
        reach = int(radius_mm / step) + 1
        side = slice(max(click - reach, 0), min(click + reach + 1, size))
        axes.append(((np.arange(side.start, side.stop) - click) * step) ** 2)
        box.append(side)
    z, y, x = np.ix_(*axes)
    return z + y + x, tuple(box)


def _checked_radii(radii_mm: Sequence[float]) -> np.ndarray:
    radii = np.asarray(radii_mm, dtype=np.float64)
    if radii.ndim != 1 or len(radii) == 0 or radii[0] < 0 or (np.diff(radii) <= 0).any():
        raise InputError(
            f"the radii are {radii.tolist()}; expected lengths in mm that increase. Sort them and "
            "remove duplicates."
        )
    return radii
