"""DSC, NSD and the area under the interaction curve, as in the CVPR 2025 challenge.

Conventions:

* Masks and label volumes are ``(D, H, W)``; a label volume holds class ids, 0 is background.
* ``spacing_zyx`` is millimetres in array order. The challenge's evaluator passes the file's
  ``(x, y, z)`` spacing by mistake: the official score is ``nsd(..., spacing_xyz)``, the
  geometrically right one ``nsd(..., spacing_xyz[::-1])``.
* Only classes present in the truth count; predictions of other classes are ignored.

NSD is DeepMind's surface DSC at a tolerance (arXiv:1809.04430): surfaces are cut into elements by
the 2x2x2 neighbourhoods, each weighted by its area, and an element is correct if the other
surface is within the tolerance. The table of areas comes from the ``surface_distance`` package. Its
distance function is not used: it fails under NumPy 2 if a mask is empty, and it measures
every voxel although only those on a surface matter. The tests compare both.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from utils.errors import InputError

#: The evaluator scores an NSD of 0, without computing it, unless the mean DSC is above this.
CHALLENGE_DSC_FLOOR = 0.2

#: Up to this many voxel offsets, looking up each is faster than one distance transform.
_MAX_OFFSETS = 600


def dsc(gt_mask: np.ndarray, seg_mask: np.ndarray) -> float:
    """Return the volumetric Dice score of two masks; 1 if both are empty, 0 if one is."""
    gt_mask, seg_mask = _as_masks(gt_mask, seg_mask)
    volume = np.count_nonzero(gt_mask) + np.count_nonzero(seg_mask)
    if volume == 0:
        return 1.0
    return 2.0 * np.count_nonzero(gt_mask & seg_mask) / volume


def nsd(
    gt_mask: np.ndarray,
    seg_mask: np.ndarray,
    spacing_zyx: Sequence[float],
    tolerance_mm: float = 2.0,
) -> float:
    """Return the normalised surface Dice of two masks; 1 if both are empty, 0 if one is."""
    gt_mask, seg_mask = _as_masks(gt_mask, seg_mask)
    spacing = _checked_spacing(spacing_zyx, gt_mask.ndim)
    if not gt_mask.any() or not seg_mask.any():
        return float(gt_mask.any() == seg_mask.any())
    (box,) = ndimage.find_objects((gt_mask | seg_mask).view(np.uint8))
    gt_codes, seg_codes = _neighbour_codes(gt_mask[box]), _neighbour_codes(seg_mask[box])
    gt_surface, seg_surface = _is_surface(gt_codes), _is_surface(seg_codes)

    area_of_code = _surface_areas(spacing)
    gt_areas = area_of_code[gt_codes[gt_surface]]
    seg_areas = area_of_code[seg_codes[seg_surface]]
    gt_right = _within(gt_surface, seg_surface, spacing, tolerance_mm)
    seg_right = _within(seg_surface, gt_surface, spacing, tolerance_mm)
    right = gt_areas[gt_right].sum() + seg_areas[seg_right].sum()
    return float(right / (gt_areas.sum() + seg_areas.sum()))


def interaction_auc(click_scores: Sequence[float]) -> float:
    """Return the challenge's area under the score-over-clicks curve.

    Args:
        click_scores: the score after each click, without the box step, which does not count in
            the challenge.

    Returns:
        The area by the trapezoidal rule: at most the number of clicks less one, so 4 for five.
    """
    scores = np.asarray(click_scores, dtype=np.float64)
    if scores.ndim != 1 or len(scores) == 0:
        raise InputError(
            f"cannot take the area under scores of shape {scores.shape}; expected one score a "
            "click, and at least one. Pass the clicks of one target or one mean curve."
        )
    return float(np.trapezoid(scores))


def class_masks(
    gt: np.ndarray, seg: np.ndarray
) -> Iterator[tuple[int, tuple[slice, ...], np.ndarray, np.ndarray]]:
    """Yield for each class of the truth its id, the box around it in both volumes, and both masks.

    The masks are cut to the box. One pass over each volume finds the boxes of all classes.
    """
    gt, seg = _as_labels("gt", gt), _as_labels("seg", seg)
    _require_same_shape(gt, seg)
    seg_boxes = ndimage.find_objects(seg)
    for index, gt_box in enumerate(ndimage.find_objects(gt)):
        if gt_box is None:
            continue
        seg_box = seg_boxes[index] if index < len(seg_boxes) else None
        box = gt_box if seg_box is None else _union(gt_box, seg_box)
        yield index + 1, box, gt[box] == index + 1, seg[box] == index + 1


def _union(a: tuple[slice, ...], b: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True)
    )


def _neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Return the 8-bit code of each 2x2x2 neighbourhood; each axis gets one element longer.

    Corner ``(a, b, c)`` of the neighbourhood sets bit ``7 - (4a + 2b + c)``, the numbering of
    ``surface_distance``.
    """
    codes = np.pad(mask.view(np.uint8), 1)
    codes = (codes[:, :, :-1] << 1) | codes[:, :, 1:]
    codes = (codes[:, :-1] << 2) | codes[:, 1:]
    return (codes[:-1] << 4) | codes[1:]


