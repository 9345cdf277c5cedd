"""From logits in a cube to masks on the image: clicks honoured, classes competing (no torch)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from utils.prediction.region import extent_in
from utils.prompts.kinds import Click
from utils.volumes.geometry import CropGrid, Triple

#: A mended voxel's logit: sigmoid 0.98 one way or the other.
SURE_LOGIT = 4.0
#: Width of a mended spot: cells of the low-resolution mask, and at least so many voxels.
SPOT_CELLS, SPOT_VOXELS = 1.0, 1.0
#: Widths from its middle to where a spot ends.
SPOT_REACH = 2.5
#: What lies beyond the cube: certainly background.
OUTSIDE_LOGIT = -20.0


@dataclass
class Part:
    """Logits on a box of the image, background outside of it."""

    box: tuple[slice, slice, slice]
    logits: np.ndarray  # (d, h, w) float32, the box's shape

    @classmethod
    def of(cls, grid: CropGrid, low_res: np.ndarray) -> "Part":
        """Resample low-resolution logits (m, m, m) from the cube onto the image's voxels.

        The box is no larger than the mask and a cell around it: beyond, nothing is above 0.
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
        """Say whether a voxel of the image lies in the box."""
        return all(side.start <= c < side.stop for side, c in zip(self.box, zyx, strict=True))

    def around(
        self, zyx: Sequence[int], margin: Sequence[int], shape: tuple[int, int, int]
    ) -> "Part":
        """Return a part that also holds a voxel and ``margin`` more along each axis around it."""
        if not self.logits.size:
            voxel = tuple(slice(c, c + 1) for c in zyx)
            return Part(voxel, np.full((1, 1, 1), OUTSIDE_LOGIT, np.float32)).around(
                zyx, margin, shape
            )
        box = tuple(
            slice(max(0, min(side.start, c - m)), min(n, max(side.stop, c + m + 1)))
            for side, c, m, n in zip(self.box, zyx, margin, shape, strict=True)
        )
        pads = [
            (old.start - new.start, new.stop - old.stop)
            for old, new in zip(self.box, box, strict=True)
        ]
        return Part(box, np.pad(self.logits, pads, constant_values=OUTSIDE_LOGIT))


def united(parts: Sequence[Part]) -> Part:
    """Return the box around all parts with the highest logit that any has."""
    filled = [part for part in parts if part.logits.size] or parts[:1]
    if len(filled) == 1:
        return filled[0]
    box = tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*(part.box for part in filled), strict=True)
    )
    start = np.array([side.start for side in box])
    logits = np.full([side.stop - side.start for side in box], OUTSIDE_LOGIT, np.float32)
    for part in filled:
        low = part.start - start
        place = tuple(slice(a, a + n) for a, n in zip(low, part.logits.shape, strict=True))
        logits[place] = np.maximum(logits[place], part.logits)
    return Part(box, logits)


def keep_prompted(part: Part, seeds: Iterable[Sequence[float]]) -> Part:
    """Keep the components of the mask that hold a seed; all where no component does.

    A seed between voxels counts for both.
    """
    mask = part.logits > 0
    if not mask.any():
        return part
    labels = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    voxels = [side(seed).astype(int) - part.start for seed in seeds for side in (np.floor, np.ceil)]
    kept = {_value_at(labels, voxel) for voxel in voxels} - {0}
    if not kept:
        return part
    dropped = mask & ~np.isin(labels, list(kept))
    return Part(part.box, np.where(dropped, -SURE_LOGIT, part.logits))


