"""The class file (``CVPR25.json``): data sets, their classes and modality, organ folders.

Schema: ``{data set: {"1": ["Liver", text prompt, ...], ..., "instance_label": 0 or 1}}``. Keys
other than ``instance_label`` are label values, 1 and up; the first string of a list, or a bare
string, is the class's name. ``instance_label: 1`` means that label values are instance numbers of
the one class "1".

A file belongs to the data set whose key is the longest prefix of its case id.

Organ folders are named by `organ_slug`. Class names with one slug differ in case, spaces and
punctuation only ("Left atrium", "Left Atrium"): the same organ, one folder. Within a data set two
classes must not share a slug, because a case has one label per organ.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils.errors import InputError
from utils.files.names import DEVICES, colliding_names, collision_key, is_portable_folder
from utils.files.safe_read import open_regular
from utils.files.strict_json import JsonError, RepeatedKeyError, parse_json, short_json
from utils.volumes.intensity import named_modality
from utils.volumes.labels import MAX_LABEL

INSTANCE_KEY = "instance_label"
MAX_SLUG_BYTES = 200  # of an organ folder's or data set's name: file systems allow 255

# The published class file and the published file names spell this data set differently. The key may
# have either spelling; files in both spellings belong to it.
SPELLINGS = (("CT_AbdomenCT1K", "CT_Abdomen1K"), ("CT_Abdomen1K", "CT_AbdomenCT1K"))


class LabelTableError(InputError):
    """The class file is malformed, or lacks a data set or class that a file has."""


@dataclass(frozen=True)
class DatasetLabels:
    """The meaning of the label values of one data set."""

    classes: dict[int, str]  # label value -> class name
    instance: bool  # values are instance numbers of the one class 1

    @cached_property
    def organs(self) -> dict[int, str]:
        """Label value -> name of the organ's folder."""
        return {value: organ_slug(name) for value, name in self.classes.items()}


@dataclass(frozen=True)
class LabelTable:
    """The classes of all data sets."""

    path: Path  # the class file, for messages
    datasets: dict[str, DatasetLabels]

    def dataset_of(self, case_id: str) -> str:
        """Return the longest key that ``case_id`` starts with, in either published spelling."""
        for length in self._lengths:
            if key := self._spelled.get(case_id[:length]):
                return key
        raise LabelTableError(
            f"{case_id}: starts with no data set of {self.path} "
            f"({len(self.datasets)} known: {_some(self.datasets)}).\nExpected a file name "
            "that starts with a data set's key: rename the file, or add the data set."
        )

    @cached_property
    def _spelled(self) -> dict[str, str]:
        """Start of a case id -> key; a data set has a second start if it has two spellings."""
        others = {spelled: key for key, spelled in SPELLINGS if key in self.datasets}
        return others | {key: key for key in self.datasets}

    @cached_property
    def _lengths(self) -> list[int]:
        """The lengths of all starts, the longest first."""
        return sorted({len(start) for start in self._spelled}, reverse=True)

    def labels_of(self, dataset: str) -> DatasetLabels:
        """Return the classes of a data set by its exact key."""
        if dataset not in self.datasets:
            raise LabelTableError(
                f"{dataset}: not a data set of {self.path} ({_some(self.datasets)}).\n"
                "Expected one of its keys: give the class file that classify.py used, --json."
            )
        return self.datasets[dataset]

    def shared_folders(self, datasets: Iterable[str]) -> list[str]:
        """Return a line for each organ folder of classes whose names are spelled differently.

        Such names differ in case, spaces and punctuation only; the user should check that they mean
        the same organ.
        """
        spellings: dict[str, dict[str, str]] = {}
        for dataset in sorted(set(datasets) & self.datasets.keys()):
            labels = self.datasets[dataset]
            for value, organ in labels.organs.items():
                spellings.setdefault(organ, {}).setdefault(labels.classes[value], dataset)
        return [
            f"{organ}: the folder takes "
            + ", ".join(f"{name!r} ({d})" for name, d in names.items())
            for organ, names in sorted(spellings.items())
            if len(names) > 1
        ]


def modality_of(dataset: str) -> str:
    """Return the part of a data set's key, or of a case id, before the first ``_``.

    The challenge's keys begin with CT, MR, US, Microscopy, autoPET (PET), cremi and nucmm (electron
    microscopy).
    """
    return dataset.split("_")[0]


def is_ct(dataset: str, modality: str = "") -> bool | None:
    """Tell whether a data set or case is CT, by its name; None where the name does not say.

    Args:
        modality: what the source of the data set calls it, which counts where the name says none.

    >>> is_ct("CT_AMOS_0004"), is_ct("MR_CT_x"), is_ct("Dataset009_Spleen", "CT"), is_ct("Spleen")
    (True, False, True, None)
    """
    said = named_modality(dataset) or named_modality(modality)
    return None if said is None else said == "ct"


