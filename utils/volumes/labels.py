"""Label arrays: their values, and which instances become targets.

A label is (D, H, W), and 0 is background. A binary label is uint8; an instance label is uint16, and
its values number the objects of one class. Files may hold values that a header's scale or a
registration in float32 moved off the whole numbers; those are rounded here and nowhere else.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError, require_number

MAX_LABEL = 65535  # labels are uint8 or uint16
ROUNDING = 1e-3  # values at most this far from a whole number are rounded to it

logger = logging.getLogger(__name__)


class CheckedLabel(NamedTuple):
    """A label, and notes on what was done to its values."""

    array: np.ndarray  # (D, H, W) uint8 or uint16
    notes: list[str]  # empty where the values were whole


def as_label(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the array of `checked_label`; its notes go to the log."""
    label, notes = checked_label(array, path)
    for note in notes:
        logger.warning("%s: %s", path, note)
    return label


def checked_label(array: np.ndarray, path: Path) -> CheckedLabel:
    """Return ``array`` as uint8 or uint16; the values must be whole, from 0 to 65535.

    Values within 1e-3 of a whole number are rounded to it.

    Args:
        array: (D, H, W) finite numbers of any dtype, as `read_npz` returns ``gts``.
        path: the file of the array, for the message.

    Raises:
        InputError: a value is a fraction, negative, or above 65535.
    """
    notes = []
    if array.dtype.kind == "f":
        array, furthest = _rounded(array, path)
        if furthest:
            notes.append(f"label values up to {furthest:.1e} from whole numbers were rounded")
    if array.min() < 0:
        raise InputError(
            f"{path}: the label holds negative values, {_all_digits(array.min())} the lowest. "
            "Expected class numbers from 0 (background) up: map the values to those of the class "
            "file."
        )
    if array.max() > MAX_LABEL:
        raise InputError(
            f"{path}: the label holds the value {_all_digits(array.max())}. Expected at most "
            f"{MAX_LABEL}: number classes, or the instances of the case, from 1."
        )
    label = array.astype(np.min_scalar_type(int(array.max())), copy=False)
    return CheckedLabel(label, notes)


def _rounded(array: np.ndarray, path: Path) -> tuple[np.ndarray, float]:
    """Return whole values, and how far the furthest value was from its whole number."""
    out, furthest = None, 0.0
    for number, plane in enumerate(array):  # plane by plane, which saves memory
        whole = np.rint(plane)
        distance = np.abs(plane - whole)
        if (here := float(distance.max())) == 0:
            continue
        if here > ROUNDING:
            fraction = _all_digits(plane[distance > ROUNDING][0])
            raise InputError(
                f"{path}: the label holds fractions, {fraction} among them. Expected whole class "
                "numbers, 0 for background: a label is never interpolated or scaled; export it "
                "again."
            )
        out = array.copy() if out is None else out
        out[number] = whole
        furthest = max(furthest, here)
    return array if out is None else out, furthest


def _all_digits(value: np.number) -> str:
    """Return a value with as many digits as it needs to differ from all others."""
    return str(value).removesuffix(".0")


def count_values(label: np.ndarray) -> dict[int, int]:
    """Return the number of voxels of each value but 0 of a label (`as_label`), in one pass."""
    flat = label.reshape(-1)
    totals = np.zeros(int(label.max()) + 1, np.int64)
    for start in range(0, flat.size, 2**14):  # small blocks: most hold only background
        piece = flat[start : start + 2**14]
        if piece.any():
            counts = np.bincount(piece)
            totals[: len(counts)] += counts
    return {int(value): int(totals[value]) for value in np.flatnonzero(totals) if value}


@dataclass(frozen=True)
class InstanceRule:
    """Which instances of a label are targets; a binary label is one target of any size.

    Raises:
        InputError: a field is out of its range.
    """

    most: int = 0  # only this many of the largest, of equal ones the first; 0 = all
    min_voxels: int = 64  # 4 x 4 x 4: half a token of the network's grid along each axis

    def __post_init__(self) -> None:
        require_number("--max-instances", self.most, 0, whole=True)
        require_number("--min-instance-voxels", self.min_voxels, 0, whole=True)

    def values_of(self, label: np.ndarray) -> list[int]:
        """Return the values that become targets, rising; the largest instance always does."""
        counts = count_values(label)
        by_size = sorted(counts, key=lambda value: -counts[value])
        useful = [value for value in by_size if counts[value] >= self.min_voxels] or by_size[:1]
        return sorted(useful[: self.most or None])


ALL_USEFUL = InstanceRule()
