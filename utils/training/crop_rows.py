"""The rows of a crop cache's index: which keys and values they have, and which files they name.

A cache may come from another machine. Its rows hold names of files and sizes of images, so each row
is checked before it is used.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from utils.errors import InputError
from utils.files.names import has_control_characters, is_inside

IMAGES = "images"
IMAGE_NAME = re.compile(rf"{IMAGES}/[0-9a-f]{{32}}\.npy")
MASK_DIGEST = re.compile(r"[0-9a-f]{16}")
MAX_SIDE = 2**20  # voxels

#: Keys of a target's own file that index.json omits.
ORIGIN = (
    *("layout", "sources", "instances", "affine", "modality"),
    *("targets", "part_start", "part_shape"),
)


class CropRow(msgspec.Struct):
    """The types of a row; `utils.training.crop_cache.CropIndex` says what the keys mean."""

    sample_id: str
    case: str
    organ: str
    dataset: str
    file: str
    image: str
    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    hounsfield: bool
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    mask: str


def lean(row: dict) -> dict:
    """Return the index row of a target; it is short, since a process may hold 131,000 rows."""
    return {key: value for key, value in row.items() if key not in ORIGIN}


def checked_rows(path: Path, rows: object) -> list[dict]:
    """Return the rows of an index, once all of them have been checked.

    Args:
        path: the index, for the message.
        rows: what it holds as its ``samples``.

    Raises:
        InputError: there is no row, a row cannot be right, or two are of one sample.
    """
    if not isinstance(rows, list) or not rows:
        raise _wrong(path, "it lists no targets")
    for row in rows:
        fault = _fault(row)
        if fault:
            raise _wrong(path, fault)
    twice = _first_repeated(row["sample_id"] for row in rows)
    if twice is not None:
        raise _wrong(path, f"{twice} is listed twice")
    return rows


def require_row(path: Path, folder: Path, row: object) -> None:
    """Raise an `InputError` if a row cannot be right, or names a file outside of ``folder``."""
    fault = _fault(row)
    if not fault and not all(is_inside(row[key], folder) for key in ("file", "image")):
        fault = f"{row['sample_id']}: names files outside of the cache"
    if fault:
        raise _wrong(path, fault)


def _fault(row: object) -> str:
    """Return what is wrong with a row, or ""."""
    try:
        typed = msgspec.convert(row, CropRow)
    except msgspec.ValidationError as error:
        return f"a target {str(error)[:200]}"
    for name in (typed.organ, typed.dataset, *typed.sample_id.split("/")):
        if name in ("", ".", "..") or "/" in name or "\\" in name or has_control_characters(name):
            return f"{typed.sample_id[:99]!r}: is no name of a target"
    of_case = f"{typed.organ}/{typed.dataset}/"
    if not (typed.case.startswith(of_case) and typed.sample_id.startswith(typed.case)):
        return f"{typed.sample_id}: is not of organ, data set and case {of_case}"
    if typed.sample_id.count("/") != 2 or typed.file != f"{typed.sample_id}.npz":
        return f"{typed.sample_id}: its file is {typed.file[:99]!r}"
    if not IMAGE_NAME.fullmatch(typed.image) or not MASK_DIGEST.fullmatch(typed.mask):
        return f"{typed.sample_id}: its image or mask is {typed.image[:99]!r}, {typed.mask[:99]!r}"
    if not all(math.isfinite(mm) and 0 < mm < 1e6 for mm in typed.voxel_mm):
        return f"{typed.sample_id}: its voxel_mm is {typed.voxel_mm}"
    sides = zip(typed.start, typed.stop, typed.shape, strict=True)
    if not all(0 <= start < stop <= length <= MAX_SIDE for start, stop, length in sides):
        return f"{typed.sample_id}: its box {typed.start} to {typed.stop} is not in its image"
    return ""


def _first_repeated(names: Iterable[str]) -> str | None:
    seen = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _wrong(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: cannot be used ({found}), expected targets as preparelabel.py lists them.\n"
        "Run preparelabel.py again on the prepared folders: it writes the index anew."
    )
