"""The challenge evaluator's scores of a label volume, as an oracle; values are golden in data/.

The package scores each target alone and leaves means and the floor to `CaseScore`.
"""

from collections.abc import Sequence

import numpy as np

from utils.results.metrics import CHALLENGE_DSC_FLOOR, class_masks, dsc, nsd


def per_class_dsc(gt: np.ndarray, seg: np.ndarray) -> dict[int, float]:
    """Return the DSC of every class present in ``gt``, by class id."""
    return {label: dsc(*masks) for label, _, *masks in class_masks(gt, seg)}


def per_class_nsd(
    gt: np.ndarray, seg: np.ndarray, spacing: Sequence[float], tolerance_mm: float = 2.0
) -> dict[int, float]:
    """Return the NSD of every class present in ``gt``, by class id; ``spacing`` in array order."""
    return {label: nsd(*masks, spacing, tolerance_mm) for label, _, *masks in class_masks(gt, seg)}


def multi_class_dsc(gt: np.ndarray, seg: np.ndarray) -> float:
    """Return the mean DSC over the classes present in ``gt``; NaN if it has none."""
    return _mean(per_class_dsc(gt, seg))


def multi_class_nsd(
    gt: np.ndarray,
    seg: np.ndarray,
    spacing: Sequence[float],
    tolerance_mm: float = 2.0,
    *,
    dsc_floor: float | None = CHALLENGE_DSC_FLOOR,
) -> float:
    """Return the mean NSD over the classes present in ``gt``; NaN if it has none.

    Args:
        gt, seg: (D, H, W) class ids.
        spacing: mm in array order; the evaluator passes ``(x, y, z)`` by mistake.
        tolerance_mm: how far a surface element may lie from the other surface and be right.
        dsc_floor: 0 is returned unless the mean DSC is above it, as the challenge does;
            None scores every case.
    """
    if dsc_floor is not None and multi_class_dsc(gt, seg) <= dsc_floor:
        return 0.0
    return _mean(per_class_nsd(gt, seg, spacing, tolerance_mm))


def _mean(scores: dict[int, float]) -> float:
    return float(np.mean(list(scores.values()))) if scores else float("nan")
