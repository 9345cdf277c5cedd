"""The masks of all targets as one label map that is updated where logits changed.

`Predictor.segmentation` goes through all voxels of the image. Here only boxes in which a target's
logits changed are gone through; the labels are the same, voxel by voxel.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from utils.prediction.logit_cache import LogitsVersion
from utils.prediction.masks import Box, LogitBox, compete, shared, within
from utils.volumes.geometry import bounding_box

#: The largest id of a target in a label map, which is uint8.
MOST_TARGETS = 255
#: Voxels that targets compete for at a time; beyond it, logits of several targets take much memory.
COMPETING_VOXELS = 2**24
#: Voxels that stay in a processor's cache while they are compared and replaced.
CACHED_VOXELS = 2**18


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
        self._seen: dict[int, LogitsVersion] = {}  # the logits that the labels are of
        self._stale: list[Box] = []  # boxes with labels that are not of the logits seen last

    def voxels(self, target: int) -> int:
        """Return how many voxels a target has."""
        return int(self._counts[target])

    @property
    def nbytes(self) -> int:
        """Bytes of the label map."""
        return self.labels.nbytes

    def update(
        self, versions: Mapping[int, LogitsVersion], logits_of: Callable[[int], LogitBox]
    ) -> Change:
        """Take over the logits of all targets that have any; return what changed.

        Args:
            versions: of each target, as `Predictor.versions` returns them.
            logits_of: returns a target's logits. It is called for few targets, one by one.
        """
        slabs = [
            slab
            for region in self._changed_regions(versions)
            for slab in _slabs(region, COMPETING_VOXELS)
        ]
        patches = []  # pasted at the end: an error must not leave a part of them
        for slab in slabs:
            near = [n for n in sorted(versions) if shared(versions[n].box, slab)]
            parts = ((n, logits_in(logits_of(n), slab)) for n in near)
            patches.append(compete(_shape(slab), parts))
        changed = []
        for slab, labels in zip(slabs, patches, strict=True):
            changed += self._paste(slab, labels)
        self._stale, self._seen = [], dict(versions)
        return self._change(changed)

    def whole(self) -> Change:
        """Return all labels, cut to their bounding box."""
        box = box_of(self.labels != 0)
        return NO_CHANGE if box is None else Change(box, self.labels[box].copy())

    def show(self, labels: np.ndarray) -> Change:
        """Take over a label map (D, H, W) as it is until the next `update`; return what changed."""
        whole = tuple(slice(0, n) for n in self.labels.shape)
        change = self._change(self._paste(whole, labels.astype(np.uint8, copy=False)))
        shown = box_of(self.labels != 0)
        self._stale += [box for box in (shown, change.box) if box is not None]
        return change

    def _changed_regions(self, versions: Mapping[int, LogitsVersion]) -> list[Box]:
        """Return the boxes, old and new, of targets whose logits are not those seen last."""
        regions = [*self._stale]
        for target in sorted({*self._seen, *versions}):
            old, new = self._seen.get(target), versions.get(target)
            if old is not None and new is not None and old.mark is new.mark:
                regions += [spot.box for spot in old.spots ^ new.spots]
                continue
            boxes = [each.box for each in (old, new) if each is not None and _volume(each.box)]
            if len(boxes) == 2 and all(map(_overlaps, *boxes)):
                boxes = [tuple(map(_joined, *boxes))]
            regions += boxes
        return regions

    def _paste(self, box: Box, labels: np.ndarray) -> list[Box]:
        """Replace the labels in a box; return boxes around those that are others now."""
        changed = []
        for slab in _slabs(box, CACHED_VOXELS):
            first = slab[0].start - box[0].start
            before, after = self.labels[slab], labels[first : first + len(self.labels[slab])]
            differs = before != after
            inner = box_of(differs)
            if inner is None:
                continue
            self._counts += np.bincount(after[differs], minlength=self._counts.size)
            self._counts -= np.bincount(before[differs], minlength=self._counts.size)
            before[...] = after
            starts = [int(side.start) for side in slab]
            changed.append(
                tuple(slice(a + s.start, a + s.stop) for a, s in zip(starts, inner, strict=True))
            )
        return changed

    def _change(self, boxes: list[Box]) -> Change:
        """Return the labels of the box around boxes."""
        if not boxes:
            return NO_CHANGE
        box = tuple(functools.reduce(_joined, sides) for sides in zip(*boxes, strict=True))
        return Change(box, self.labels[box].copy())


def _slabs(box: Box, most: int) -> Iterator[Box]:
    """Cut a box along z into slabs of at most so many voxels, and of one plane at least."""
    z, *plane = box
    thick = max(1, most // max(1, _volume(tuple(plane))))
    for start in range(z.start, z.stop, thick):
        yield slice(start, min(start + thick, z.stop)), *plane


def box_of(mask: np.ndarray) -> Box | None:
    """Return the bounding box of a mask (D, H, W) bool; None if it is empty."""
    if not mask.any():
        return None
    return tuple(map(slice, *(corner.tolist() for corner in bounding_box(mask))))


def logits_in(logits: LogitBox, region: Box) -> LogitBox | None:
    """Return the logits that lie in a region, in its coordinates; None if none do."""
    both = shared(logits.box, region)
    if both is None:
        return None
    return LogitBox(within(both, region), logits.values[within(both, logits.box)])


def _shape(box: Box) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in box)


def _volume(box: Box) -> int:
    return math.prod(max(0, length) for length in _shape(box))


def _overlaps(one: slice, other: slice) -> bool:
    return one.start <= other.stop and other.start <= one.stop


def _joined(one: slice, other: slice) -> slice:
    return slice(min(one.start, other.start), max(one.stop, other.stop))
