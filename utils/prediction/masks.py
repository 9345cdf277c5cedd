"""From logits in a cube to masks on the image.

Logits are resampled to the image's voxels, corrected where they contradict a click (honouring.py),
and compared between targets. A logit above 0 means target. Boxes and voxels are array coordinates
``(z, y, x)``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from utils.prediction.region import Extent, extent_in
from utils.volumes.components import connected_components
from utils.volumes.geometry import CropGrid

#: The logit of a corrected voxel, with either sign: sigmoid 0.98.
SURE_LOGIT = 4.0
#: The logit of voxels outside of the cube: background.
OUTSIDE_LOGIT = -20.0
#: A cell of a thin mask counts as mask if one of its voxels has at least this share; `cell_means`.
THIN = 0.1


#: A box of the image's voxels, along z, y, x.
Box = tuple[slice, slice, slice]


def shared(one: Box, other: Box) -> Box | None:
    """Return the voxels that two boxes share; None if there are none."""
    both = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return both if all(side.start < side.stop for side in both) else None


def within(inner: Box, outer: Box) -> Box:
    """Return a box as a part of an array that fills another box around it."""
    return tuple(
        slice(side.start - around.start, side.stop - around.start)
        for side, around in zip(inner, outer, strict=True)
    )


@dataclass
class LogitBox:
    """Logits on a box of the image's voxels; everything outside of the box is background."""

    box: Box
    values: np.ndarray  # (d, h, w) float32, the box's shape

    @classmethod
    def from_low_res(cls, grid: CropGrid, low_res: np.ndarray) -> "LogitBox":
        """Resample low-resolution logits (m, m, m) from a cube to the image's voxels.

        The box holds the mask and a margin of one cell: no logit beyond it is above 0.
        """
        extent = extent_in(grid, low_res > 0)
        if extent is None:
            return cls((slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32))
        cell = grid.size / low_res.shape[0]
        box = []
        for axis, side in enumerate(grid.covered_box()):
            margin = cell * abs(grid.steps[grid.axes.index(axis)])
            start = max(side.start, math.floor(extent.low[axis] - margin))
            stop = min(side.stop, math.ceil(extent.high[axis] + margin) + 1)
            box.append(slice(start, max(start, stop)))
        box = tuple(box)
        return cls(box, grid.paste_box(low_res, box))

    @property
    def start(self) -> np.ndarray:
        """The box's first voxel (z, y, x)."""
        return np.array([side.start for side in self.box])

    @property
    def stop(self) -> np.ndarray:
        """The voxel (z, y, x) after the box's last."""
        return np.array([side.stop for side in self.box])

    def holds(self, zyx: Sequence[int]) -> bool:
        """Tell whether a voxel of the image lies in the box."""
        return all(side.start <= c < side.stop for side, c in zip(self.box, zyx, strict=True))

    def extended_to(
        self, zyx: Sequence[int], margin: Sequence[int], shape: tuple[int, int, int]
    ) -> "LogitBox":
        """Return a larger box that also holds a voxel and ``margin`` voxels on each side of it.

        If the box holds them already, it is returned itself.

        Args:
            shape: of the image, (D, H, W); the box is cut to it.
        """
        if not self.values.size:
            voxel = tuple(slice(c, c + 1) for c in zyx)
            return LogitBox(voxel, np.full((1, 1, 1), OUTSIDE_LOGIT, np.float32)).extended_to(
                zyx, margin, shape
            )
        box = tuple(
            slice(max(0, min(side.start, c - m)), min(n, max(side.stop, c + m + 1)))
            for side, c, m, n in zip(self.box, zyx, margin, shape, strict=True)
        )
        if box == self.box:
            return self
        pads = [
            (old.start - new.start, new.stop - old.stop)
            for old, new in zip(self.box, box, strict=True)
        ]
        return LogitBox(box, np.pad(self.values, pads, constant_values=OUTSIDE_LOGIT))