def _is_surface(codes: np.ndarray) -> np.ndarray:
    return (codes != 0) & (codes != 255)


@lru_cache(maxsize=64)
def _surface_areas(spacing: tuple[float, float, float]) -> np.ndarray:
    """Return the (256,) surface area in mm2 of each neighbourhood code."""
    return create_table_neighbour_code_to_surface_area(spacing)


def _within(
    points: np.ndarray, other: np.ndarray, spacing: tuple[float, float, float], tolerance: float
) -> np.ndarray:
    """Return, for each True of ``points`` in C order, if a True of ``other`` is within reach."""
    reach = [
        min(int(tolerance / step) + 1, n) for step, n in zip(spacing, other.shape, strict=True)
    ]
    if 4 * np.prod(reach, dtype=float) > _MAX_OFFSETS:  # 4/3 pi: the volume of the ball
        return ndimage.distance_transform_edt(~other, sampling=spacing)[points] <= tolerance
    padded = np.pad(other, [(r, r) for r in reach])
    strides = np.array(padded.strides) // padded.itemsize
    places = (np.argwhere(points) + reach) @ strides
    flat, found = padded.ravel(), np.zeros(len(places), dtype=bool)
    waiting = np.arange(len(places))
    for step in _ball(tuple(reach), spacing, tolerance) @ strides:
        hit = flat[places[waiting] + step]
        found[waiting[hit]] = True
        waiting = waiting[~hit]
    return found


@lru_cache(maxsize=64)
def _ball(reach: tuple[int, ...], spacing: tuple[float, float, float], radius: float) -> np.ndarray:
    """Return the (N, 3) voxel offsets no farther than ``radius`` mm, nearest first."""
    offsets = np.array(list(product(*(range(-r, r + 1) for r in reach))))
    distances = np.sqrt(((offsets * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(distances, kind="stable")
    return offsets[order[distances[order] <= radius]]


def _as_masks(gt_mask: np.ndarray, seg_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    masks = [
        np.ascontiguousarray(_as_labels(name, mask), dtype=bool)
        for name, mask in (("gt_mask", gt_mask), ("seg_mask", seg_mask))
    ]
    _require_same_shape(*masks)
    return masks[0], masks[1]


def _as_labels(name: str, volume: np.ndarray) -> np.ndarray:
    volume = np.asarray(volume)
    if volume.dtype == bool:
        volume = volume.view(np.uint8)
    if volume.dtype.kind not in "iu" or volume.ndim != 3:
        raise InputError(
            f"{name} has dtype {volume.dtype} and shape {volume.shape}; scores need (D, H, W) "
            "masks or class ids. Threshold a probability map first."
        )
    return volume


def _require_same_shape(gt: np.ndarray, seg: np.ndarray) -> None:
    if gt.shape != seg.shape:
        raise InputError(
            f"the truth has shape (D, H, W) {gt.shape} and the prediction {seg.shape}; expected "
            "one grid. Paste the prediction back onto the case's grid before scoring it."
        )


def _checked_spacing(spacing: Sequence[float], num_dims: int) -> tuple[float, float, float]:
    values = tuple(float(s) for s in np.ravel(spacing))
    if len(values) != num_dims or not all(0 < value < np.inf for value in values):
        raise InputError(
            f"spacing is {values}; expected {num_dims} positive lengths in mm, in array order. "
            "Correct the case's spacing."
        )
    return values
