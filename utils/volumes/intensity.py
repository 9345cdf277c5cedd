"""Intensities in the range that the networks are trained on: 0 to 255, background 0.

Challenge files hold CT clipped to a window, and every other modality clipped to the percentiles 0.5
and 99.5 of its voxels above 0; both are then scaled to uint8. Other images are mapped the same way.
"""

import argparse
from typing import NamedTuple

import numpy as np

from utils.errors import InputError

MODES = ("auto", "as-is")
SOFT_TISSUE = (40.0, 400.0)  # level and width in HU, the challenge's default for CT
AIR_BELOW = -100  # values under this are Hounsfield units
PERCENTILES = (0.5, 99.5)


class Mapped(NamedTuple):
    """An image in that range, and a description of how it got there."""

    image: np.ndarray
    done: str


def add_intensity_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose how intensities are mapped to 0..255."""
    group = parser.add_argument_group("intensities").add_mutually_exclusive_group()
    group.add_argument(
        "--intensity",
        choices=MODES,
        default="auto",
        help="auto: 0..255 stays, Hounsfield units get window 40 400, others go from their "
        "percentiles to 0..255 (default: auto)",
    )
    group.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LEVEL", "WIDTH"),
        help="map this window to 0..255 instead, such as -600 1500 for lungs",
    )


def map_intensity(
    volume: np.ndarray, mode: str = "auto", window: tuple[float, float] | None = None
) -> Mapped:
    """Map a volume (D, H, W) to 0..255, unless it is in that range already.

    Args:
        mode: "auto" decides by the values; "as-is" changes nothing.
        window: level and width that are mapped to 0..255; ``mode`` is then ignored.

    Raises:
        InputError: the window has no width.
    """
    if window is not None:
        return _windowed(volume, *window)
    if mode == "as-is" or volume.dtype in (np.uint8, bool):
        return Mapped(volume, "intensities kept")
    low, high = volume.min(), volume.max()
    if low >= 0 and high <= 255:
        return Mapped(volume, f"intensities kept ({low:g} to {high:g})")
    if low < AIR_BELOW:
        return _windowed(volume, *SOFT_TISSUE)
    body = volume[volume > 0]
    low, high = np.percentile(body, PERCENTILES) if body.size else (low, high)
    done = f"percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of voxels > 0"
    return Mapped(_stretched(volume, low, high), f"{done} ({low:g} to {high:g}) to 0..255")


# Two tests of one fact, because the modality is not always known. `holds_hounsfield` is for
# prepared trees and challenge cases: their names give the modality. `looks_hounsfield` is for the
# images of predict.py without such a name (NIfTI) or with mapped values. It has only the values,
# and other modalities may have small negative ones too, so it asks for values far below 0.


def holds_hounsfield(image: np.ndarray, is_ct: bool) -> bool:
    """Tell whether the values of an image of known modality are Hounsfield units.

    They are where CT has negative values: challenge files hold CT windowed to 0..255.
    """
    return bool(is_ct and image.min() < 0)


def looks_hounsfield(volume: np.ndarray) -> bool:
    """Tell whether the values of an image of unknown modality are Hounsfield units.

    They are where a signed volume reaches below `AIR_BELOW`.
    """
    return bool(volume.dtype.kind in "if" and volume.min() < AIR_BELOW)


def _windowed(volume: np.ndarray, level: float, width: float) -> Mapped:
    if not (np.isfinite(level) and 0 < width < np.inf):
        raise InputError(
            f"window level {level:g}, width {width:g}: expected a width above 0, such as 40 400 "
            "for soft tissue or -600 1500 for lungs."
        )
    low, high = level - width / 2, level + width / 2
    done = f"window level {level:g}, width {width:g} to 0..255"
    return Mapped(_stretched(volume, low, high), done)


def _stretched(volume: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale to uint8, ``low`` to 0 and ``high`` to 255; plane by plane, which saves memory."""
    factor = 255 / (high - low) if high > low else 0.0
    out = np.empty(volume.shape, np.uint8)
    for plane, mapped in zip(volume, out, strict=True):
        mapped[...] = np.rint(np.clip((plane.astype(np.float64) - low) * factor, 0, 255))
    return out
