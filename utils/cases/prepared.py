"""Cases of prepared folders, and their targets: which mask to segment in which volume.

A prepared folder is ``<organ>/<data set>`` with ``imagesTr/<case>.nii.gz`` and
``labelsTr/<case>.nii.gz``, as written by reallocate.py and listed in utils/data_paths.py.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.cases.label_table import is_ct
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.names import colliding_names, is_inside
from utils.files.nifti import read_nifti
from utils.files.strict_json import read_json
from utils.volumes.grid import Volume, require_same_grid
from utils.volumes.labels import InstanceRule, as_label
from utils.volumes.values import require_network_input

SUFFIX = ".nii.gz"
MODALITIES = (
    ".modalities"  # folder of a tree, with a file for each data set whose modality is known
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One label of one organ, and its image."""

    organ: str
    dataset: str
    case_id: str
    image_path: Path
    label_path: Path
    modality: str = ""  # as the source of the data set calls it; empty where it does not say

    @property
    def sample_id(self) -> str:
        """``organ/data set/case``: unique in a prepared tree."""
        return f"{self.organ}/{self.dataset}/{self.case_id}"

    @property
    def is_ct(self) -> bool | None:
        """Whether the data set is CT; None where neither its name nor its source says."""
        return is_ct(self.dataset, self.modality)


@dataclass(frozen=True)
class _DataSet:
    modality: str


def find_cases(folders: Iterable[Path | str]) -> list[Case]:
    """List the cases of prepared ``<organ>/<data set>`` folders, sorted.

    Hidden folders are left out, since a glob ``tree/*/*`` may also match folders of ``.records``.

    Raises:
        InputError: no folder given, a folder lacks labelsTr, or none holds a label.
    """
    folders = [Path(folder) for folder in folders]
    folders = [f for f in folders if not f.name.startswith(".") and f.parent.name[:1] != "."]
    if not folders:
        raise InputError(
            "no prepared folders. Expected <organ>/<data set> folders with imagesTr and labelsTr.\n"
            "Run classify.py, categorize.py and reallocate.py, or edit utils/data_paths.py."
        )
    cases = []
    for folder in sorted(set(folders)):
        labels = folder / "labelsTr"
        if not labels.is_dir():
            raise InputError(
                f"{folder}: found no labelsTr folder, expected {labels}.\n"
                "Give <organ>/<data set> folders that reallocate.py wrote."
            )
        modality = read_modality(folder.parent.parent, folder.name)
        for label_path in sorted(labels.glob(f"*{SUFFIX}")):
            if label_path.name.startswith("."):
                continue
            cases.append(
                Case(
                    organ=folder.parent.name,
                    dataset=folder.name,
                    case_id=label_path.name.removesuffix(SUFFIX),
                    image_path=folder / "imagesTr" / label_path.name,
                    label_path=label_path,
                    modality=modality,
                )
            )
    twice = [sample_id for sample_id, n in Counter(c.sample_id for c in cases).items() if n > 1]
    if twice:
        raise InputError(
            f"{len(twice)} cases are in two of the {len(folders)} folders, {twice[0]} first; "
            "expected each <organ>/<data set>/<case> once.\nLeave one of the trees out, or rename "
            "its data set folder."
        )
    require_usable_names(case.sample_id for case in cases)
    if not cases:
        raise InputError(
            f"{len(folders)} folders, the first {folders[0]}: found no labelsTr/*{SUFFIX}.\n"
            "Run categorize.py and reallocate.py on this tree first."
        )
    return cases


def read_modality(tree: Path, dataset: str) -> str:
    """Return what `write_modality` kept of a data set; empty where there is nothing.

    Raises:
        InputError: the file is damaged.
    """
    path = tree / MODALITIES / f"{dataset}.json"
    if not path.is_file():
        return ""
    return read_json(path, "an object with the modality of a data set", _DataSet).modality


def write_modality(tree: Path, dataset: str, modality: str) -> None:
    """Write the modality of a data set into a prepared tree; nothing if it is empty."""
    path = tree / MODALITIES / f"{dataset}.json"
    text = json.dumps({"modality": modality})
    if not is_inside(path.relative_to(tree).as_posix(), tree):
        raise InputError(
            f"{path.parent}: is a link that leads out of {tree}. Expected a folder of this tree: "
            "remove the link."
        )
    if modality and not (path.is_file() and path.read_text("utf-8", "replace") == text):
        with atomic_path(path) as temporary:
            temporary.write_text(text, "utf-8")


def read_case(case: Case) -> tuple[Volume, Volume]:
    """Read image and label, checked to lie on one grid.

    Raises:
        InputError: a file is missing or unreadable, the image has values that cannot be
            normalised, the grids differ, or the label is empty.
    """
    if not case.image_path.exists():
        raise InputError(
            f"{case.sample_id}: {case.label_path} has no image, expected {case.image_path}.\n"
            "Run reallocate.py on this tree."
        )
    image, label = read_nifti(case.image_path), read_nifti(case.label_path)
    require_network_input(image.array, f"{case.image_path}: the image")
    agreement = require_same_grid(image, label, case.image_path, case.label_path)
    for note in () if agreement.everywhere else agreement.notes:
        logger.warning("%s: %s", case.sample_id, note)
    label = Volume(as_label(label.array, case.label_path), label.affine, label.forms)
    if not label.array.any():
        raise InputError(
            f"{case.label_path}: the label is empty, expected at least one voxel of {case.organ}.\n"
            "Remove the file from the tree or run categorize.py again."
        )
    return image, label


def targets_of(case: Case, label: np.ndarray, rule: InstanceRule) -> list[tuple[str, int]]:
    """Return the id and label value of each target of a case; instances get ``#value``."""
    values = rule.values_of(label)
    return [(case.sample_id + (f"#{v}" if len(values) > 1 else ""), v) for v in values]


def require_usable_names(names: Iterable[str]) -> None:
    """Raise `InputError` for unprintable names of cases, and for two that may be one file."""
    names = list(names)
    if bad := [name for name in names if not name.isprintable()]:
        raise InputError(
            f"{bad[0]!r:.200}: cannot be a case's name, nor can {len(bad) - 1} others. Expected "
            "printable characters: rename its file or folder."
        )
    if groups := colliding_names(names):
        first, second = groups[0][:2]
        raise InputError(
            f"the cases {first!a} and {second!a} would be one file on macOS or Windows. Expected "
            "names that differ in more than upper and lower case or the form of a Unicode "
            "character: rename one."
        )
