"""Prompts of a user for a target: boxes, clicks, or a mask to start from.

Coordinates are voxels of the image's array, ``(z, y, x)``; boxes are half-open.
"""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.volumes.geometry import bounding_box


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


class MaskPrompt:
    """A mask to start from, such as an earlier answer.

    It is copied, and kept as the bits of its box, since `undo` may need many of them.

    Args:
        mask: (D, H, W) bool, or finite numbers that are 0 outside; at least one voxel is inside.

    Raises:
        PromptError: the mask is something else, or is empty.
    """

    __slots__ = ("_bits", "_box", "shape")

    def __init__(self, mask: np.ndarray) -> None:
        inside = _checked_mask(mask)
        self.shape = inside.shape
        ends = bounding_box(inside).T.tolist()
        self._box = tuple(slice(start, stop) for start, stop in ends)
        self._bits = np.packbits(inside[self._box])

    @property
    def mask(self) -> np.ndarray:
        """The mask (D, H, W) bool, a new array at each call."""
        mask = np.zeros(self.shape, bool)
        part = mask[self._box]
        part[...] = np.unpackbits(self._bits, count=part.size).reshape(part.shape)
        return mask

    @property
    def nbytes(self) -> int:
        """Bytes in which the mask is kept."""
        return self._bits.nbytes


Prompt = BoxPrompt | Click | MaskPrompt


def checked_click(zyx: Iterable[float], is_foreground: bool, shape: tuple[int, int, int]) -> Click:
    """Return a click on a voxel of the image.

    Raises:
        PromptError: not three whole numbers, or outside the image; or its kind is neither true nor
            false.
    """
    place = _numbers(zyx)
    if place is None or not all(
        0 <= c < n and c == int(c) for c, n in zip(place, shape, strict=True)
    ):
        raise PromptError(
            f"the click {short_repr(zyx)} is not a voxel of the image (D, H, W) {shape}. Expected "
            "whole numbers z, y, x from 0: check the axis order."
        )
    z, y, x = (int(c) for c in place)
    return Click((z, y, x), checked_flag(is_foreground, "positive"))


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
    start, stop = _numbers(start_zyx), _numbers(stop_zyx)
    good = start is not None and stop is not None
    if good:
        # Cut before the conversion: a huge whole number has no float.
        inner = tuple(float(min(max(0, a), n)) for a, n in zip(start, shape, strict=True))
        outer = tuple(float(min(max(0, b), n)) for b, n in zip(stop, shape, strict=True))
        good = all(a < b for a, b in zip(inner, outer, strict=True))
    if not good:
        raise PromptError(
            f"the box from {short_repr(start_zyx)} to {short_repr(stop_zyx)} holds no voxel of the "
            f"image (D, H, W) {shape}. Expected start < stop along z, y and x, the stop outside: "
            "check the axis order."
        )
    return BoxPrompt(inner, outer, checked_flag(middle_slice, "middle_slice"))


def checked_flag(value: object, name: str) -> bool:
    """Return a true or false value; 1 and 0 count as well.

    Args:
        name: of the argument, with which the message begins.

    Raises:
        PromptError: the value is something else, such as -1 or a text.
    """
    if isinstance(value, (bool, np.bool_, int, np.integer)) and value in (0, 1):
        return bool(value)
    raise PromptError(f"{name} is {short_repr(value)}. Expected True or False: give one of them.")


def short_repr(value: object) -> str:
    """Return the start of a value's repr, for a message; NumPy's numbers as Python's."""
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(value, (list, tuple)):
        value = tuple(c.item() if isinstance(c, np.generic) else c for c in value)
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        return f"a {type(value).__name__} with a number too long to print"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _numbers(place: Iterable[float]) -> tuple[Real, Real, Real] | None:
    """Return three finite numbers; None for anything else."""
    try:
        numbers = tuple(place)
    except TypeError:
        return None
    if len(numbers) != 3 or isinstance(place, (str, bytes, dict, set)):
        return None
    for number in numbers:
        if not isinstance(number, Real) or isinstance(number, (bool, np.bool_)):
            return None
        if not (isinstance(number, Integral) or math.isfinite(number)):
            return None
    return numbers


def _checked_mask(mask: np.ndarray) -> np.ndarray:
    """Return a mask as bool; see `MaskPrompt`."""
    advice = "Expected a bool array (D, H, W) with at least one voxel inside"
    if not isinstance(mask, np.ndarray) or isinstance(mask, np.ma.MaskedArray):
        raise PromptError(
            f"the mask is a {type(mask).__name__}. {advice}: convert it to a NumPy array."
        )
    if mask.dtype.kind not in "buif":
        raise PromptError(f"the mask has dtype {mask.dtype}. {advice}: convert it.")
    if mask.size and not 0 <= float(mask.min()) <= float(mask.max()) < np.inf:
        raise PromptError(
            f"the mask has values from {mask.min()} to {mask.max()}. {advice}, 0 outside: give "
            "logits as logits > 0."
        )
    if mask.ndim != 3 or not mask.any():
        raise PromptError(
            f"the mask has shape {mask.shape} and {np.count_nonzero(mask)} voxels. {advice}: give "
            "the mask of one target."
        )
    return mask.astype(bool, copy=False)
