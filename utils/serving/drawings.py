"""Scribbles (curves) and lassos (filled outlines) that people draw on one slice, as other prompts.

The network takes neither. Many clicks inside one make the mask too large. So a drawing becomes a
click in its middle, and further ones only where the mask is still wrong on it. A lasso around a
target without prompts becomes that click, and a box too if the click's mask is unlike the lasso.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from utils.prompts.kinds import Click, Prompt, PromptError, short_repr
from utils.results.metrics import dsc
from utils.serving.boxes import box_of_sides
from utils.volumes.geometry import bounding_box
from utils.volumes.grid import Volume

#: Clicks beside the one in the middle, and the share of the drawing that may stay wrong.
MORE_CLICKS, WRONG_SHARE = 2, 0.05
#: Dice of a lasso and the mask on its slice from which the click needs no box.
ALIKE = 0.6
MOST_VOXELS, MOST_BOX_VOXELS = 100_000, 10_000_000  # of a curve, and of the box of a drawing
TOUCHING = 1.8  # voxels whose middles are nearer share a face, an edge or a corner


class Drawing(NamedTuple):
    """Voxels that were drawn, in a box of the image."""

    drawn: np.ndarray  # (d, h, w) bool, at least one voxel; a lasso has some room around it
    start_zyx: tuple[int, int, int]  # the image's voxel that is drawn's first
    is_foreground: bool  # the target is there
    is_lasso: bool

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The box of ``drawn`` in the image."""
        ends = zip(self.start_zyx, self.drawn.shape, strict=True)
        return tuple(slice(start, start + length) for start, length in ends)

    def click_in(self, part: np.ndarray) -> Click:
        """Return a click in the middle of a part of ``drawn``, (d, h, w) bool."""
        middle = deepest_of(part) if self.is_lasso else middle_of(part)
        place = (s + n for s, n in zip(self.start_zyx, middle, strict=True))
        return Click(tuple(place), self.is_foreground)


def checked_drawing(
    drawn: np.ndarray,
    sides: Sequence[Sequence[float]] | None,
    shape: tuple[int, int, int],
    *,
    is_foreground: bool,
    is_lasso: bool,
) -> Drawing:
    """Return what a client drew.

    Args:
        drawn: (d, h, w), above 0 where it was drawn.
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
            f"the drawing has shape {drawn.shape} and the box {short_repr(sides)}. Expected a box "
            f"of that shape in the image (D, H, W) {shape}: check the axis order."
        )
    drawn = drawn > 0
    voxels, most = int(np.count_nonzero(drawn)), MOST_BOX_VOXELS if is_lasso else MOST_VOXELS
    if not 0 < voxels <= most:
        raise PromptError(
            f"the drawing holds {voxels:,} voxels. Expected 1 to {most:,}: draw a thin curve, or "
            "an outline on one slice."
        )
    low, high = bounding_box(drawn)
    room = np.where(high - low > 1, (high - low) // 2, 0) * is_lasso
    first = np.maximum(np.add(low, starts) - room, 0).astype(int)
    last = np.minimum(np.add(high, starts) + room, shape).astype(int)
    if np.prod(last - first) > MOST_BOX_VOXELS:
        raise PromptError(
            f"the drawing reaches over a box of {tuple((high - low).tolist())} voxels. Expected a "
            f"smaller one, of about {MOST_BOX_VOXELS:,} in all: draw it on one slice."
        )
    with_room = np.zeros(last - first, bool)
    place = np.add(low, starts).astype(int) - first
    with_room[tuple(map(slice, place, place + high - low))] = drawn[tuple(map(slice, low, high))]
    return Drawing(with_room, tuple(first.tolist()), is_foreground, is_lasso)


def drawing_prompts(
    drawing: Drawing,
    volume: Volume,
    is_first: bool,
    mask_after: Callable[[list[Prompt]], np.ndarray],
) -> list[Prompt]:
    """Return the prompts that a drawing stands for.

    Args:
        volume: the image.
        is_first: the target has no prompt yet.
        mask_after: returns the target's mask in the drawing's box, (d, h, w) bool, after the given
            prompts of this drawing.
    """
    clicks: list[Prompt] = [drawing.click_in(drawing.drawn)]
    if drawing.is_lasso and drawing.is_foreground and is_first:
        low, high = (corner + drawing.start_zyx for corner in bounding_box(drawing.drawn))
        with_box = [box_of_sides(low.tolist(), high.tolist(), volume), *clicks]
        alike = dsc(drawing.drawn, mask_after(clicks))
        needs_box = alike < ALIKE and dsc(drawing.drawn, mask_after(with_box)) > alike
        return with_box if needs_box else clicks
    allowed = math.floor(WRONG_SHARE * np.count_nonzero(drawing.drawn))
    for _ in range(MORE_CLICKS):
        wrong = drawing.drawn & (mask_after(clicks) != drawing.is_foreground)
        if np.count_nonzero(wrong) <= allowed:
            break
        clicks.append(drawing.click_in(wrong))
    return clicks


def middle_of(curve: np.ndarray) -> tuple[int, ...]:
    """Return the voxel half-way along a curve (d, h, w) bool; of several curves the largest's."""
    labels, parts = ndimage.label(curve, np.ones((3, 3, 3)))
    largest = 1 + np.argmax(np.bincount(labels.ravel(), minlength=parts + 1)[1:])
    voxels = np.argwhere(labels == largest)
    tree = cKDTree(voxels)
    graph = tree.sparse_distance_matrix(tree, TOUCHING).tocsr()
    end = int(np.argmax(dijkstra(graph, indices=0)))
    along = dijkstra(graph, indices=end)
    half = voxels[np.abs(along - along.max() / 2) <= 1]
    return tuple(half[np.argmin(((half - half.mean(axis=0)) ** 2).sum(axis=1))].tolist())


def deepest_of(region: np.ndarray) -> tuple[int, ...]:
    """Return the voxel of a region (d, h, w) bool that is farthest from its border.

    Along an axis on which the region is one voxel thick it has no border.
    """
    around = [(1, 1) if length > 1 else (0, 0) for length in region.shape]
    depths = ndimage.distance_transform_edt(np.pad(region, around))
    place = np.unravel_index(np.argmax(depths), depths.shape)
    return tuple(int(n) - before for n, (before, _) in zip(place, around, strict=True))
