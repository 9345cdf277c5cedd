"""Challenge files: read image and prompts, write the segmentation.

The k-th entry of ``boxes`` and of ``clicks`` belongs to class k. The prompts of a class are its
box, then its clicks in the order clicked. The object arrays exist in several forms, and all are
read: arrays of dicts, wrapped in a 0-d array, empty, or with None inside.
``prev_pred``, the last answer, is not read: starting from it scored lower (docs/results.md).

An entry of another form raises `InputError`. A box or click outside the image is moved to the
nearest voxel, and a missing order of clicks is replaced by foreground and background in turn. Both
are logged as warnings, so one bad prompt does not make the case unusable.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from utils.cases.label_table import is_ct
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.npz import checked_arrays
from utils.files.npz_archive import NpzArchive
from utils.prompts.kinds import BoxPrompt, Click, Prompt
from utils.volumes.intensity import holds_hounsfield

#: Keys of a box's two corners (z, y, x), both inside; y and x extents are of the middle slice.
BOX_CORNERS = (("z_min", "z_mid_y_min", "z_mid_x_min"), ("z_max", "z_mid_y_max", "z_mid_x_max"))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ChallengeCase:
    """The image and the prompts of a challenge file."""

    image: np.ndarray  # (D, H, W), uint8 in the challenge
    spacing_xyz: tuple[float, float, float]  # mm
    prompts: list[list[Prompt]]  # of class 1, 2, ...; a class without prompts has an empty list
    hounsfield: bool  # values are Hounsfield units; False for the challenge's own files

    @property
    def boxes(self) -> list[list[Prompt]] | None:
        """For each class a list of its box, or an empty list; None if no class has a box."""
        boxes = [[p for p in own if isinstance(p, BoxPrompt)] for own in self.prompts]
        return boxes if any(boxes) else None


def read_challenge_case(path: Path) -> ChallengeCase:
    """Read image and prompts of a challenge file.

    Raises:
        InputError: the file is damaged, lacks ``imgs`` or ``spacing``, or holds a box or click of
            another form.
    """
    with NpzArchive(path) as npz:
        arrays = checked_arrays(npz, ("imgs", "spacing"))
        boxes, clicks, order = (_entries(npz, key) for key in ("boxes", "clicks", "clicks_order"))
    image = arrays["imgs"]
    prompts = _PromptReader(Path(path), image.shape).read(boxes, clicks, order)
    hounsfield = holds_hounsfield(image, is_ct(Path(path).stem))
    return ChallengeCase(image, tuple(arrays["spacing"].tolist()), prompts, hounsfield)


def write_segs(path: Path, segs: np.ndarray) -> None:
    """Write an answer in the evaluator's form: ``segs`` (D, H, W) of class ids.

    Raises:
        WriteError: the disk is full, or the folder is not writable.
    """
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, segs=segs)


def _entries(npz: NpzArchive, key: str) -> list:
    if key not in npz.headers:
        return []
    return _as_list(npz.objects[key] if key in npz.objects else npz.array(key))


def _as_list(value: object) -> list:
    """Return the entries of a list or array, also if 0-d arrays wrap it."""
    while isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if value is None:
        return []
    return list(value) if isinstance(value, (np.ndarray, list, tuple)) else [value]


class _PromptReader:
    """Turns the entries of one file into prompts.

    Args:
        path: the file; each message begins with it.
        shape: (D, H, W) of the image.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path, self._last = path, np.array(shape) - 1

    def read(self, boxes: list, clicks: list, order: list) -> list[list[Prompt]]:
        """Return every class's prompts."""
        if boxes and clicks and len(boxes) != len(clicks):
            self._warn("%d boxes and %d entries of clicks", len(boxes), len(clicks))
        classes = max(len(boxes), len(clicks))
        prompts: list[list[Prompt]] = [[] for _ in range(classes)]
        for k, entry in enumerate(boxes):
            if entry is not None:
                prompts[k].append(self._box(k + 1, entry))
        for k, entry in enumerate(clicks):
            prompts[k] += self._clicks(k + 1, entry, _orders(order, k, classes))
        return prompts

    def _box(self, number: int, entry: object) -> BoxPrompt:
        entry = self._dict(entry, f"the box of class {number}", sum(BOX_CORNERS, ()))
        corners = self._numbers([[entry[key] for key in keys] for keys in BOX_CORNERS], entry)
        inside = np.clip(np.sort(corners, axis=0), 0, self._last)
        if (inside != corners).any():
            self._warn(
                "class %d: the box %s is not a box inside the image; used %s",
                number, corners.tolist(), inside.tolist(),
            )  # fmt: skip
        return BoxPrompt(tuple(inside[0].tolist()), tuple((inside[1] + 1).tolist()), True)

    def _clicks(self, number: int, entry: object, orders: Sequence[list[str]]) -> list[Click]:
        if entry is None:
            return []
        entry = self._dict(entry, f"the clicks of class {number}", ())
        places = {kind: self._places(number, entry.get(kind)) for kind in ("fg", "bg")}
        counts = {kind: len(those) for kind, those in places.items()}
        order = next((order for order in orders if Counter(order) == Counter(counts)), None)
        if order is None:
            pairs = zip_longest(*([kind] * count for kind, count in counts.items()))
            order = [kind for pair in pairs for kind in pair if kind]
            if all(counts.values()):
                self._warn(
                    "class %d: no order fits its %d foreground and %d background clicks; used "
                    "alternately", number, *counts.values(),
                )  # fmt: skip
        waiting = {kind: iter(those) for kind, those in places.items()}
        return [Click(next(waiting[kind]), kind == "fg") for kind in order]

    def _places(self, number: int, listed: object) -> list[tuple[int, int, int]]:
        rows = _as_list(listed)
        if not rows:
            return []
        given = np.atleast_2d(self._numbers(rows, listed))
        nearest = np.clip(np.rint(given), 0, self._last)
        for click, voxel in zip(given.tolist(), nearest.tolist(), strict=True):
            if click != voxel:
                self._warn("class %d: the click %s is not a voxel; used %s", number, click, voxel)
        return [tuple(voxel) for voxel in nearest.astype(int).tolist()]

    def _numbers(self, values: object, entry: object) -> np.ndarray:
        """Return (n, 3) or (3,) finite numbers."""
        try:
            array = np.asarray(values, float)
        except (TypeError, ValueError, OverflowError):
            array = np.empty(0)
        if array.ndim not in (1, 2) or array.shape[-1] != 3 or not np.isfinite(array).all():
            raise InputError(
                f"{self._path}: found the prompt {_shortened(entry)}. Expected three finite voxel "
                "indices z, y, x for every corner and click: write the file again."
            )
        return array

    def _dict(self, entry: object, what: str, keys: tuple[str, ...]) -> dict:
        if isinstance(entry, np.ndarray) and entry.size == 1:
            entry = entry.item()
        missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else keys
        if missing or not isinstance(entry, dict):
            expected = f"the keys {', '.join(keys)}" if keys else "the keys fg and bg"
            raise InputError(
                f"{self._path}: {what} is {_shortened(entry)}. Expected a dict with {expected}: "
                "write the file again, or leave the array out."
            )
        return entry

    def _warn(self, message: str, *values: object) -> None:
        logger.warning("%s: " + message, self._path, *values)


def _orders(entries: list, k: int, classes: int) -> list[list[str]]:
    """Return the possible orders of class ``k``'s clicks, the likeliest first.

    A list of lists has one order per class. A flat list holds the classes in turn, step by step, or
    the order of one class alone; the caller decides by the number of clicks.
    """
    if any(isinstance(row, (np.ndarray, list, tuple)) for row in entries):
        candidates = [_as_list(row) for row in entries[k : k + 1]]
    else:
        candidates = [entries[k::classes], entries]
    return [[str(kind) for kind in row if kind is not None] for row in candidates]


def _shortened(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
