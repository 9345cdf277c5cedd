"""Scribbles: curves that people draw on or beside the target, as clicks.

The network takes no curves. Many clicks along one make the mask too large, so a scribble becomes a
click in its middle, and further ones only where the mask is still wrong on the curve.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from utils.prompts.kinds import Click, PromptError, short_repr
from utils.volumes.geometry import bounding_box

#: Clicks beside the one in the middle, and the share of the curve that may stay wrong.
MORE_CLICKS, WRONG_SHARE = 2, 0.05
MOST_VOXELS, MOST_BOX_VOXELS = 100_000, 10_000_000  # of a curve, and of the box around it
TOUCHING = 1.8  # voxels whose middles are nearer share a face, an edge or a corner


class Scribble(NamedTuple):
    """A curve in a box of the image, and whether the target is there."""

    drawn: np.ndarray  # (d, h, w) bool, at least one voxel
    start_zyx: tuple[int, int, int]  # the image's voxel that is drawn's first
    is_foreground: bool

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The box of ``drawn`` in the image."""
        ends = zip(self.start_zyx, self.drawn.shape, strict=True)
        return tuple(slice(start, start + length) for start, length in ends)

    def click(self, zyx: Sequence[int]) -> Click:
        """Return a click on a voxel of ``drawn``."""
        place = (int(s + n) for s, n in zip(self.start_zyx, zyx, strict=True))
        return Click(tuple(place), self.is_foreground)


def checked_scribble(
    drawn: np.ndarray,
    sides: Sequence[Sequence[float]] | None,
    is_foreground: bool,
    shape: tuple[int, int, int],
) -> Scribble:
    """Return what a client drew.

    Args:
        drawn: (d, h, w), above 0 on the curve.
        sides: the half-open box of ``drawn`` in the image, [start, stop] along z, y and x; None for
            the whole image.
        shape: of the image.

    Raises:
        PromptError: the box is not in the image or of another shape, or nothing or too much is
            drawn.
    """
    starts, stops = zip(*(sides or [(0, length) for length in shape]), strict=True)
    inside = all(0 <= a < b <= n for a, b, n in zip(starts, stops, shape, strict=True))
    lengths = tuple(b - a for a, b in zip(starts, stops, strict=True))
    if not inside or not all(float(a).is_integer() for a in starts) or drawn.shape != lengths:
        raise PromptError(
            f"the scribble has shape {drawn.shape} and the box {short_repr(sides)}. Expected a box "
            f"of that shape in the image (D, H, W) {shape}: check the axis order."
        )
    drawn = drawn > 0
    voxels = int(np.count_nonzero(drawn))
    if not 0 < voxels <= MOST_VOXELS:
        raise PromptError(
            f"the scribble holds {voxels:,} voxels. Expected 1 to {MOST_VOXELS:,}: draw a thin "
            "curve."
        )
    low, high = (corner.tolist() for corner in bounding_box(drawn))
    drawn = drawn[tuple(map(slice, low, high))].copy()
    if drawn.size > MOST_BOX_VOXELS:
        raise PromptError(
            f"the scribble reaches over a box of {drawn.shape} voxels. Expected at most "
            f"{MOST_BOX_VOXELS:,} in all: draw it on one slice."
        )
    first = tuple(int(a) + b for a, b in zip(starts, low, strict=True))
    return Scribble(drawn, first, is_foreground)


def scribble_clicks(
    scribble: Scribble, mask_after: Callable[[list[Click]], np.ndarray]
) -> list[Click]:
    """Return the clicks that a scribble stands for, the one in its middle first.

    Args:
        mask_after: returns the target's mask in the scribble's box, (d, h, w) bool, after the given
            clicks of this scribble.
    """
    clicks = [scribble.click(middle_of(scribble.drawn))]
    allowed = math.floor(WRONG_SHARE * np.count_nonzero(scribble.drawn))
    for _ in range(MORE_CLICKS):
        wrong = scribble.drawn & (mask_after(clicks) != scribble.is_foreground)
        if np.count_nonzero(wrong) <= allowed:
            break
        clicks.append(scribble.click(middle_of(wrong)))
    return clicks


def middle_of(drawn: np.ndarray) -> tuple[int, ...]:
    """Return the voxel half-way along a curve (d, h, w) bool; of several curves the largest's."""
    labels, parts = ndimage.label(drawn, np.ones((3, 3, 3)))
    largest = 1 + np.argmax(np.bincount(labels.ravel(), minlength=parts + 1)[1:])
    voxels = np.argwhere(labels == largest)
    tree = cKDTree(voxels)
    graph = tree.sparse_distance_matrix(tree, TOUCHING).tocsr()
    end = int(np.argmax(dijkstra(graph, indices=0)))
    along = dijkstra(graph, indices=end)
    half = voxels[np.abs(along - along.max() / 2) <= 1]
    return tuple(half[np.argmin(((half - half.mean(axis=0)) ** 2).sum(axis=1))].tolist())
