"""Prompts of a user for a target: boxes, clicks, or a mask to start from.

Coordinates are voxels of the image's array, ``(z, y, x)``; boxes are half-open.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from utils.errors import InputError


class PromptError(InputError):
    """A prompt that does not fit the image."""


class Click(NamedTuple):
    """One click; unpacks as ``(z, y, x), is_foreground``."""

    zyx: tuple[int, int, int]
    is_foreground: bool


class BoxPrompt(NamedTuple):
    """A box around the target.

    With ``middle_slice`` the sides along y and x are those of one slice in the middle, as in the
    challenge: in other slices the target may reach further.
    """

    start_zyx: tuple[float, float, float]
    stop_zyx: tuple[float, float, float]
    middle_slice: bool = False

    @property
    def centre_zyx(self) -> tuple[float, float, float]:
        """The array coordinate of the middle."""
        return tuple((a + b - 1) / 2 for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))


class MaskPrompt(NamedTuple):
    """A mask to start from, such as an earlier answer: (D, H, W) bool with at least one True."""

    mask: np.ndarray


Prompt = BoxPrompt | Click | MaskPrompt


def checked_click(zyx: Iterable[float], is_foreground: bool, shape: tuple[int, int, int]) -> Click:
    """Return a click on a voxel of the image.

    Raises:
        PromptError: not three whole numbers, or outside the image.
    """
    place = tuple(zyx)
    if len(place) != 3 or not all(
        0 <= c < n and c == int(c) for c, n in zip(place, shape, strict=True)
    ):
        raise PromptError(
            f"the click {place} is not a voxel of the image (D, H, W) {shape}. Expected whole "
            "numbers z, y, x from 0: check the axis order."
        )
    z, y, x = (int(c) for c in place)
    return Click((z, y, x), bool(is_foreground))


def checked_box(
    start_zyx: Iterable[float],
    stop_zyx: Iterable[float],
    shape: tuple[int, int, int],
    *,
    middle_slice: bool = False,
) -> BoxPrompt:
    """Return a box, cut to the image.

    Raises:
        PromptError: not three finite numbers each, empty, or outside the image.
    """
    start, stop = (tuple(float(c) for c in corner) for corner in (start_zyx, stop_zyx))
    good = len(start) == len(stop) == 3 and np.isfinite([*start, *stop]).all()
    if good:
        inner = tuple(max(0.0, a) for a in start)
        outer = tuple(min(float(n), b) for b, n in zip(stop, shape, strict=True))
        good = all(a < b for a, b in zip(inner, outer, strict=True))
    if not good:
        raise PromptError(
            f"the box from {start} to {stop} holds no voxel of the image (D, H, W) {shape}. "
            "Expected start < stop along z, y and x, the stop outside: check the axis order."
        )
    return BoxPrompt(inner, outer, middle_slice)
