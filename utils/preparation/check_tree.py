"""Check a prepared tree: read all its files, list what is wrong, change nothing.

Reading takes most of the time. So the files of one case are read together, and an image that
several organs share is read once.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from utils.cases.label_table import LabelTable
from utils.errors import InputError, printable
from utils.files.nifti import read_nifti
from utils.files.npz_archive import MAX_VOXELS
from utils.volumes.grid import Grid, require_same_grid
from utils.volumes.labels import as_label

IMAGES, LABELS, SUFFIX = "imagesTr", "labelsTr", ".nii.gz"
LAYOUT = f"<organ>/<data set>/{{{IMAGES},{LABELS}}}/<case>{SUFFIX}"
ORGAN, DATASET, FOLDER, FILE = range(4)  # depths of LAYOUT
BESIDE_ORGANS = re.compile(r"\.(?!tmp-)|manifest.*\.csv$")  # .records/, .lock: not part of the tree


class Kind(str, Enum):
    """Kinds of faults, in the order of the report."""

    DUPLICATE = "duplicate"
    EMPTY_LABEL = "empty label"
    GRID_MISMATCH = "grid mismatch"
    MISSING_IMAGE = "missing image"
    MISSING_LABEL = "missing label"
    NOT_BINARY = "not binary"
    STRAY = "stray"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, order=True)
class TreeFault:
    """One fault of a file or folder of the tree."""

    kind: Kind
    path: Path
    message: str


@dataclass(order=True)
class CaseReport:
    """The files of one case of one data set, and the faults that reading them shows."""

    tree: Path
    dataset: str
    case_id: str
    # organ -> digest of the voxels; None if not read, and for labels if empty
    images: dict[str, bytes | None] = field(default_factory=dict)
    labels: dict[str, bytes | None] = field(default_factory=dict)
    image_files: set[object] = field(default_factory=set)
    faults: list[TreeFault] = field(default_factory=list)
    instance_labels: int = 0
    voxels: int = 0

    def path(self, organ: str, folder: str) -> Path:
        """Return the path of an organ's file in ``folder``, ``imagesTr`` or ``labelsTr``."""
        return self.tree / organ / self.dataset / folder / f"{self.case_id}{SUFFIX}"

    def add(self, kind: Kind, path: Path, message: object) -> None:
        """Add a fault; its message becomes one line, with paths relative to the tree."""
        text = str(message).removeprefix(f"{path}: ").replace(f" {self.tree}{os.sep}", " ")
        self.faults.append(TreeFault(kind, path, " ".join(text.split())))

    @contextmanager
    def noting(self, kind: Kind, path: Path) -> Iterator[None]:
        """Add a fault if the block raises because a file is unreadable or wrong."""
        try:
            yield
        except (InputError, OSError, MemoryError) as error:
            self.add(kind, path, error)


