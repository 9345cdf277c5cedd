"""Quick operations on the cells of a crop: smoothing, morphology, halving and doubling.

Masks are (C, C, C) bool. Shifted copies and products with small matrices are several times as fast
as SciPy's filters on such grids.
"""

import numpy as np
from scipy import ndimage

from utils.volumes.components import face_components


def halved(volume: np.ndarray) -> np.ndarray:
    """Average 2 x 2 x 2 voxels of floats; count them in integers."""
    volume = volume[::2] + volume[1::2]
    volume = volume[:, ::2] + volume[:, 1::2]
    volume = volume[:, :, ::2] + volume[:, :, 1::2]
    return volume if volume.dtype == np.uint8 else volume * np.float32(0.125)


def smoothed(cells: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth with a Gaussian, by a product with one small matrix for each axis."""
    side = len(cells)
    places = np.arange(side)
    weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum(axis=0)
    for _ in range(3):  # each product smooths the first axis and moves it to the end
        cells = (cells.reshape(side, -1).T @ weights).reshape(cells.shape)
    return cells


def dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    """Add the cells that share a face with the mask, ``steps`` times."""
    for _ in range(steps):
        mask = ~eroded(~mask)
    return mask


def eroded(mask: np.ndarray) -> np.ndarray:
    """Keep the cells whose neighbours across all faces are inside; the crop's border removes none.

    Shifted copies are several times as fast as SciPy's erosion.
    """
    kept = mask.copy()
    kept[1:] &= mask[:-1]
    kept[:-1] &= mask[1:]
    kept[:, 1:] &= mask[:, :-1]
    kept[:, :-1] &= mask[:, 1:]
    kept[:, :, 1:] &= mask[:, :, :-1]
    kept[:, :, :-1] &= mask[:, :, 1:]
    return kept


def opened(mask: np.ndarray) -> np.ndarray:
    """Remove what is thinner than three cells: erode, then dilate."""
    return dilated(eroded(mask), 1)


def rounded(mask: np.ndarray) -> np.ndarray:
    """Smooth the border of a mask; this also removes bridges of one cell and fills pits.

    Cells are averaged with the weights 1, 2, 1 along each axis. The sums are small integers.
    """
    values = mask.view(np.uint8)
    for axis in range(3):
        out = 2 * values
        near, cells = np.moveaxis(values, axis, 0), np.moveaxis(out, axis, 0)
        cells[1:] += near[:-1]
        cells[:-1] += near[1:]
        cells[0] += near[0]
        cells[-1] += near[-1]
        values = out
    return values > 32


def filled(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of a mask: outside cells that no path of faces joins with the border."""
    outside, _ = face_components(np.pad(~mask, 1, constant_values=True))
    return outside[1:-1, 1:-1, 1:-1] != outside[0, 0, 0]


def largest(mask: np.ndarray) -> np.ndarray | None:
    """Return the largest component, connected by faces; None for an empty mask."""
    labels, count = face_components(mask)
    if not count:
        return None
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax() if count > 1 else mask


def doubled(mask: np.ndarray) -> np.ndarray:
    """Upsample a mask to twice its edge: linear interpolation, inside where it is 1/2 or more.

    Weights are quarters, so that sums of small integers suffice. What is connected by faces stays
    connected.
    """
    boxes = ndimage.find_objects(mask.view(np.uint8))
    box = tuple(
        slice(max(side.start - 1, 0), min(side.stop + 1, n))
        for side, n in zip(boxes[0], mask.shape, strict=True)
    )
    values = interpolated(mask[box].view(np.uint8))
    whole = np.zeros([2 * n for n in mask.shape], bool)
    whole[tuple(slice(2 * side.start, 2 * side.stop) for side in box)] = values >= 32
    return whole


def interpolated(cells: np.ndarray) -> np.ndarray:
    """Upsample to twice the edges, linearly; the values are 64 times as large as the cells'.

    Integers stay integers, since all weights are quarters.
    """
    for axis in (2, 1, 0):
        shape = list(cells.shape)
        shape[axis] *= 2
        out = np.empty(shape, cells.dtype)
        near, voxels = np.moveaxis(cells, axis, 0), np.moveaxis(out, axis, 0)
        voxels[0::2] = voxels[1::2] = near
        voxels *= 3
        voxels[2::2] += near[:-1]
        voxels[1:-1:2] += near[1:]
        voxels[0] += near[0]
        voxels[-1] += near[-1]
        cells = out
    return cells
