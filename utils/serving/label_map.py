"""The masks of all targets as one label map that is updated where logits changed.

`Predictor.segmentation` goes through all voxels of the image. Here only the boxes of targets whose
logits changed are gone through; the labels are the same, voxel by voxel.
"""

import functools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from utils.prediction.masks import LogitBox, compete
from utils.volumes.geometry import bounding_box

Box = tuple[slice, slice, slice]

#: The largest id of a target in a label map, which is uint8.
MOST_TARGETS = 255
#: Voxels of a slab, of at least one plane.
SLAB_VOXELS = 2**18


class Change(NamedTuple):
    """The labels of a box of voxels after a change; ``box`` is None where no label changed."""

    box: Box | None  # along z, y, x; half-open
    labels: np.ndarray  # (d, h, w) uint8, a copy


NO_CHANGE = Change(None, np.zeros((0, 0, 0), np.uint8))


class LabelMap:
    """Target ids (D, H, W) uint8, 0 for background; each voxel belongs to the highest logit.

    Args:
        shape: of the image, (D, H, W).
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self._counts = np.zeros(MOST_TARGETS + 1, np.int64)
        # Of each target: the box of its logits, and a reference to them that keeps no memory.
        self._seen: dict[int, tuple[Box, weakref.ref[np.ndarray]]] = {}
        self._stale: list[Box] = []  # boxes with labels that are not of the logits seen last

    def voxels(self, target: int) -> int:
        """Return how many voxels a target has."""
        return int(self._counts[target])

    @property
    def nbytes(self) -> int:
        """Bytes of the label map."""
        return self.labels.nbytes

    def update(self, logits: Mapping[int, LogitBox]) -> Change:
        """Take over the logits of all targets that have any; return what changed.

        Args:
            logits: target id -> logits, as `Predictor.logits` returns them.
        """
        regions = self._changed_regions(logits)
        self._stale = regions  # until all of them are renewed
        changed = []
        for region in regions:
            near = [target for target in sorted(logits) if logits_in(logits[target], region)]
            for slab in _slabs(region):
                shape = tuple(side.stop - side.start for side in slab)
                parts = [(target, logits_in(logits[target], slab)) for target in near]
                labels = compete(shape, [part for part in parts if part[1]])
                changed.append(self._paste(slab, labels))
        self._stale = []
        self._seen = {
            target: (each.box, weakref.ref(each.values)) for target, each in logits.items()
        }
        return self._change(changed)

    def whole(self) -> Change:
        """Return all labels, cut to their bounding box."""
        box = box_of(self.labels != 0)
        return NO_CHANGE if box is None else Change(box, self.labels[box].copy())

    def show(self, labels: np.ndarray) -> Change:
        """Take over a label map (D, H, W) as it is until the next `update`; return what changed."""
        whole = tuple(slice(0, n) for n in self.labels.shape)
        labels = labels.astype(np.uint8, copy=False)
        change = self._change([self._paste(slab, labels[slab]) for slab in _slabs(whole)])
        shown = box_of(self.labels != 0)
        self._stale = [box for box in (shown, change.box) if box is not None]
        return change

    def _changed_regions(self, logits: Mapping[int, LogitBox]) -> list[Box]:
        """Return the boxes, old and new, of targets whose logits are not those seen last."""
        regions = [*self._stale]
        for target in sorted({*self._seen, *logits}):
            old_box, old_values = self._seen.get(target, (None, lambda: None))
            new = logits.get(target)
            if new is not None and old_box == new.box and old_values() is new.values:
                continue
            given = (old_box, None if new is None else new.box)
            boxes = [box for box in given if box is not None and _volume(box)]
            if len(boxes) == 2 and all(map(_overlaps, *boxes)):
                boxes = [tuple(map(_joined, *boxes))]
            regions += boxes
        return regions

    def _paste(self, box: Box, labels: np.ndarray) -> Box | None:
        """Replace the labels in a box; return the box of those that are others now."""
        before = self.labels[box]
        differs = before != labels
        inner = box_of(differs)
        if inner is None:
            return None
        self._counts += np.bincount(labels[differs], minlength=self._counts.size)
        self._counts -= np.bincount(before[differs], minlength=self._counts.size)
        before[...] = labels
        return tuple(
            slice(int(side.start) + within.start, int(side.start) + within.stop)
            for side, within in zip(box, inner, strict=True)
        )

    def _change(self, changed: Iterable[Box | None]) -> Change:
        """Return the labels of the box around boxes."""
        boxes = [box for box in changed if box is not None]
        if not boxes:
            return NO_CHANGE
        box = tuple(functools.reduce(_joined, sides) for sides in zip(*boxes, strict=True))
        return Change(box, self.labels[box].copy())


def _slabs(box: Box) -> Iterator[Box]:
    """Cut a box along z into slabs that stay in a processor's cache while they are worked on."""
    z, *plane = box
    thick = max(1, SLAB_VOXELS // max(1, _volume(tuple(plane))))
    for start in range(z.start, z.stop, thick):
        yield slice(start, min(start + thick, z.stop)), *plane


def box_of(mask: np.ndarray) -> Box | None:
    """Return the bounding box of a mask (D, H, W) bool; None if it is empty."""
    if not mask.any():
        return None
    return tuple(map(slice, *(corner.tolist() for corner in bounding_box(mask))))


def logits_in(logits: LogitBox, region: Box) -> LogitBox | None:
    """Return the logits that lie in a region, in its coordinates; None if none do."""
    sides = [
        (max(own.start, side.start), min(own.stop, side.stop))
        for own, side in zip(logits.box, region, strict=True)
    ]
    if any(start >= stop for start, stop in sides):
        return None
    place = tuple(slice(a - r.start, b - r.start) for (a, b), r in zip(sides, region, strict=True))
    inner = tuple(
        slice(a - own.start, b - own.start) for (a, b), own in zip(sides, logits.box, strict=True)
    )
    return LogitBox(place, logits.values[inner])


def _volume(box: Box) -> int:
    return int(np.prod([max(0, side.stop - side.start) for side in box]))


def _overlaps(one: slice, other: slice) -> bool:
    return one.start <= other.stop and other.start <= one.stop


def _joined(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))
