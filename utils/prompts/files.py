"""Read prompts for images, from a JSON file or from flags on the command line.

    {"coordinates": "zyx",
     "targets": [{"id": 1, "name": "liver",
                  "box": {"from": [30, 180, 200], "to": [50, 240, 310]},
                  "points": [{"at": [40, 210, 260]}, {"at": [38, 190, 220], "positive": false}]}]}

``coordinates`` names the coordinate system of all coordinates in the file:

* ``zyx``: voxel indices from 0 of the array (D, H, W), slice first;
* ``xyz``: voxel indices from 0 in the order of the NIfTI file, as viewers show them;
* ``mm``: world coordinates x, y, z in millimetres, RAS+, as nibabel and FSLeyes give them: by the
  sform, else the qform;
* ``mm-lps``: world coordinates in millimetres, LPS+, as ITK, 3D Slicer's files, ITK-SNAP and DICOM
  give them: by the form that ITK chooses (`utils.volumes.forms`).

Millimetres are rounded to the nearest voxel. Where the two forms of an image lie more than half a
voxel apart, a warning says so.

A box has two opposite corners, both inside. A target's prompts are its box, then its points in the
order listed; ``id`` is the target's number in the answer. ``name``, ``box``, ``points`` and
``positive`` may be left out. Prompts of another order, or several boxes, are listed one by one in
place of ``box`` and ``points``::

    {"id": 1, "prompts": [{"at": [40, 210, 260]}, {"box": {"from": [30, 180, 200],
                                                           "to": [50, 240, 310]}}]}

``"middle_slice": true`` in a box says that its sides along y and x were drawn on one slice in the
middle, so that the target may reach further in other slices.
"""

import argparse
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.files.images import image_stem
from utils.files.safe_read import open_regular, reading
from utils.files.strict_json import JsonError, RepeatedKeyError, parse_json, short_json
from utils.prompts.kinds import BoxPrompt, Click, Prompt, PromptError, checked_box, checked_click
from utils.volumes.forms import LPS
from utils.volumes.geometry import Triple, spacing_zyx
from utils.volumes.grid import GAP_VOXELS, largest_gap_mm
from utils.volumes.labels import MAX_LABEL

COORDINATES = ("zyx", "xyz", "mm", "mm-lps")

logger = logging.getLogger(__name__)


class TargetPrompts(NamedTuple):
    """The prompts of one target, with its number and name."""

    id: int
    name: str
    prompts: list[Prompt]


@dataclass(frozen=True, eq=False)
class PromptSpace:
    """The shape and affine of the prompted image, and the coordinate system of its prompts."""

    coordinates: str  # one of COORDINATES
    shape: tuple[int, int, int]  # (D, H, W)
    affine: np.ndarray  # (x, y, z) voxel centres to RAS+ mm, as nibabel places them
    itk_affine: np.ndarray | None = None  # as ITK places them; None: as nibabel does

    def warn_of_forms(self, name: str) -> None:
        """Log a warning about the image ``name`` where mm mean another voxel in ITK and nibabel."""
        if self.itk_affine is None or not self.coordinates.startswith("mm"):
            return
        gap_mm = largest_gap_mm(self.affine, self.itk_affine, self.shape)
        if gap_mm > GAP_VOXELS * min(spacing_zyx(self.affine)):
            logger.warning(
                "%s: the forms of its header lie up to %.4g mm apart. Coordinates mm mean the "
                "place that nibabel and FSLeyes show, mm-lps the one that ITK and 3D Slicer show: "
                "make sure that %s fits the viewer, or give voxels (xyz)",
                name, gap_mm, self.coordinates,
            )  # fmt: skip

    def click(self, at: Triple, positive: bool) -> Click:
        """Return the click on a voxel.

        Raises:
            PromptError: the image has no such voxel.
        """
        try:
            return checked_click(self.voxel(at), positive, self.shape)
        except PromptError as error:
            others = [name for name in COORDINATES if replace(self, coordinates=name)._holds(at)]
            if not others:
                raise
            raise PromptError(
                f"{error} As coordinates {' or '.join(others)}, {tuple(at)} lies in the image."
            ) from error

    def _holds(self, at: Triple) -> bool:
        place = self.voxel(at)
        return all(0 <= c < n and c == int(c) for c, n in zip(place, self.shape, strict=True))

    def box(self, corner: Triple, opposite: Triple, *, middle_slice: bool = False) -> BoxPrompt:
        """Return the box that holds both corners, cut to the image.

        Raises:
            PromptError: the box lies outside the image.
        """
        corners = np.array([self.voxel(corner), self.voxel(opposite)])
        start, stop = corners.min(axis=0), corners.max(axis=0) + 1
        return checked_box(start, stop, self.shape, middle_slice=middle_slice)

    def voxel(self, at: Triple) -> Triple:
        """Return a coordinate as (z, y, x) of the array."""
        if self.coordinates == "zyx":
            return tuple(at)
        if self.coordinates == "xyz":
            return tuple(at)[::-1]
        affine = self.affine
        if self.coordinates == "mm-lps":
            affine = LPS @ (self.affine if self.itk_affine is None else self.itk_affine)
        x, y, z, _ = np.rint(np.linalg.solve(affine, [*at, 1.0])).tolist()
        return z, y, x


