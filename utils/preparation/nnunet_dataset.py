"""The description of an nnU-Net data set, dataset.json, checked.

nnU-Net v2 has ``channel_names`` {number: name} and ``labels`` {name: value, or values of a region};
v1 has ``modality`` and {value: name}. Classes and channels, also those given by flags ("1=liver"),
become folders of the tree: no name may be a path, and no two may become one folder.

Any fault raises `InputError`, whose message begins with the file or flag.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cases.label_table import MAX_SLUG_BYTES, organ_slug
from utils.errors import InputError
from utils.files.images import IMAGE_SUFFIXES
from utils.files.names import is_portable_folder
from utils.files.safe_read import open_regular, reading
from utils.files.strict_json import RepeatedKeyError, parse_json
from utils.preparation.volume_files import IMAGE_ROLE
from utils.volumes.labels import MAX_LABEL

CHANNEL = re.compile(r"_[0-9]{4}$")  # at the end of an image's name


@dataclass(frozen=True)
class Description:
    """Channels and classes of a dataset.json."""

    channels: dict[int, str]  # number -> name
    classes: dict[str, list[int]]  # name -> label values whose union it is
    ignored: list[int]  # label values that belong to no class


def read_description(path: Path) -> Description:
    """Read and check a dataset.json of nnU-Net v2 or v1.

    Raises:
        InputError: the file is missing, is not JSON, or lacks an entry.
    """
    with reading(path, "the JSON description of an nnU-Net data set"), open_regular(path) as file:
        try:
            content = parse_json(file.read())
        except RepeatedKeyError as error:
            twice = error.keys[0]
            raise _malformed(
                path, f"has {twice!r:.60} twice in one object", "one entry each"
            ) from error
    if not isinstance(content, dict):
        raise _malformed(path, f"holds {content!r:.60}", "an object with channels and labels")
    channels = content.get("channel_names", content.get("modality"))
    ending = content.get("file_ending", None if "channel_names" in content else ".nii.gz")
    if not isinstance(channels, dict) or not channels:
        raise _malformed(
            path,
            f"has the channels {channels!r:.60}",
            "'channel_names' (in v1 'modality'), number -> name",
        )
    for number, name in channels.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,3}", number):
            raise _malformed(path, f"has the channel {number!r:.60}", "numbers from 0 to 9999")
        _require_harmless(path, name)
    if not isinstance(ending, str) or ending.lower() not in IMAGE_SUFFIXES:
        raise InputError(
            f"{path}: 'file_ending' is {ending!r:.60}. Expected one of {IMAGE_SUFFIXES}: convert "
            "images and labels to NIfTI, then correct the entry."
        )
    classes, ignored = checked_classes(path, _pairs_of(path, content.get("labels")))
    return Description({int(n): name for n, name in channels.items()}, classes, ignored)


def classes_of_flags(
    texts: Sequence[str], *, instances: bool
) -> tuple[dict[str, list[int]], list[int]]:
    """Return the `checked_classes` of ``--classes``, texts such as "1=liver"."""
    pairs = []
    for text in texts:
        match = re.fullmatch(r"([0-9]{1,6}) *= *(\S.*)", text)
        if not match:
            raise InputError(
                f"--classes has {text!r}. Expected VALUE=NAME, such as 1=liver: put quotes around "
                'a name with spaces, "2=left kidney".'
            )
        pairs.append((match[2], [int(match[1])]))
    values = [value for _, (value,) in pairs]
    if len(set(values)) < len(values) or (instances and values != [1]):
        raise InputError(
            f"--classes has the values {values}. Expected each once, and only 1 with --instances."
        )
    return checked_classes("--classes", pairs)


def checked_classes(
    where: Path | str, pairs: list[tuple[str, list]]
) -> tuple[dict[str, list[int]], list[int]]:
    """Return class -> values, and the values to ignore.

    Args:
        where: the file or flag, for messages.
        pairs: names with their values, unchecked.

    Raises:
        InputError: a name or value cannot be used, two names become one folder, or there is no
            class.
    """
    classes, ignored, organs = {}, [], {}
    for name, values in pairs:
        _require_harmless(where, name)
        good = all(type(v) is int and 0 <= v <= MAX_LABEL for v in values)
        is_background = values == [0]
        if not values or not good or (is_background != (0 in values or name == "background")):
            raise _malformed(
                where,
                f"label {name!r:.60} has the values {values!r:.60}",
                f"whole numbers from 1 to {MAX_LABEL}, and 0 for background alone",
            )
        if is_background or name == "ignore":
            ignored += values
            continue
        try:
            first = organs.setdefault(organ_slug(name), name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if name in classes or first != name:
            raise _malformed(
                where,
                f"classes {first!r} and {name!r} would share the folder {organ_slug(name)!r}",
                "names that differ by a letter or digit",
            )
        classes[name] = sorted(set(values))
    both = {v for values in classes.values() for v in values} & set(ignored)
    if not classes or both:
        raise _malformed(
            where,
            f"has the classes {classes!r:.60} beside the ignored values {ignored}",
            "at least one class, with values of its own",
        )
    return classes, ignored


def folders_of(name: str, channels: dict[int, str]) -> dict[str, str]:
    """Return role -> data set, for the image of each channel."""
    if len(channels) == 1:
        return dict.fromkeys(map(_role_of, channels), name)
    safe = {
        number: re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", channel)).strip("_")
        for number, channel in channels.items()
    }
    if not all(safe.values()) or len({s.lower() for s in safe.values()}) < len(safe):
        safe = {number: f"{s}_{number}".strip("_") for number, s in safe.items()}
    folders = {_role_of(number): f"{name}_{s}" for number, s in safe.items()}
    for folder in folders.values():
        require_folder_name(folder, "a channel's data set")
    return folders


def chosen_channels(folder: Path, channels: dict[int, str], wanted: list[str]) -> list[str]:
    """Return the roles of the channels that ``--channels`` names; a number precedes a name."""
    chosen = set()
    for each in wanted:
        numbers = [n for n in channels if str(n) == each] or [
            n for n, name in channels.items() if name == each
        ]
        if not numbers:
            raise InputError(
                f"--channels: {folder} has no channel {each!r}. Expected a number or a name of "
                f"{channels}."
            )
        chosen.update(numbers)
    return [_role_of(number) for number in sorted(chosen)]


def require_folder_name(name: str, what: str) -> None:
    """Refuse a data set's name that cannot be a folder, or leads out of the tree."""
    if not is_portable_folder(name) or len(os.fsencode(name)) > MAX_SLUG_BYTES:
        raise InputError(
            f"{what} is called {name!r:.250}. Expected a folder's name: printable, at most "
            f"{MAX_SLUG_BYTES} bytes, no path, no dot in front, and allowed on Windows too."
        )


