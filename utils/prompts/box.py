"""Box prompts: the box in the crop, and the coarse mask that it becomes for every network.

A box becomes a rough mask prompt: the ellipsoid inscribed in the box, as low-resolution logits.
Networks with ``PromptConfig.boxes`` get its corners as well. SAM-Med3D's prompt encoder was never
trained on boxes, and released files hold no weights for them: such networks get a click in the
box's middle instead, and can be trained with that.

Boxes are in crop voxels, in the network's axis order, half-open.
"""

from typing import NamedTuple

import numpy as np

from utils.volumes.geometry import bounding_box

#: Logit in the middle of the ellipsoid; it is 0 on the surface and -PEAK_LOGIT far outside.
PEAK_LOGIT = 6.0
#: A random box is wider than the target by up to this share of its extent, on each side.
LOOSENESS = 0.1
#: Share of the random boxes that are drawn on the middle slice alone, as the challenge's are.
ON_ONE_SLICE = 0.5
#: A target's extent in the slices' plane, as a multiple of its extent in the middle slice.
IN_PLANE = 1.2
SLICES = 2  # the network's axis along which axial slices follow each other


class Box(NamedTuple):
    """Half-open corners, floats: crop voxels along the network's axes."""

    start: tuple[float, float, float]
    stop: tuple[float, float, float]

    @property
    def centre(self) -> tuple[float, float, float]:
        """The voxel coordinate of the middle."""
        return tuple((a + b - 1) / 2 for a, b in zip(self.start, self.stop, strict=True))

    def within(self, size: int) -> "Box | None":
        """Return the part of the box in a crop of edge ``size``; None if there is none."""
        start = tuple(min(max(side, 0.0), float(size)) for side in self.start)
        stop = tuple(min(max(side, 0.0), float(size)) for side in self.stop)
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None


def box_around(label: np.ndarray, rng: np.random.Generator | None = None) -> Box:
    """Return the tight box around the True voxels of ``label`` (S, S, S), or a random one.

    Random boxes are of two kinds. One is looser on each side, as a box drawn by hand in 3D. The
    other has the target's slices from first to last and, in their plane, `IN_PLANE` times the
    extent in the middle slice: what a predictor makes of the challenge's boxes. It may cut off a
    part of the target.

    Args:
        label: bool, with at least one True voxel.
        rng: chooses the kind, and how loose the box is; None: tight.
    """
    extents = np.transpose(bounding_box(label)).astype(float)  # (3, 2)
    if rng is not None:
        middle = label.take([int(extents[SLICES].sum() - 1) // 2], SLICES)
        looser = rng.uniform(0, LOOSENESS, (3, 2)) * np.diff(extents)
        if rng.random() < ON_ONE_SLICE and middle.any():
            plane = np.transpose(bounding_box(middle)).astype(float)[:SLICES]
            looser = np.zeros((3, 2))
            looser[:SLICES] = (IN_PLANE - 1) / 2 * np.diff(plane)
            extents[:SLICES] = plane
        extents += looser * [-1, 1]
    start, stop = np.clip(extents, 0.0, np.array(label.shape, float)[:, None]).T.tolist()
    return Box(tuple(start), tuple(stop))


def ellipsoid_logits(box: Box, size: int, cells: int) -> np.ndarray:
    """Return the ellipsoid inscribed in ``box`` as mask logits (cells, cells, cells) float32.

    Args:
        size: edge of the crop, in whose voxels the box is given.
        cells: edge of the low-resolution mask.
    """
    width = size / cells
    middles = (np.arange(cells) + 0.5) * width  # of the cells; the edge begins at 0
    square = np.zeros((1, 1, 1))
    for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
        # An ellipsoid thinner than a cell could contain no cell's middle.
        radius = max(stop - start, width) / 2
        distance = ((middles - (start + stop) / 2) / radius) ** 2
        shape = [1, 1, 1]
        shape[axis] = cells
        square = square + distance.reshape(shape)
    return (PEAK_LOGIT * np.clip(1 - square, -1, 1)).astype(np.float32)