@dataclass(frozen=True)
class TreeReport:
    """All faults of a tree, by kind and path, and how much was read."""

    tree: Path
    faults: list[TreeFault]
    totals: dict[str, int]

    @property
    def exit_code(self) -> int:
        """1 if there is a fault."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        counts = Counter(fault.kind for fault in self.faults)
        lines = [f"{kind.value:<25} {counts[kind]:>15,}" for kind in Kind]
        lines += ["", f"findings: {len(self.faults):,}"]
        for fault in self.faults:
            path = fault.path.relative_to(self.tree)
            line = f"{fault.kind.value:<13}  {path}: {fault.message}"
            lines.append(printable(line).replace("\n", "\\n"))
        lines += ["", *(f"{name:<25} {count:>15,}" for name, count in self.totals.items())]
        return "\n".join(lines)


def check_tree(
    tree: Path,
    table: LabelTable | None,
    run: Callable[..., Iterable],
    max_voxels: int = MAX_VOXELS,
) -> TreeReport:
    """Read a whole tree and report its faults.

    Args:
        tree: folder that holds the organs' folders.
        table: names the data sets whose labels hold instance numbers. In data sets that the table
            lacks, and without a table, uint16 labels count as instance labels.
        run: ``map``, or a function like it that uses many processes and returns in any order.
        max_voxels: larger volumes are not read and count as unreadable.

    Raises:
        InputError: the tree holds no label.
    """
    cases, faults = find_pairs(tree)
    if not any(case.labels for case in cases):
        found = f"; {faults[0].path}: {faults[0].message}" if faults else ""
        raise InputError(
            f"{tree}: holds no label{found}.\nExpected {LAYOUT}: run categorize.py and "
            "reallocate.py first, or give the folder that holds the organs."
        )
    instances = {name: labels.instance for name, labels in table.datasets.items()} if table else {}
    cases = sorted(run(partial(check_case, instances=instances, max_voxels=max_voxels), cases))
    _add_duplicates(cases)
    faults += [fault for case in cases for fault in case.faults]
    return TreeReport(tree, sorted(faults), _totals(cases))


def find_pairs(tree: Path) -> tuple[list[CaseReport], list[TreeFault]]:
    """List the cases of a tree, sorted and not yet read, and the faults of its folders."""
    cases, faults = {}, []
    for path in _files(tree, ORGAN, tree, faults):
        organ, dataset, folder, name = path.parts[-4:]
        case = cases.setdefault((dataset, name), CaseReport(tree, dataset, name[: -len(SUFFIX)]))
        (case.images if folder == IMAGES else case.labels)[organ] = None
    return sorted(cases.values()), faults


def _files(folder: Path, depth: int, tree: Path, faults: list[TreeFault]) -> list[Path]:
    """List the case files below a folder whose entries are at ``depth``; add their faults."""
    files, known = [], len(faults)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        faults.append(TreeFault(Kind.UNREADABLE, folder, f"cannot be listed: {error.strerror}"))
        return []
    for entry in entries:
        path = folder / entry.name
        if depth == ORGAN and BESIDE_ORGANS.match(entry.name):
            continue
        if message := _why_stray(path, entry, depth, tree):
            faults.append(TreeFault(Kind.STRAY, path, message))
        else:
            files += [path] if depth == FILE else _files(path, depth + 1, tree, faults)
    if depth in (DATASET, FOLDER) and not files and len(faults) == known:
        faults.append(TreeFault(Kind.STRAY, folder, "holds no file: remove the folder"))
    return files


def _why_stray(path: Path, entry: os.DirEntry, depth: int, tree: Path) -> str | None:
    if entry.name.startswith(".tmp-"):
        return "left by an interrupted run: delete it"
    is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
    fits = {FOLDER: entry.name in (IMAGES, LABELS), FILE: entry.name.endswith(SUFFIX)}
    if is_folder != (depth < FILE) or entry.name.startswith(".") or not fits.get(depth, True):
        return f"{'folder' if is_folder else 'file'} out of place, expected {LAYOUT}: move it"
    if is_folder and entry.is_symlink():  # following it might never end
        target, root = path.resolve(), tree.resolve()
        if target.is_relative_to(root) or root.is_relative_to(target):
            return "link to a folder of this tree: remove the link"
    return None


def check_case(case: CaseReport, *, instances: dict[str, bool], max_voxels: int) -> CaseReport:
    """Read the files of one case, one at a time, and add their faults."""
    read, grids = {}, {}  # by inode and device: hard links share one image
    for organ in case.images:
        path = case.path(organ, IMAGES)
        if organ not in case.labels:
            case.add(Kind.MISSING_LABEL, path, "has no label: remove it")
        file = os.stat(path)[1:3] if os.path.exists(path) else path
        read[file] = read.get(file) or _read_image(case, path, max_voxels)
        case.images[organ], grids[organ] = read[file]
    case.image_files = set(read)
    for organ in case.labels:
        _check_label(case, organ, grids.get(organ), instances, max_voxels)
    return case


def _read_image(case: CaseReport, path: Path, max_voxels: int) -> tuple[bytes | None, Grid | None]:
    with case.noting(Kind.UNREADABLE, path):
        volume = read_nifti(path, max_voxels)
        case.voxels += volume.array.size
        return _digest(volume.array, volume.affine), volume.grid
    return None, None


def _check_label(
    case: CaseReport, organ: str, grid: Grid | None, instances: dict[str, bool], max_voxels: int
) -> None:
    path = case.path(organ, LABELS)
    if organ not in case.images:
        case.add(Kind.MISSING_IMAGE, path, "has no image: run reallocate.py")
    with case.noting(Kind.UNREADABLE, path):
        volume = read_nifti(path, max_voxels)
        case.voxels += volume.array.size
        with case.noting(Kind.GRID_MISMATCH, path):
            require_same_grid(grid or volume, volume, case.path(organ, IMAGES), path)
        instance = instances.get(case.dataset, volume.array.dtype == np.uint16)
        case.instance_labels += instance
        with case.noting(Kind.NOT_BINARY, path):
            label = as_label(volume.array, path)
            if not label.any():
                case.add(Kind.EMPTY_LABEL, path, "holds only 0: remove it and its image")
                return
            case.labels[organ] = _digest(label, volume.affine)
            if instance and volume.array.dtype != np.uint16:
                raise InputError(f"instances in {volume.array.dtype}, expected uint16")
            if not instance and label.max() > 1:
                raise InputError(f"values up to {label.max()}, expected 0 and 1")


def _digest(array: np.ndarray, affine: np.ndarray) -> bytes:
    voxel = np.linalg.norm(affine[:3, :3], axis=0).min()
    affine = np.round(affine / voxel, 3) + 0.0  # relative to a voxel; + 0.0 turns -0.0 into 0.0
    grid = f"{array.dtype} {array.shape} {voxel:.4g} {affine.tolist()}"
    digest = blake2b(grid.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array))
    return digest.digest()


def _add_duplicates(cases: list[CaseReport]) -> None:
    """Add a fault for each pair of label and image that one organ holds twice.

    Voxels are compared, not names: unrelated data sets may both have a case_001, and the channels
    of one case share a label. Files that are empty or could not be read are not compared.
    """
    seen: dict[tuple, Path] = {}
    for case in cases:
        for organ, label in case.labels.items():
            image = case.images.get(organ)
            if label is None or image is None:
                continue
            path = case.path(organ, LABELS)
            first = seen.setdefault((organ, label, image), path)
            if first != path:
                message = f"label and image have the same voxels as {first} and its image"
                case.add(Kind.DUPLICATE, path, f"{message}: remove one pair")


def _totals(cases: list[CaseReport]) -> dict[str, int]:
    images = Counter(image for case in cases for image in {*case.images.values()} - {None})
    shared = Counter(count for count in images.values() if count > 1)
    return {
        "organs": len({organ for case in cases for organ in (*case.images, *case.labels)}),
        "data sets": len({case.dataset for case in cases}),
        "cases": len(cases),
        "labels": sum(len(case.labels) for case in cases),
        "instance labels": sum(case.instance_labels for case in cases),
        "images (distinct files)": len({file for case in cases for file in case.image_files}),
        "voxels read": sum(case.voxels for case in cases),
    } | {f"images shared by {count} cases": shared[count] for count in sorted(shared)}