def _pairs_of(path: Path, labels: object) -> list[tuple[str, list]]:
    """Return class names and their values: v2 has {name: value or values}, v1 {value: name}."""
    if not isinstance(labels, dict) or not labels:
        raise _malformed(path, f"has the labels {labels!r:.60}", "'labels', name -> value")
    if all(isinstance(name, str) for name in labels.values()):
        numbers = re.compile(r"0|[1-9][0-9]{0,4}")
        return [(n, [int(v) if numbers.fullmatch(v) else v]) for v, n in labels.items()]
    return [(n, v if isinstance(v, list) else [v]) for n, v in labels.items()]


def _role_of(channel: int) -> str:
    return f"{IMAGE_ROLE}_{channel:04d}"


def _require_harmless(where: Path | str, name: object) -> None:
    """Refuse names that are paths; a slash between words, "prostate/uterus", is allowed."""
    parts = name.split("/") if isinstance(name, str) else []
    good = parts and all(part.strip(" .") for part in parts) and "\\" not in name
    if not good or not name.isprintable():
        raise _malformed(
            where, f"has the name {name!r:.60}", "printable text that is not a path, without .."
        )


def _malformed(where: Path | str, found: str, expected: str) -> InputError:
    return InputError(f"{where}: {found}. Expected {expected}: correct it.")
