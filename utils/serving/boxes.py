"""Boxes as people draw them: around the whole target, or around its outline on one slice."""

from collections.abc import Sequence

from utils.prompts.kinds import BoxPrompt, checked_box
from utils.volumes.grid import Volume

#: The extent across the slice that is expected of a target outlined on one slice, over the mean of
#: its two sides on the slice, in mm.
DEPTH = 0.7


def box_of_corners(corner: Sequence[float], opposite: Sequence[float], volume: Volume) -> BoxPrompt:
    """Return the box between two voxels, both inside, cut to the image; see `box_of_sides`."""
    sides = [sorted(pair) for pair in zip(corner, opposite, strict=True)]
    return box_of_sides([low for low, _ in sides], [high + 1 for _, high in sides], volume)


def box_of_sides(start: Sequence[float], stop: Sequence[float], volume: Volume) -> BoxPrompt:
    """Return a half-open box, cut to the image; one drawn on a single slice is made deeper.

    Args:
        start: the first voxel (z, y, x) inside.
        stop: the first voxel after the box on each axis.

    Raises:
        PromptError: the box holds no voxel of the image.
    """
    box = checked_box(start, stop, volume.shape)
    thin = [axis for axis in range(3) if box.stop_zyx[axis] - box.start_zyx[axis] <= 1]
    if len(thin) != 1 or volume.shape[thin[0]] == 1:
        return box
    (axis,), mm = thin, volume.spacing_zyx
    sides = [(box.stop_zyx[n] - box.start_zyx[n]) * mm[n] for n in range(3) if n != axis]
    more = int(DEPTH * sum(sides) / 2 / mm[axis] / 2)  # slices on each side
    low, high = list(box.start_zyx), list(box.stop_zyx)
    low[axis], high[axis] = low[axis] - more, high[axis] + more
    return checked_box(low, high, volume.shape, middle_slice=axis == 0)