def merge(boxes: Sequence[LogitBox]) -> LogitBox:
    """Return the maximum logit at each voxel, on the box around all boxes."""
    filled = [each for each in boxes if each.values.size] or boxes[:1]
    if len(filled) == 1:
        return filled[0]
    box = tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*(each.box for each in filled), strict=True)
    )
    start = np.array([side.start for side in box])
    logits = np.full([side.stop - side.start for side in box], OUTSIDE_LOGIT, np.float32)
    for each in filled:
        low = each.start - start
        place = tuple(slice(a, a + n) for a, n in zip(low, each.values.shape, strict=True))
        logits[place] = np.maximum(logits[place], each.values)
    return LogitBox(box, logits)


def cell_means(shares: np.ndarray, cells: int) -> np.ndarray:
    """Average shares of a mask (S, S, S), from 0 to 1, over cells: (cells, cells, cells) float32.

    A mask thinner than a cell would vanish. So where no cell nearby is half full, a cell counts as
    mask if any of its voxels has a share of `THIN`.

    Args:
        cells: divides S.
    """
    from scipy import ndimage  # slow to import, and needed for mask prompts alone

    edge = shares.shape[0] // cells
    blocks = shares.reshape(cells, edge, cells, edge, cells, edge)
    mean = np.zeros((cells,) * 3, np.float32)
    for inside in np.ndindex((edge,) * 3):
        mean += blocks[:, inside[0], :, inside[1], :, inside[2]]
    mean /= edge**3
    fullest_nearby = ndimage.maximum_filter(mean, size=3)
    lost = (blocks.max(axis=(1, 3, 5)) >= THIN) & (fullest_nearby < 0.5)
    return np.where(lost, np.float32(1), mean)


def keep_prompted(
    logits: LogitBox, seeds: Iterable[Sequence[float]], extent: Extent | None = None
) -> LogitBox:
    """Keep the connected components of the mask that hold a seed or reach into an extent.

    All components stay where none does. A seed between two voxels counts for both.

    Args:
        seeds: places (z, y, x) on the image where the target is.
        extent: a box on the image around the target; None: no box.
    """
    mask = logits.values > 0
    if not mask.any():
        return logits
    labels, count = connected_components(mask)
    places = np.array(list(seeds), float).reshape(-1, 3)
    voxels = np.vstack([np.floor(places), np.ceil(places)]).astype(int) - logits.start
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(axis=1)
    kept = np.zeros(count + 1, bool)
    kept[labels[tuple(voxels[inside].T)]] = True
    if extent is not None:
        first = np.maximum(np.floor(extent.low + 0.5).astype(int) - logits.start, 0)
        last = np.maximum(np.ceil(extent.high + 0.5).astype(int) - logits.start, 0)
        kept[np.unique(labels[tuple(map(slice, first, last))])] = True
    kept[0] = False
    if not kept.any() or kept[1:].all():
        return logits
    dropped = ~kept
    dropped[0] = False
    return LogitBox(logits.box, np.where(dropped[labels], -SURE_LOGIT, logits.values))


def compete(shape: tuple[int, int, int], targets: Iterable[tuple[int, LogitBox]]) -> np.ndarray:
    """Give every voxel to the target with the highest logit there; 0 where no logit is above 0.

    Args:
        shape: of the image, (D, H, W).
        targets: pairs (target id, logits). Of equal logits the first counts.

    Returns:
        (D, H, W) target ids, uint8, or uint16 if an id is above 255.
    """
    answer = np.zeros(shape, np.uint8)
    best: np.ndarray | None = None  # of all targets but the last, the highest logit
    last: LogitBox | None = None
    for number, logits in targets:
        if number > 255:
            answer = answer.astype(np.uint16, copy=False)
        if last is not None:
            best = np.zeros(shape, np.float32) if best is None else best
            np.maximum(best[last.box], last.values, out=best[last.box])
        above = np.broadcast_to(np.float32(0), shape) if best is None else best
        # Plane by plane, so that what was read is still in the processor's cache.
        for ids, values, highest in zip(
            answer[logits.box], logits.values, above[logits.box], strict=True
        ):
            np.copyto(ids, number, where=values > highest)
        last = logits
    return answer