def read_prompt_file(
    path: Path,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    itk_affine: np.ndarray | None = None,
) -> list[TargetPrompts]:
    """Read a JSON file of prompts for an image of this shape and affine.

    Args:
        itk_affine: where ITK places the voxels; None: where ``affine`` does.

    Raises:
        InputError: the file is unreadable or breaks the format, or a prompt lies outside the image.
    """
    with reading(path, "a JSON file of prompts"), open_regular(path) as file:
        text = file.read()
    return parse_prompts(text, str(path), shape, affine, itk_affine)


def parse_prompts(
    text: bytes,
    name: str,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    itk_affine: np.ndarray | None = None,
) -> list[TargetPrompts]:
    """Return the prompts that a JSON text holds; see `read_prompt_file`.

    Args:
        name: of the text's file, for messages.
    """
    try:
        content = parse_json(text)
    except RepeatedKeyError as error:
        raise InputError(
            f"{name}: has {', '.join(map(ascii, error.keys))[:200]} twice in one object. Expected "
            "each key once, since only one of the two would count: correct it."
        ) from error
    except JsonError as error:
        raise InputError(
            f"{name}: is not JSON ({error}). Expected an object with coordinates and targets: "
            "correct it."
        ) from error
    with _naming(name):
        _refuse_markups(content)
        fields = _fields(content, ("coordinates", "targets"))
        if fields["coordinates"] not in COORDINATES:
            _refuse("coordinates", fields["coordinates"], f"one of {', '.join(COORDINATES)}")
        space = PromptSpace(fields["coordinates"], shape, affine, itk_affine)
        space.warn_of_forms(name)
        targets = []
        for number, entry in enumerate(_list(fields["targets"], "targets")):
            with _naming(f"targets[{number}]"):
                targets.append(_target(entry, space))
        ids = [target.id for target in targets]
        if len(set(ids)) < len(ids):
            _refuse("the ids", ids, "each once: join the prompts of one target")
    return targets


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that give prompts; parse the command line that `protect_minus` returns."""
    group = parser.add_argument_group("prompts for images (challenge files hold their own)")
    group.add_argument(
        "--prompts",
        type=Path,
        help="a JSON file, or a folder with a <name>.json for every image <name> (default: "
        "<name>.json beside the image)",
    )
    clicks = {"--fg": "clicks on the target", "--bg": "clicks outside the target, after --fg"}
    for flag, what in clicks.items():
        group.add_argument(
            flag,
            type=_numbers_flag(3),
            nargs="+",
            action="extend",
            default=[],
            metavar="Z,Y,X",
            help=f"{what}; the flags give one target",
        )
    group.add_argument(
        "--box",
        type=_numbers_flag(6),
        metavar="Z0,Y0,X0,Z1,Y1,X1",
        help="two opposite corners of a box around the target, both inside",
    )
    group.add_argument(
        "--coordinates",
        choices=COORDINATES,
        default="zyx",
        help="coordinate system of --fg, --bg and --box: zyx, voxels of the array; xyz, voxels as "
        "viewers show them; mm, RAS+ millimetres x,y,z; mm-lps, as ITK, DICOM and files of 3D "
        "Slicer hold them (default: zyx)",
    )


def protect_minus(argv: Sequence[str] | None = None) -> list[str]:
    """Return the command line with a blank before ``-1.5,3,4``, which argparse takes for a flag."""
    argv = sys.argv[1:] if argv is None else argv
    return [f" {word}" if re.match(r"-[\d.]+(e[-+]?\d+)?,", word) else word for word in argv]


def gives_prompts(args: argparse.Namespace) -> bool:
    """Tell whether the command line gives any prompts."""
    return bool(args.prompts or args.fg or args.bg or args.box)


def find_prompts(
    args: argparse.Namespace,
    image_path: Path,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    itk_affine: np.ndarray | None = None,
) -> list[TargetPrompts]:
    """Return the prompts for an image: from flags, from --prompts, or from a file beside the image.

    Raises:
        InputError: there are no prompts, or prompts in two places.
    """
    if args.fg or args.bg or args.box:
        if args.prompts:
            raise InputError(
                f"--prompts {args.prompts}: found --fg, --bg or --box too. Expected prompts in one "
                "place: leave one of them out."
            )
        space = PromptSpace(args.coordinates, shape, affine, itk_affine)
        space.warn_of_forms(str(image_path))
        return [_flag_target(args, space)]
    path = prompt_file(image_path, args.prompts)
    if not path.exists():
        raise InputError(
            f"{image_path}: has no prompts, found no {path}. Expected that file: write it, name "
            "another with --prompts, or give --fg, --bg or --box."
        )
    return read_prompt_file(path, shape, affine, itk_affine)


def prompt_file(image_path: Path, given: Path | None) -> Path:
    """Return the file of an image's prompts: beside it, or as ``--prompts`` gives it."""
    name = f"{image_stem(image_path)}.json"
    if given is None:
        return image_path.with_name(name)
    return given / name if given.is_dir() else given


