"""Which cells of a grid lie in the box of a sample, in its middle, and around it.

A box is two points of a sample, its start and its stop, with the labels `CORNERS`. Grids are
flattened: (B, 1, s^3) for s cells along each axis.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Labels of the points at a box's start and stop, its lowest and its highest corner.
CORNERS = (2, 3)
#: The middle of a box is an ellipsoid of this share of the box's edges.
CORE = 0.6
SURROUNDINGS = 1.5  # how far cells count as surroundings, as a multiple of the box's edges


class Box(NamedTuple):
    """The boxes of a batch, in crop voxels; the whole crop in samples without one."""

    start: Tensor  # (B, 3, 1)
    stop: Tensor  # (B, 3, 1)
    given: Tensor  # (B, 1, 1) bool
    img_size: int

    def scaled(self, scale: float) -> "Box":
        """Return the box with its edges ``scale`` times as long, about the same middle."""
        middle, half = (self.start + self.stop) / 2, (self.stop - self.start) * (scale / 2)
        return self._replace(start=middle - half, stop=middle + half)


def box_of(coords: Tensor, labels: Tensor, img_size: int) -> Box:
    """Return the boxes of a batch's points.

    Args:
        coords: (B, N, 3) in crop voxels; voxel i reaches from i - 0.5 to i + 0.5.
        labels: (B, N) in {1, 0, -1, 2, 3}.
        img_size: voxels along each axis of the crop.
    """
    corners = [(labels == label)[..., None] for label in CORNERS]
    start = torch.where(corners[0], coords, math.inf).amin(1)[..., None]
    stop = torch.where(corners[1], coords, -math.inf).amax(1)[..., None]
    given = (stop > start).all(1, keepdim=True)  # False where a corner is missing
    start, stop = torch.where(given, start, -0.5), torch.where(given, stop, img_size - 0.5)
    return Box(start, stop, given, img_size)


def share_inside(box: Box, size: int) -> Tensor:
    """Return the share of each cell that lies in the box: (B, 1, size^3) in [0, 1]; 0 without."""
    cell = box.img_size / size
    faces = torch.arange(size + 1, device=box.start.device) * cell - 0.5
    along = torch.minimum(faces[1:], box.stop) - torch.maximum(faces[:-1], box.start)
    z, y, x = (along.clamp(min=0) / cell).unbind(1)
    share = (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)[:, None]
    return share * box.given


def core(box: Box, size: int) -> Tensor:
    """Return the cells in the middle of the box, one at least: (B, 1, size^3) bool."""
    cell = box.img_size / size
    centres = (torch.arange(size, device=box.start.device) + 0.5) * cell - 0.5
    middle, half = (box.start + box.stop) / 2, (box.stop - box.start) / 2
    z, y, x = ((centres - middle) / half).square().unbind(1)
    radius = (z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]).flatten(1)[:, None]
    nearest = radius.amin(2, keepdim=True)
    return (radius <= nearest.clamp(min=CORE**2)) & box.given


def surroundings(box: Box, size: int) -> Tensor:
    """Return the cells around the box that are not in it: (B, 1, size^3) bool."""
    return (share_inside(box.scaled(SURROUNDINGS), size) > 0) & (share_inside(box, size) == 0)
