"""Large targets in detail: overlapping cubes over a coarse mask, their logits blended (no torch).

The cubes stand on a lattice that belongs to the image, not to the mask, so that a mask that changes
a little, or another target, is seen through the same cubes, whose embeddings are kept.
"""

import itertools
import math
from collections.abc import Iterable

import numpy as np

from utils.prediction.masks import Part
from utils.prediction.region import Extent, Region, Scene
from utils.volumes.geometry import CropGrid

#: From one cube of the lattice to the next, as a share of the edge.
STRIDE = 0.75
#: Of the coarse mask: it counts where there is no cube.
LEAST_WEIGHT = 1e-6
#: Cubes of the lattice along an axis, at most.
MOST_ALONG = 1000


def lattice(scene: Scene, extent: Extent, spacing_mm: float, most: int) -> list[Region]:
    """Return the cubes of the image's lattice that an extent reaches into.

    Args:
        spacing_mm: of the cubes' voxels; made coarser until there are few enough.
        most: cubes.
    """
    while True:
        edge = spacing_mm * scene.rule.size / scene.voxel_mm  # in the image's voxels
        if max(map(_count, scene.shape, edge)) <= MOST_ALONG:
            along = list(map(_starts, extent.low, extent.high, edge, scene.shape))
            if math.prod(len(starts) for starts in along) <= most:
                break
        spacing_mm *= 1.5
    middle = (edge - 1) / 2
    return [
        Region(tuple(float(s + m + 0.5) for s, m in zip(start, middle, strict=True)), spacing_mm)
        for start in itertools.product(*along)
    ]


def _count(length: int, edge: float) -> int:
    """Return how many cubes cover the whole image along an axis."""
    return math.ceil(max(length - edge, 0) / (STRIDE * edge)) + 1


def _starts(low: float, high: float, edge: float, length: int) -> list[float]:
    """Return where the needed cubes of the lattice begin along an axis; the first is at -0.5."""
    if length <= edge:
        return [(length - edge) / 2 - 0.5]
    starts = np.linspace(-0.5, length - edge - 0.5, _count(length, edge))
    return [float(s) for s in starts if s < high and s + edge > low]


def blended(coarse: Part, tiles: Iterable[tuple[CropGrid, np.ndarray]]) -> Part:
    """Lay tiles over coarse logits, each the weightier the deeper a voxel lies in it.

    Args:
        tiles: cubes and their low-resolution logits (m, m, m).
    """
    total = coarse.logits * LEAST_WEIGHT
    weights = np.full(total.shape, LEAST_WEIGHT, np.float32)
    for grid, low_res in tiles:
        box = grid.covered_box()
        part = Part(box, grid.paste_box(low_res, box))
        depth = grid.paste_box(_hat(low_res.shape[0]), box)
        inner, outer = _overlap(part, coarse)
        total[outer] += (part.logits * depth)[inner]
        weights[outer] += depth[inner]
    return Part(coarse.box, total / weights)


def _hat(cells: int) -> np.ndarray:
    """Return (cells, cells, cells) weights from 1 in the middle to almost 0 at the border."""
    along = 1 - np.abs((np.arange(cells) + 0.5) / cells * 2 - 1)
    return (along[:, None, None] * along[None, :, None] * along).astype(np.float32)


def _overlap(part: Part, whole: Part) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where two parts meet, as indices into the one and into the other."""
    inner, outer = [], []
    for a, b in zip(part.box, whole.box, strict=True):
        start, stop = max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop))
        inner.append(slice(start - a.start, stop - a.start))
        outer.append(slice(start - b.start, stop - b.start))
    return tuple(inner), tuple(outer)
