"""What is wrong in a prepared tree: reads all of it, changes nothing (no torch).

Reading is the cost: the files of one case of one data set are read together, in any process, and an
image that its organs share as hard links once. What only the whole tree shows, digests tell.
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

from utils.errors import InputError
from utils.label_table import LabelTable
from utils.nifti_io import Grid, as_label, read_nifti, require_same_grid

SUFFIX = ".nii.gz"
IMAGES, LABELS = "imagesTr", "labelsTr"
LAYOUT = f"<organ>/<data set>/{{{IMAGES},{LABELS}}}/<case>{SUFFIX}"
ORGAN, DATASET, FOLDER, FILE = range(4)  # depths of LAYOUT
BESIDE_ORGANS = re.compile(r"\.(?!tmp-)|manifest.*\.csv$")  # .records, .lock: not ours to judge


class Kind(Enum):
    """What can be wrong, in the order of the report."""

    DUPLICATE = "duplicate"
    EMPTY_LABEL = "empty label"
    GRID_MISMATCH = "grid mismatch"
    MISSING_IMAGE = "missing image"
    MISSING_LABEL = "missing label"
    NOT_BINARY = "not binary"
    STRAY = "stray"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a file or folder of the tree."""

    kind: Kind
    path: Path
    message: str


@dataclass(frozen=True, order=True)
class CaseFiles:
    """One case of one data set: the organs that have its image, and those that have a label."""

    tree: Path
    dataset: str
    case_id: str
    images: tuple[str, ...]
    labels: tuple[str, ...]

    def path(self, organ: str, folder: str) -> Path:
        """Return where the case's file in ``imagesTr`` or ``labelsTr`` of an organ lies."""
        return self.tree / organ / self.dataset / folder / f"{self.case_id}{SUFFIX}"


@dataclass
class CaseReport:
    """What reading the files of one case has shown."""

    case: CaseFiles
    findings: list[Finding] = field(default_factory=list)
    files: dict[object, bytes | None] = field(default_factory=dict)  # image file -> digest
    images: dict[str, object] = field(default_factory=dict)  # organ -> image file
    labels: dict[str, bytes] = field(default_factory=dict)  # organ -> digest, none if empty
    instance_labels: int = 0
    voxels: int = 0

    def add(self, kind: Kind, path: Path, message: object) -> None:
        """Add a finding; its message becomes one line, with paths relative to the tree."""
        text = str(message).removeprefix(f"{path}: ").replace(f"{self.case.tree}{os.sep}", "")
        self.findings.append(Finding(kind, path, " ".join(text.split())))

    @contextmanager
    def noting(self, kind: Kind, path: Path) -> Iterator[None]:
        """Make an `InputError` in the block a finding."""
        try:
            yield
        except InputError as error:
            self.add(kind, path, error)


@dataclass(frozen=True)
class Report:
    """All findings in a tree, by kind and path, and how much was read."""

    tree: Path
    findings: list[Finding]
    totals: dict[str, int]

    @property
    def exit_code(self) -> int:
        """1 if anything is wrong."""
        return 1 if self.findings else 0

    def __str__(self) -> str:
        counts = Counter(finding.kind for finding in self.findings)
        lines = [f"{kind.value:<25} {counts[kind]:>15,}" for kind in Kind] + [""]
        for finding in self.findings:
            path = finding.path.relative_to(self.tree)
            lines.append(f"{finding.kind.value:<13}  {path}: {finding.message}")
        lines += ["", *(f"{name:<25} {count:>15,}" for name, count in self.totals.items())]
        # A file name that is not UTF-8 must not stop the print after hours of reading.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()


def check_tree(
    tree: Path, table: LabelTable | None, run: Callable[[Callable, list], Iterable[CaseReport]]
) -> Report:
    """Read a whole tree and report what is wrong in it.

    ``table`` says which data sets number instances; one that it lacks does where it is uint16.
    ``run`` calls a picklable function for each item, in any order: ``map``, or many processes.
    """
    cases, findings = find_pairs(tree)
    if not any(case.labels for case in cases):
        found = f" but {findings[0].path} ({findings[0].message})" if findings else ""
        raise InputError(
            f"{tree}: holds no label{found}.\nExpected {LAYOUT}: run categorize.py and "
            "reallocate.py first, or give the folder that holds the organs."
        )
    reports = sorted(run(partial(check_case, table=table), cases), key=lambda report: report.case)
    _add_duplicates(reports)
    findings += [finding for report in reports for finding in report.findings]
    findings.sort(key=lambda finding: (finding.kind.value, finding.path))
    return Report(tree, findings, _totals(reports))


def find_pairs(tree: Path) -> tuple[list[CaseFiles], list[Finding]]:
    """List the cases of a tree, sorted, and what lies in it but does not belong there."""
    findings, cases, folders_left = [], {}, set()

    def note(error: OSError) -> None:
        message = f"cannot be listed: {error.strerror}"
        findings.append(Finding(Kind.UNREADABLE, Path(error.filename), message))

    for name, folders, files in os.walk(tree, onerror=note, followlinks=True):
        folder, depth = Path(name), len(Path(name).relative_to(tree).parts)
        folders_left |= {folder} if depth in (DATASET, FOLDER) else set()
        strays = {
            entry: _why_stray(folder / entry, entry in folders, depth, tree)
            for entry in folders + files
        }
        findings += [
            Finding(Kind.STRAY, folder / entry, why) for entry, why in strays.items() if why
        ]
        folders[:] = sorted(entry for entry in folders if strays[entry] is None)
        for entry in (entry for entry in files if strays[entry] is None):
            organ, dataset, kind = folder.parts[-3:]
            case = cases.setdefault((dataset, entry.removesuffix(SUFFIX)), {IMAGES: (), LABELS: ()})
            case[kind] += (organ,)
            folders_left -= {folder.parent, folder.parent.parent}
    for folder in sorted(folders_left, reverse=True):  # a data set before its organ
        if not any(finding.path.is_relative_to(folder) for finding in findings):
            findings.append(Finding(Kind.STRAY, folder, "holds no file: remove the folder"))
    return [CaseFiles(tree, *key, *cases[key].values()) for key in sorted(cases)], findings


