"""Voxel values that cannot be used: no real numbers, not finite, or too large for float32.

The network computes in float32. A larger float64 becomes infinite there, and so does the variance
of a crop with a value above about 1e19. Either would make the network's answer meaningless.
"""

import numpy as np

from utils.errors import InputError

#: The largest magnitude that float32 holds.
FLOAT32_MOST = float(np.finfo(np.float32).max)
#: The largest magnitude in a network's input: the squares of a whole crop still add up in float32.
NETWORK_MOST = 1e15
#: The least magnitude that the largest value of a network's input may have, unless all are 0.
LEAST = 1e-30


def require_real(array: np.ndarray, what: str) -> None:
    """Raise `InputError` for complex numbers, text, dates and Python objects.

    Args:
        what: the file and the array, with which the message begins.
    """
    if array.dtype.kind not in "buif":
        raise InputError(
            f"{what} has dtype {array.dtype}. Expected real numbers: convert it first."
        )


def require_finite(array: np.ndarray, what: str, most: float = FLOAT32_MOST) -> None:
    """Raise `InputError` for NaN, infinity and magnitudes above ``most``; checks plane by plane.

    The message names the first such voxel and its value.

    Args:
        array: (D, H, W) real numbers.
        what: the file and the array, with which the message begins.
        most: the largest magnitude allowed.
    """
    if array.dtype.kind not in "iuf" or array.dtype.itemsize < 2:
        return
    if array.dtype.kind != "f" and np.iinfo(array.dtype).max <= most:
        return
    bad = [number for number, plane in enumerate(array) if not _is_within(plane, most)]
    if not bad:
        return
    count = sum(np.count_nonzero(_beyond(array[number], most)) for number in bad)
    y, x = np.argwhere(_beyond(array[bad[0]], most))[0].tolist()
    place = (bad[0], y, x)
    raise InputError(
        f"{what} has {count} voxels that are NaN or infinite, or beyond {most:.2g}, first "
        f"{array[place]!s} at (z, y, x) = {place}. Expected finite values of at most {most:.2g} in "
        "magnitude: clip those voxels, or export the image again."
    )


def require_network_input(image: np.ndarray, what: str) -> None:
    """Raise `InputError` for an image (D, H, W) that cannot be normalised for the network.

    Args:
        what: the file and the array, with which the message begins.
    """
    require_real(image, what)
    require_finite(image, what, NETWORK_MOST)
    if image.dtype.kind == "f" and 0 < (most := max(abs(image.min()), abs(image.max()))) < LEAST:
        raise InputError(
            f"{what} has no value above {most:.2g} in magnitude. Expected one above {LEAST:g}, "
            "since float32 holds smaller ones badly: multiply the image by a constant."
        )


def _is_within(plane: np.ndarray, most: float) -> bool:
    """Tell whether all values are numbers of at most this magnitude; NaN becomes min and max."""
    return plane.size == 0 or (-most <= float(plane.min()) and float(plane.max()) <= most)


def _beyond(plane: np.ndarray, most: float) -> np.ndarray:
    return ~(np.abs(plane.astype(np.longdouble)) <= most)