def organ_slug(name: str) -> str:
    """Return the folder name of a class: "Left gluteus Maximus" -> "left_gluteus_maximus".

    The name in Unicode's compatibility composition (NFKC) and lower case, with one underscore for
    every run of characters other than letters and digits, and none at the ends.
    """
    slug = re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", name).lower()).strip("_")
    if len(slug.encode()) > MAX_SLUG_BYTES:
        raise LabelTableError(
            f"class name {name[:40]!r}... has {len(name)} characters. Expected at most "
            f"{MAX_SLUG_BYTES} bytes, since it becomes a folder: shorten it in the class file."
        )
    if not slug:
        raise LabelTableError(
            f"class name {name!r} holds no letter or digit. Expected a name that can become a "
            "folder: change it in the class file."
        )
    if slug in DEVICES:
        raise LabelTableError(
            f"class name {name!r} would be the folder {slug!r}, which Windows keeps for a device. "
            "Expected another name: change it in the class file."
        )
    return slug


def read_label_table(path: Path) -> LabelTable:
    """Read and check a class file.

    Raises:
        LabelTableError: the file is missing, is not JSON, or breaks the schema above.
    """
    try:
        with open_regular(path) as file:
            content = parse_json(file.read())
    except RepeatedKeyError as error:
        raise LabelTableError(
            f"{path}: {_some(sorted(error.keys))} is there twice in one object. Expected one entry "
            "each: delete one."
        ) from error
    except OSError as error:
        raise LabelTableError(
            f"{path}: cannot be opened ({error.strerror}). Expected the class file, CVPR25.json: "
            "check the path given with --json."
        ) from error
    except JsonError as error:
        raise LabelTableError(
            f"{path}: is not JSON ({error}). Expected {{data set: {{value: names}}}}: correct it."
        ) from error
    if not isinstance(content, dict) or not content:
        raise LabelTableError(
            f"{path}: holds {short_json(content)}. Expected an object with one entry per data set: "
            "correct it."
        )
    if pairs := colliding_names(content):
        raise LabelTableError(
            f"{path}: the data sets {pairs[0][0]!a} and {pairs[0][1]!a} would be one folder on "
            "macOS or Windows. Expected keys that differ in more than upper and lower case or the "
            "form of a Unicode character: rename one, and its files."
        )
    return LabelTable(path, {key: _dataset(path, key, entry) for key, entry in content.items()})


def _dataset(path: Path, dataset: str, entry: object) -> DatasetLabels:
    """Check one data set's entry of the class file."""
    where = f"{path}, data set {dataset!r}"
    if not is_portable_folder(dataset) or len(dataset.encode()) > MAX_SLUG_BYTES:
        raise LabelTableError(
            f"{where}: cannot be a folder's name. Expected the common start of its file names: "
            "rename the entry."
        )
    if not isinstance(entry, dict):
        raise LabelTableError(
            f"{where}: holds {short_json(entry)}. Expected {{value: names}}: correct it."
        )
    if entry.get(INSTANCE_KEY) not in (0, 1):
        raise LabelTableError(
            f"{where}: {INSTANCE_KEY!r} is {short_json(entry.get(INSTANCE_KEY))}. Expected 0 "
            "(values are classes) or 1 (values are instances of class 1): add the right one."
        )
    classes = {
        _value(where, key): _name(where, key, names)
        for key, names in entry.items()
        if key != INSTANCE_KEY
    }
    labels = DatasetLabels(classes, instance=bool(entry[INSTANCE_KEY]))
    if not classes or (labels.instance and set(classes) != {1}):
        raise LabelTableError(
            f"{where}: has the classes {sorted(classes)}. Expected at least one, and only 1 where "
            f"{INSTANCE_KEY!r} is 1: correct the entry."
        )
    _require_one_class_per_organ(where, labels)
    return labels


def _require_one_class_per_organ(where: str, labels: DatasetLabels) -> None:
    owner: dict[str, int] = {}
    for value, organ in labels.organs.items():
        if collision_key(organ) in owner:
            first = owner[collision_key(organ)]
            raise LabelTableError(
                f"{where}: class {first} {labels.classes[first]!r} and class {value} "
                f"{labels.classes[value]!r} would share the folder {organ!r}. Expected one class "
                "per organ: change a letter or digit of one name."
            )
        owner[collision_key(organ)] = value


def _value(where: str, key: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", key) or int(key) > MAX_LABEL:
        raise LabelTableError(
            f"{where}: {key!r} is not a label value. Expected {INSTANCE_KEY!r} or a whole number "
            f'from "1" to "{MAX_LABEL}": 0 is background and has no entry.'
        )
    return int(key)


def _name(where: str, key: str, names: object) -> str:
    name = names[0] if isinstance(names, list) and names else names
    if not isinstance(name, str) or not name.isprintable():
        raise LabelTableError(
            f"{where}: class {key} holds {short_json(names)}. Expected a printable name, or a list "
            "that starts with one: correct it."
        )
    try:
        organ_slug(name)
    except LabelTableError as error:
        raise LabelTableError(f"{where}: {error}") from error
    return name


def _some(names: Mapping[str, object] | list[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "")
