"""Detail for large targets: overlapping small cubes, whose logits are blended over a coarse mask.

The cubes, called tiles, stand on a lattice that depends on the image alone. So another mask, or
another target, needs the same tiles, and their image embeddings are reused.
"""

import itertools
import math
from collections.abc import Iterable

import numpy as np

from utils.prediction.masks import LogitBox, shared, within
from utils.prediction.region import Extent, Region, Scene
from utils.volumes.geometry import CropGrid

#: Distance between neighbouring tiles, as a share of their edge.
STRIDE = 0.75
#: Weight of the coarse mask: it decides only where no tile lies.
LEAST_WEIGHT = 1e-6
#: Tiles of the lattice along an axis, at most.
MOST_ALONG = 1000


def lattice(scene: Scene, extent: Extent, spacing_mm: float, most: int) -> list[Region]:
    """Return the tiles that overlap an extent.

    Args:
        spacing_mm: of the tiles' voxels. It is increased by half until there are few enough tiles.
        most: tiles allowed.
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
    """Return how many tiles cover the whole image along an axis; lengths in voxels."""
    return math.ceil(max(length - edge, 0) / (STRIDE * edge)) + 1


def _starts(low: float, high: float, edge: float, length: int) -> list[float]:
    """Return where the tiles that overlap an extent begin along an axis.

    The lattice begins at -0.5, the border of the first voxel.
    """
    if length <= edge:
        return [(length - edge) / 2 - 0.5]
    starts = np.linspace(-0.5, length - edge - 0.5, _count(length, edge))
    return [float(s) for s in starts if s < high and s + edge > low]


def blended(coarse: LogitBox, tiles: Iterable[tuple[CropGrid, np.ndarray]]) -> LogitBox:
    """Average the logits of tiles at each voxel; coarse logits stay where no tile lies.

    A tile's weight falls from its middle to its border.

    Args:
        coarse: gives the box of the result.
        tiles: pairs of a cube and its low-resolution logits (m, m, m).
    """
    total = coarse.values * LEAST_WEIGHT
    weights = np.full(total.shape, LEAST_WEIGHT, np.float32)
    for grid, low_res in tiles:
        box = grid.covered_box()
        tile = LogitBox(box, grid.paste_box(low_res, box))
        depth = grid.paste_box(_hat(low_res.shape[0]), box)
        both = shared(tile.box, coarse.box)
        if both is not None:
            inner, outer = within(both, tile.box), within(both, coarse.box)
            total[outer] += (tile.values * depth)[inner]
            weights[outer] += depth[inner]
    return LogitBox(coarse.box, total / weights)


def _hat(cells: int) -> np.ndarray:
    """Return (cells, cells, cells) weights, 1 in the middle and almost 0 at the border."""
    along = 1 - np.abs((np.arange(cells) + 0.5) / cells * 2 - 1)
    return (along[:, None, None] * along[None, :, None] * along).astype(np.float32)
