"""Files of cases in folders that may hold anything (no torch).

A case id is a file's name without its suffix and without ``_image`` or ``_label`` at the end.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from utils.errors import InputError

MAX_DEPTH = 100  # of folders in folders
MAX_NAME_BYTES = 200  # of a case id: file systems allow 255, and suffixes are added


class Role(Enum):
    """What a file of a case holds; the value is the suffix that its name may end with."""

    IMAGE = "_image"
    LABEL = "_label"


@dataclass
class FoundFiles:
    """What a search for files found."""

    files: dict[str, list[Path]] = field(default_factory=dict)  # case id -> its files, sorted
    problems: list[str] = field(default_factory=list)  # what could not be looked at


def find_files(folder: Path, suffix: str, expected: str) -> FoundFiles:
    """Find all files with a suffix in and below ``folder``; links to folders are followed.

    A folder that is reached twice, by a loop of links for one, is looked at once. What begins with
    a dot is left out.

    Raises:
        InputError: no such folder, or no such file in it.
    """
    require_folder(folder, expected)
    findings, visited = FoundFiles(), set()
    for path in walk(folder, visited, findings.problems):
        if path.name.endswith(suffix):
            case_id = case_id_of(path, suffix)
            if not case_id.isprintable() or len(os.fsencode(case_id)) > MAX_NAME_BYTES:
                findings.problems.append(
                    f"{str(path)!r}: cannot be a case's name. Expected at most {MAX_NAME_BYTES} "
                    "bytes of printable UTF-8: rename the file."
                )
            else:
                findings.files.setdefault(case_id, []).append(path)
    if not findings.files and not findings.problems:
        raise InputError(
            f"{folder}: holds no {suffix} file, subfolders included. Expected {expected}: check "
            "the path."
        )
    findings.files = {key: sorted(findings.files[key]) for key in sorted(findings.files)}
    return findings


def find_npz(folder: Path) -> FoundFiles:
    """Find all challenge files in and below ``folder``, see `find_files`."""
    return find_files(folder, ".npz", "a folder of challenge NPZ files")


def case_id_of(path: Path, suffix: str = ".npz") -> str:
    """Return the file's name without its suffix and without ``_image`` or ``_label``."""
    stem = path.name.removesuffix(suffix)
    return stem.removesuffix(Role.IMAGE.value).removesuffix(Role.LABEL.value)


def file_of(paths: Sequence[Path], role: Role) -> Path:
    """Return the file of ``role`` among the files of one case.

    Raises:
        InputError: more than one may be meant.
    """
    others = tuple(other.value for other in Role if other is not role)
    candidates = [path for path in paths if not path.stem.endswith(others)] or paths
    if len(candidates) > 1:
        listed = "\n  ".join(str(path) for path in candidates)
        raise InputError(
            f"{case_id_of(candidates[0])}: has {len(candidates)} files for its "
            f"{role.name.lower()}:\n  {listed}\nExpected one: move the others elsewhere."
        )
    return candidates[0]


def require_folder(folder: Path, expected: str) -> None:
    """Raise `InputError` unless ``folder`` exists and is one."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder. Expected {expected}: check the path, and that the step "
            "before has run."
        )


def walk(
    folder: Path, visited: set[tuple[int, int]], problems: list[str], *, hidden: bool = False
) -> Iterable[Path]:
    """Yield the files in and below ``folder``, sorted; each folder once."""
    if len(folder.parts) > MAX_DEPTH:
        problems.append(f"{folder}: lies more than {MAX_DEPTH} folders deep and was left out.")
        return
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(
            f"{folder}: cannot be listed ({error.strerror}). Expected a folder that may be read: "
            "fix its permissions; what is in it was left out."
        )
        return
    # Real folders first, so that a file has the path that is not by way of a link.
    for entry in sorted(entries, key=lambda entry: entry.is_symlink()):
        if entry.name.startswith(".") and not hidden:
            continue
        path = folder / entry.name
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False  # a link that leads to itself; whoever opens it says so
        if is_folder:
            yield from walk(path, visited, problems, hidden=hidden)
        else:
            yield path
