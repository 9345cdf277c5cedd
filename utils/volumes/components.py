"""Connected components of masks: voxels that share a face, an edge or a corner, or a face alone.

cc3d finds components three times as fast as SciPy or more. But it has room for a label in every
fourth voxel only, and raises RuntimeError where a mask needs more: isolated voxels in a line, in a
slice with odd sides, in a cube of 3 x 3 x 3. SciPy numbers the components of such shapes.
"""

import math

import cc3d
import numpy as np

#: Voxels that are counted at a time: NumPy casts what it counts to int64.
_COUNTED = 2**20


def connected_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected components of a mask (26 neighbours) by their first voxel in C order.

    Args:
        mask: (D, H, W) of any type and memory layout; what is not 0 is inside. Not modified.

    Returns:
        labels: (D, H, W) unsigned integers in C order: 0 outside, 1 to ``count`` inside.
        count: the number of components.

    Raises:
        ValueError: the mask does not have three axes.
    """
    if mask.ndim != 3:
        raise ValueError(f"the mask has shape {mask.shape}. Expected three axes, (D, H, W).")
    # cc3d numbers components in C order only where the array is in C order, and takes no array that
    # is read-only.
    mask = np.require(mask, bool, ["C", "W", "E"])
    # Both start a label at a voxel that has no earlier neighbour inside. No two such voxels are
    # neighbours, so there is at most one in each block of 2 x 2 x 2.
    most_labels = math.prod((n + 1) // 2 for n in mask.shape)
    if most_labels > mask.size // 4 or mask.size == 0:
        from scipy import ndimage  # slow to import, and needed for few shapes

        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        return labels.astype(np.uint32), count
    return cc3d.connected_components(mask, connectivity=26, return_N=True)


def face_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the components of a mask whose voxels share faces (6 neighbours).

    Args:
        mask: (D, H, W) bool.

    Returns:
        labels (D, H, W), 0 outside and 1 to ``count`` inside, and the count; as
        `connected_components` returns them, in no particular order.
    """
    try:
        return cc3d.connected_components(
            np.require(mask, bool, ["C", "W"]), connectivity=6, return_N=True
        )
    except RuntimeError:  # more components than it has room for
        from scipy import ndimage

        return ndimage.label(mask)


def component_sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the number of voxels of each component, (count + 1,) int64; entry 0 is the outside.

    Args:
        labels, count: from `connected_components`.
    """
    sizes = np.zeros(count + 1, np.int64)
    flat = labels.reshape(-1)
    for start in range(0, flat.size, _COUNTED):
        sizes += np.bincount(flat[start : start + _COUNTED], minlength=count + 1)
    return sizes