def _flag_target(args: argparse.Namespace, space: PromptSpace) -> TargetPrompts:
    prompts: list[Prompt] = []
    if args.box:
        with _naming("--box"):
            prompts.append(space.box(args.box[:3], args.box[3:]))
    for flag, places in (("--fg", args.fg), ("--bg", args.bg)):
        for place in places:
            with _naming(flag):
                prompts.append(space.click(place, flag == "--fg"))
    return TargetPrompts(1, "", prompts)


def _numbers_flag(count: int) -> Callable[[str], Triple]:
    def parse(text: str) -> Triple:
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise argparse.ArgumentTypeError(
                f"found {text.strip()!r}, expected {count} numbers with commas between"
            )
        return numbers

    return parse


def _target(entry: object, space: PromptSpace) -> TargetPrompts:
    fields = _fields(entry, ("id",), {"name": "", "box": None, "points": [], "prompts": None})
    number, name = fields["id"], fields["name"]
    if type(number) is not int or not 1 <= number <= MAX_LABEL:
        _refuse("id", number, f"a whole number from 1 to {MAX_LABEL}")
    if not isinstance(name, str):
        _refuse("name", name, "text")
    prompts: list[Prompt] = []
    if fields["box"] is not None:
        prompts.append(_box(fields["box"], space))
    for k, point in enumerate(_list(fields["points"], "points")):
        with _naming(f"points[{k}]"):
            prompts.append(_point(point, space))
    listed = [] if fields["prompts"] is None else _list(fields["prompts"], "prompts")
    if listed and prompts:
        _refuse("prompts", listed, "either them or box and points")
    for k, given in enumerate(listed):
        with _naming(f"prompts[{k}]"):
            is_box = isinstance(given, dict) and "box" in given
            box = _fields(given, ("box",))["box"] if is_box else None
            prompts.append(_box(box, space) if is_box else _point(given, space))
    return TargetPrompts(number, name, prompts)


def _box(entry: object, space: PromptSpace) -> BoxPrompt:
    with _naming("box"):
        box = _fields(entry, ("from", "to"), {"middle_slice": False})
        if not isinstance(box["middle_slice"], bool):
            _refuse("middle_slice", box["middle_slice"], "true or false")
        corners = [_place(box[key], key) for key in ("from", "to")]
        return space.box(*corners, middle_slice=box["middle_slice"])


def _point(entry: object, space: PromptSpace) -> Click:
    fields = _fields(entry, ("at",), {"positive": True})
    if not isinstance(fields["positive"], bool):
        _refuse("positive", fields["positive"], "true or false")
    return space.click(_place(fields["at"], "at"), fields["positive"])


def _place(value: object, key: str) -> Triple:
    good = isinstance(value, list) and len(value) == 3
    if not good or not all(type(c) in (int, float) and abs(c) < 1e9 for c in value):
        _refuse(key, value, "three numbers in brackets")
    return tuple(value)


def _refuse_markups(content: object) -> None:
    """Refuse a markups file of 3D Slicer, showing its first point in this format."""
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list):
        return
    coordinates, place = "mm-lps", "[x, y, z]"
    with suppress(KeyError, IndexError, TypeError):
        coordinates = "mm" if markups[0]["coordinateSystem"] in ("RAS", 0, "0") else coordinates
        place = f"{json.dumps(markups[0]['controlPoints'][0]['position']):.80}"
    raise PromptError(
        "is a markups file of 3D Slicer. Expected prompts, which also say what each point is of: "
        f'write {{"coordinates": "{coordinates}", "targets": [{{"id": 1, "points": [{{"at": '
        f'{place}, "positive": true}}]}}]}}, with one entry a point.'
    )


def _fields(entry: object, required: tuple[str, ...], optional: dict | None = None) -> dict:
    """Return the entries of a JSON object; those left out get their defaults."""
    optional = optional or {}
    keys = (*required, *optional)
    if not isinstance(entry, dict):
        _refuse("the entry", entry, f"an object with {', '.join(keys)}")
    unknown = [key for key in entry if key not in keys]
    missing = [key for key in required if key not in entry]
    if unknown or missing:
        faults = {"unknown": unknown, "missing": missing}
        found = ", ".join(f"{fault} {key!r}" for fault, those in faults.items() for key in those)
        raise PromptError(f"{found[:200]}. Expected the keys {', '.join(keys)}: correct the file.")
    return optional | entry


def _list(value: object, key: str) -> list:
    if not isinstance(value, list):
        _refuse(key, value, "a list in brackets")
    return value


def _refuse(what: str, found: object, expected: str) -> None:
    raise PromptError(f"{what} is {short_json(found, most=80)}. Expected {expected}.")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put the place of a prompt in front of error messages about it."""
    try:
        yield
    except InputError as error:
        raise PromptError(f"{where}: {error}") from error
