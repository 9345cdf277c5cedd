"""The next simulated click: by the challenge's rule, or by the rule of training.

Both compare a predicted with a true mask, (D, H, W) booleans, and return a `Click`: the voxel
``(z, y, x)`` and whether it belongs to the object (foreground) or not (background). They return
None where the masks agree. Distances are in voxels, not mm, as in the challenge's evaluator.
NumPy's global random state is neither read nor changed.
"""

import math

import numpy as np
from scipy import ndimage

from utils.errors import InputError
from utils.prompts.kinds import Click
from utils.volumes.components import component_sizes, connected_components

#: Padded boxes with more voxels than this are max-pooled 2x2x2 before distances are measured.
MAX_BOX_VOXELS = 60_000_000

#: Voxels processed at a time, so that they stay in the processor's cache.
_SLAB_VOXELS = 65_536


def challenge_click(
    pred_mask: np.ndarray, gt_mask: np.ndarray, *, max_box_voxels: int = MAX_BOX_VOXELS
) -> Click | None:
    """Return the evaluator's next click: the deepest voxel of the largest error.

    An error is a connected component of wrong voxels (26 neighbours: faces, edges and corners).
    Deep means far from the component's border. Among equally large components the first in C order
    counts. Among equally deep voxels one is drawn, as after ``numpy.random.seed(42)``. Where the
    component's padded box has more than ``max_box_voxels``, the box is max-pooled. The clicked
    voxel may then lie beside the error, as in the evaluator.
    """
    error, gt_mask = _error(pred_mask, gt_mask)
    return _centre_click(error, gt_mask, max_box_voxels)


def training_click(
    pred_mask: np.ndarray,
    gt_mask: np.ndarray,
    rng: np.random.Generator,
    centre_probability: float = 0.5,
) -> Click | None:
    """Return the challenge's click with ``centre_probability``, else any error voxel at random."""
    error, gt_mask = _error(pred_mask, gt_mask)
    if rng.random() < centre_probability:
        return _centre_click(error, gt_mask, MAX_BOX_VOXELS)
    places = np.flatnonzero(error)
    if len(places) == 0:
        return None
    return _click(np.unravel_index(rng.choice(places), error.shape), gt_mask)


def mended_share(before: np.ndarray, after: np.ndarray, gt_mask: np.ndarray, click: Click) -> float:
    """Return the share of the clicked error that a click removed, from 0 to 1.

    The clicked error is the connected component (26 neighbours) in which the click lies. For a
    click in a missed region, the share is the part of the region that the click filled. NaN for a
    click outside all errors.

    Args:
        before, after: the predicted masks before and after the click.
    """
    error, gt_mask = _error(before, gt_mask)
    if not error[click.zyx]:
        return math.nan
    (outer,) = ndimage.find_objects(error.view(np.uint8))
    labels, _ = connected_components(error[outer])
    place = tuple(c - side.start for c, side in zip(click.zyx, outer, strict=True))
    clicked = labels == labels[place]
    return float((after[outer].astype(bool) == gt_mask[outer])[clicked].mean())