def check_case(case: CaseFiles, table: LabelTable | None) -> CaseReport:
    """Read the files of one case, one at a time; whatever is wrong with them is a finding."""
    report, grids = CaseReport(case), {}
    for organ in case.images:
        _check_image(report, organ, grids)
    for organ in case.labels:
        _check_label(report, organ, grids, table)
    return report


def _why_stray(path: Path, is_folder: bool, depth: int, tree: Path) -> str | None:
    """Say why something at ``depth`` does not belong there; None if it does, "" if none of ours."""
    if depth == ORGAN and BESIDE_ORGANS.match(path.name):
        return ""
    if path.name.startswith(".tmp-"):
        return "left by an interrupted run: delete it"
    fits = {FOLDER: path.name in (IMAGES, LABELS), FILE: path.name.endswith(SUFFIX)}
    if is_folder != (depth < FILE) or path.name.startswith(".") or not fits.get(depth, True):
        return f"{'folder' if is_folder else 'file'} out of place, expected {LAYOUT}: move it"
    if is_folder and path.is_symlink():  # followed, it might lead in a circle
        target, root = path.resolve(), tree.resolve()
        if target.is_relative_to(root) or root.is_relative_to(target):
            return "link to a folder of this tree: remove the link"
    return None


def _check_image(report: CaseReport, organ: str, grids: dict[object, Grid]) -> None:
    """Read the image of an organ, unless it is a hard link to one that was read."""
    path = report.case.path(organ, IMAGES)
    if organ not in report.case.labels:
        report.add(Kind.MISSING_LABEL, path, "has no label: remove it")
    file = os.stat(path)[1:3] if os.path.exists(path) else path  # inode, device
    report.images[organ] = file
    if file not in report.files:
        report.files[file] = None
        with report.noting(Kind.UNREADABLE, path):
            volume = read_nifti(path)
            report.voxels += volume.array.size
            report.files[file] = _digest(volume.array, volume.affine)
            grids[file] = Grid(volume.shape, volume.affine)


def _check_label(
    report: CaseReport, organ: str, grids: dict[object, Grid], table: LabelTable | None
) -> None:
    """Read the label of an organ: is it on the grid of its image, are its values a label's."""
    path, image_path = (report.case.path(organ, folder) for folder in (LABELS, IMAGES))
    if organ not in report.images:
        report.add(Kind.MISSING_IMAGE, path, "has no image: run reallocate.py")
    with report.noting(Kind.UNREADABLE, path):
        volume = read_nifti(path)
        report.voxels += volume.array.size
        with report.noting(Kind.GRID_MISMATCH, path):
            grid = grids.get(report.images.get(organ), volume)
            require_same_grid(grid, volume, image_path, path)
        known = table.datasets.get(report.case.dataset) if table else None
        instance = known.instance if known else volume.array.dtype == np.uint16
        report.instance_labels += instance
        with report.noting(Kind.NOT_BINARY, path):
            label = as_label(volume.array, path)
            if not label.any():
                report.add(Kind.EMPTY_LABEL, path, "holds only 0: remove it and its image")
                return
            report.labels[organ] = _digest(label, volume.affine)
            if instance and volume.array.dtype != np.uint16:
                raise InputError(f"instances in {volume.array.dtype}, expected uint16")
            if not instance and label.max() > 1:
                raise InputError(f"values up to {label.max()}, expected 0 and 1")


def _digest(array: np.ndarray, affine: np.ndarray) -> bytes:
    """Return a short digest of dtype, shape, affine and voxels, slice by slice."""
    digest = blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=16)
    digest.update(np.round(affine, 4) + 0.0)  # + 0.0: without negative zeros
    for plane in array:
        digest.update(np.ascontiguousarray(plane))
    return digest.digest()


def _add_duplicates(reports: list[CaseReport]) -> None:
    """Add cases that an organ has from two data sets, and targets it has under two names."""
    seen: dict[tuple, Path] = {}
    for report in reports:
        for organ, case_id in ((organ, report.case.case_id) for organ in report.case.labels):
            path = report.case.path(organ, LABELS)
            first = seen.setdefault((organ, case_id), path)
            if first != path:
                report.add(Kind.DUPLICATE, path, f"the same case as {first}: remove one")
            label, image = report.labels.get(organ), report.files.get(report.images.get(organ))
            first = seen.setdefault((organ, label, image), path) if label and image else path
            if first.name != path.name:
                report.add(Kind.DUPLICATE, path, f"the same voxels as {first}: remove one")


def _totals(reports: list[CaseReport]) -> dict[str, int]:
    cases = [report.case for report in reports]
    images = Counter(digest for report in reports for digest in {*report.files.values()} - {None})
    shared = Counter(count for count in images.values() if count > 1)
    return {
        "organs": len({organ for case in cases for organ in case.images + case.labels}),
        "data sets": len({case.dataset for case in cases}),
        "cases": len(cases),
        "labels": sum(len(case.labels) for case in cases),
        "instance labels": sum(report.instance_labels for report in reports),
        "images (distinct files)": len({file for report in reports for file in report.files}),
        "voxels read": sum(report.voxels for report in reports),
    } | {f"images shared by {count} cases": shared[count] for count in sorted(shared)}
