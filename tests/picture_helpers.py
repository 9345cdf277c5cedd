"""Where a colour is in a picture file."""

import matplotlib.image
import numpy as np
from matplotlib.colors import to_rgb


def places(path, colour: str) -> np.ndarray:
    """Return the (row, column) of the picture's pixels of a colour, above the legend."""
    pixels = matplotlib.image.imread(path)[..., :3]
    found = np.argwhere(np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02)
    return found[found[:, 0] < len(pixels) - 90]