def _error(pred_mask: np.ndarray, gt_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels where the masks differ, in C order, and the true mask, both boolean."""
    pred_mask, gt_mask = np.asarray(pred_mask), np.asarray(gt_mask)
    if pred_mask.shape != gt_mask.shape or gt_mask.ndim != 3:
        raise InputError(
            f"the prediction has shape {pred_mask.shape} and the truth {gt_mask.shape}. Expected "
            "two masks (D, H, W) of one class on one grid: paste the prediction back first."
        )
    gt_mask = gt_mask.astype(bool, copy=False)
    return np.ascontiguousarray(pred_mask.astype(bool, copy=False) ^ gt_mask), gt_mask


def _click(voxel: tuple[np.intp, ...], gt_mask: np.ndarray) -> Click:
    z, y, x = (int(index) for index in voxel)
    return Click((z, y, x), bool(gt_mask[z, y, x]))


def _centre_click(error: np.ndarray, gt_mask: np.ndarray, max_box_voxels: int) -> Click | None:
    component = _largest_component(error)
    if component is None:
        return None
    component, start = component
    depths = _depths(component, max_box_voxels)
    deepest = np.flatnonzero(depths == depths.max())
    drawn = np.random.RandomState(42).choice(len(deepest))
    voxel = np.unravel_index(deepest[drawn], component.shape)
    return _click(tuple(voxel + start), gt_mask)


def _largest_component(error: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the largest 26-connected component cut to its box, and the box's first voxel."""
    boxes = ndimage.find_objects(error.view(np.uint8))
    if not boxes:
        return None
    (outer,) = boxes
    labels, count = connected_components(error[outer])
    start = np.array([side.start for side in outer])
    if count == 1:
        return error[outer], start
    largest = labels == 1 + np.argmax(component_sizes(labels, count)[1:])
    (inner,) = ndimage.find_objects(largest.view(np.uint8))
    return largest[inner], start + [side.start for side in inner]


def _depths(component: np.ndarray, max_box_voxels: int) -> np.ndarray:
    """Return a number per voxel that grows with the distance to the outside of the component.

    The component fills its box. The evaluator pads the box by a quarter (at least one voxel) on
    every side. Without pooling, one layer of padding gives the same distances, since the first
    layer is the nearest. With pooling, the distances depend on all layers.
    """
    padding = np.maximum(np.array(component.shape) // 4, 1)
    if np.prod(component.shape + 2 * padding) > max_box_voxels:
        return _pooled_depths(component, padding)
    return _squared_distances(np.pad(component, 1))[1:-1, 1:-1, 1:-1]


def _pooled_depths(component: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """Return distances measured after 2x2x2 max-pooling, repeated onto the original voxels."""
    even = (np.array(component.shape) + 2 * padding) % 2  # one more voxel where the length is odd
    box = np.pad(component, [(p, p + e) for p, e in zip(padding, even, strict=True)])
    d, h, w = (n // 2 for n in box.shape)
    pooled = box.reshape(d, 2, h, 2, w, 2).any(axis=(1, 3, 5))
    depths = ndimage.distance_transform_edt(pooled)
    for axis in range(3):
        depths = depths.repeat(2, axis=axis)
    return depths[tuple(slice(p, p + n) for p, n in zip(padding, component.shape, strict=True))]


def _squared_distances(mask: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distance in voxels to the nearest False.

    Exact integers: runs along the first axis, then the minimum over parabolas along the other two
    (Felzenszwalb and Huttenlocher, 2012), plane by plane. Two to seven times as fast as SciPy.

    Args:
        mask: (D, H, W) booleans, False on the whole border.
    """
    depth, height, width = mask.shape
    # Distances along the first axis are at most depth / 2. Each k**2 that is added to their squares
    # below is smaller than the largest square, so the sums fit the dtype.
    squared = np.zeros(mask.shape, np.int16 if depth <= 256 else np.int32)
    for z in range(1, depth):
        np.multiply(squared[z - 1] + 1, mask[z], out=squared[z])
    for z in range(depth - 2, 0, -1):
        np.minimum(squared[z], squared[z + 1] + 1, out=squared[z])
    np.multiply(squared, squared, out=squared)
    planes = max(1, _SLAB_VOXELS // (height * width))
    for z in range(0, depth, planes):
        slab = squared[z : z + planes]
        _lower_parabolas(slab, axis=1)
        _lower_parabolas(slab, axis=2)
    return squared


def _lower_parabolas(squared: np.ndarray, axis: int) -> None:
    """Replace ``f(i)`` by the minimum over k of ``f(i + k) + k**2`` along ``axis``, in place."""
    before = squared.copy()
    raised = np.empty_like(squared)
    k = 1
    while k * k < squared.max():
        head = (slice(None),) * axis + (slice(None, -k),)
        tail = (slice(None),) * axis + (slice(k, None),)
        np.add(before, before.dtype.type(k * k), out=raised)
        np.minimum(squared[tail], raised[head], out=squared[tail])
        np.minimum(squared[head], raised[tail], out=squared[head])
        k += 1
