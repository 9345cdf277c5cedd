"""A box as a prompt without weights of its own: a click in its middle and a coarse mask.

SAM-Med3D's prompt encoder was never trained on boxes, and released files hold no weights for them.
But it takes a mask, and a box says roughly where the mask is: the ellipsoid inscribed in it, as
low-resolution logits. So networks whose training has seen such starts understand boxes, and
released weights stay loadable.

Boxes are in crop voxels, in the network's axis order, half-open.
"""

from typing import NamedTuple

import numpy as np

from utils.volumes.geometry import bounding_box

#: The logit in the middle of the ellipsoid; the surface is at 0, and far outside at minus this.
PEAK_LOGIT = 6.0
#: A drawn box is up to this much wider than the target, on each side and of the target's extent.
LOOSENESS = 0.1


class Box(NamedTuple):
    """Half-open corners, floats: crop voxels along the network's axes."""

    start: tuple[float, float, float]
    stop: tuple[float, float, float]

    @property
    def centre(self) -> tuple[float, float, float]:
        """The voxel coordinate of the middle."""
        return tuple((a + b - 1) / 2 for a, b in zip(self.start, self.stop, strict=True))


def box_around(label: np.ndarray, rng: np.random.Generator | None = None) -> Box:
    """Return the tight box around the True voxels of ``label`` (S, S, S), or a looser one.

    Args:
        label: at least one voxel is True.
        rng: widens each side at random, as hand-drawn boxes are; None: tight.
    """
    start, stop = [], []
    for first, end, size in zip(*bounding_box(label), label.shape, strict=True):
        wider = rng.uniform(0, LOOSENESS, 2) * (end - first) if rng else (0, 0)
        start.append(max(0.0, float(first - wider[0])))
        stop.append(min(float(size), float(end + wider[1])))
    return Box(tuple(start), tuple(stop))


def ellipsoid_logits(box: Box, size: int, cells: int) -> np.ndarray:
    """Return the ellipsoid inscribed in ``box`` as mask logits (cells, cells, cells) float32.

    Args:
        size: edge of the crop that the box is given in.
        cells: edge of the low-resolution mask.
    """
    width = size / cells
    middles = (np.arange(cells) + 0.5) * width  # along an edge that begins at 0
    square = np.zeros((1, 1, 1))
    for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
        # Thinner than a cell, an ellipsoid would slip between the cells' middles.
        radius = max(stop - start, width) / 2
        distance = ((middles - (start + stop) / 2) / radius) ** 2
        shape = [1, 1, 1]
        shape[axis] = cells
        square = square + distance.reshape(shape)
    return (PEAK_LOGIT * np.clip(1 - square, -1, 1)).astype(np.float32)
