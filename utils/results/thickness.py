"""How thick a target is, and the classes of thickness that tables average over.

The thickness is the diameter of the largest ball inside the target. A cord and a cortex are thin,
however long or wide they are.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from utils.errors import InputError

#: By thickness, thinnest first.
THICKNESS_CLASSES = ("< 6 mm", "6 to 15 mm", "> 15 mm")

#: Masks whose box has more voxels are pooled first; the distances need some 60 bytes a voxel.
_MAX_VOXELS = 2**24


def thickness_mm(mask: np.ndarray, spacing_zyx: Sequence[float]) -> float:
    """Return the diameter in mm of the largest ball inside a mask.

    It is twice the longest distance from a voxel of the mask to the nearest voxel outside, from
    centre to centre. What lies beyond the volume counts as outside. Where the mask's box has more
    than 16 million voxels, pairs along the axis of finest spacing are joined until there are fewer;
    a joined voxel is inside where one of the two is.

    Args:
        mask: (D, H, W) booleans, not empty.
        spacing_zyx: mm.

    Raises:
        InputError: the mask is empty.
    """
    boxes = ndimage.find_objects(np.asarray(mask, dtype=bool).view(np.uint8))
    if not boxes:
        raise InputError("the mask is empty; expected at least one voxel. Leave the target out.")
    inside, spacing_zyx = np.asarray(mask, dtype=bool)[boxes[0]], list(spacing_zyx)
    while inside.size > _MAX_VOXELS:
        axis = int(np.argmin(spacing_zyx))
        inside = np.logical_or.reduceat(inside, np.arange(0, inside.shape[axis], 2), axis=axis)
        spacing_zyx[axis] *= 2
    inside = np.pad(inside, 1)
    return 2.0 * float(ndimage.distance_transform_edt(inside, sampling=spacing_zyx).max())


def thickness_class(thickness: float) -> str:
    """Return which of `THICKNESS_CLASSES` a thickness in mm belongs to."""
    return THICKNESS_CLASSES[int(thickness >= 6) + int(thickness > 15)]