def honour_clicks(
    part: Part,
    clicks: Sequence[Click],
    elsewhere: Sequence[Click],
    voxel_mm: Triple,
    cell_mm: float,
    shape: tuple[int, int, int],
) -> Part:
    """Put every clicked voxel on its side of the mask, and what is around it smoothly with it.

    Where the mask already agrees with a click nothing changes. Elsewhere the logits are blended
    into sure ones by a Gaussian about the click, narrower where a click of the other kind is near.
    Of clicks of both kinds on one voxel the last counts.

    Args:
        clicks: this target's, in the order clicked.
        elsewhere: foreground clicks of other targets, where this one is not.
        cell_mm: side of a cell of the low-resolution mask.
    """
    own = {click.zyx: click.is_foreground for click in clicks}
    # In the order of voxels: which number another target has must not matter.
    places = dict.fromkeys(sorted(click.zyx for click in elsewhere), False) | own
    width = np.maximum(SPOT_CELLS * cell_mm, SPOT_VOXELS * np.array(voxel_mm))
    reach = np.ceil(SPOT_REACH * width / voxel_mm).astype(int)
    for zyx, is_foreground in places.items():
        if (part.holds(zyx) and part.logits[tuple(zyx - part.start)] > 0) == is_foreground:
            continue
        part = part.around(zyx, reach, shape)
        opposite = [other for other, kind in places.items() if kind != is_foreground]
        _blend(part, zyx, is_foreground, opposite, width, np.array(voxel_mm))
    return _exactly(part, places)


def compete(shape: tuple[int, int, int], parts: Iterable[tuple[int, Part]]) -> np.ndarray:
    """Give every voxel to the target that is likeliest there, 0 where none is likely.

    Args:
        parts: (target id, logits); of equally likely targets the first counts.

    Returns:
        (D, H, W) uint8, or uint16 where an id needs it.
    """
    best = np.zeros(shape, np.float32)
    answer = np.zeros(shape, np.uint8)
    for number, part in parts:
        if number > np.iinfo(answer.dtype).max:
            answer = answer.astype(np.uint16)
        mine = part.logits > best[part.box]
        answer[part.box][mine] = number
        best[part.box][mine] = part.logits[mine]
    return answer


def _value_at(array: np.ndarray, zyx: np.ndarray) -> float:
    inside = (np.array(zyx) >= 0).all() and (np.array(zyx) < array.shape).all()
    return array[tuple(zyx)] if inside else 0


def _blend(
    part: Part,
    zyx: tuple[int, int, int],
    is_foreground: bool,
    opposite: Sequence[tuple[int, int, int]],
    width_mm: np.ndarray,
    voxel_mm: np.ndarray,
) -> None:
    """Blend a Gaussian spot of sure logits into a part, in place."""
    if opposite:
        apart = np.linalg.norm((np.array(opposite) - zyx) * voxel_mm, axis=1).min()
        width_mm = np.minimum(width_mm, max(apart, 1e-3) / 3)
    reach = np.ceil(SPOT_REACH * width_mm / voxel_mm).astype(int)
    middle = zyx - part.start
    low = np.maximum(middle - reach, 0)
    high = np.minimum(middle + reach + 1, part.logits.shape)
    spot = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    weight = np.ones((1, 1, 1), np.float32)
    for axis in range(3):
        mm = (np.arange(low[axis], high[axis]) - middle[axis]) * voxel_mm[axis]
        along = np.exp(-((mm / width_mm[axis]) ** 2) / 2).astype(np.float32)
        weight = weight * along.reshape([-1 if a == axis else 1 for a in range(3)])
    sure = SURE_LOGIT if is_foreground else -SURE_LOGIT
    # From a surer wrong logit the spot would be narrower: it counts as just as sure.
    before = np.clip(part.logits[spot], -SURE_LOGIT, SURE_LOGIT)
    after = before + weight * (sure - before)
    part.logits[spot] = np.where(weight > np.exp(-(SPOT_REACH**2) / 2), after, part.logits[spot])


def _exactly(part: Part, places: dict[tuple[int, int, int], bool]) -> Part:
    """Set clicked voxels that a neighbouring spot has turned over again."""
    for zyx, is_foreground in places.items():
        if part.holds(zyx):
            here = tuple(zyx - part.start)
            if (part.logits[here] > 0) != is_foreground:
                part.logits[here] = SURE_LOGIT if is_foreground else -SURE_LOGIT
    return part
