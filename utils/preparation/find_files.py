"""Find the files of cases in folders that may hold anything.

A case id is a file's name without its suffix and without ``_image`` or ``_label`` at the end.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from utils.errors import InputError

MAX_DEPTH = 100  # folders in a path
MAX_NAME_BYTES = 200  # of a case id: file systems allow 255, and outputs add suffixes


class Role(Enum):
    """What a file of a case holds; the value is the suffix that its name may have."""

    IMAGE = "_image"
    LABEL = "_label"


@dataclass
class FoundFiles:
    """Result of a search for files."""

    files: dict[str, list[Path]] = field(default_factory=dict)  # case id -> its files, sorted
    problems: list[str] = field(default_factory=list)  # folders and names that were left out


def find_files(folder: Path, suffix: str, expected: str) -> FoundFiles:
    """Find all files with a suffix in and below ``folder``; links to folders are followed.

    The suffix is given in lower case, and counts in upper case too.

    A folder that is reached twice, such as by a loop of links, is searched once. Names that begin
    with a dot are left out.

    Args:
        expected: what the folder should be, for messages.

    Raises:
        InputError: the folder is missing, or holds no such file.
    """
    require_folder(folder, expected)
    found, visited = FoundFiles(), set()
    for path in walk(folder, visited, found.problems):
        if path.name.lower().endswith(suffix):
            case_id = case_id_of(path, suffix)
            if not case_id.isprintable() or len(os.fsencode(case_id)) > MAX_NAME_BYTES:
                found.problems.append(
                    f"{str(path)!r}: cannot be a case's name. Expected at most {MAX_NAME_BYTES} "
                    "bytes of printable UTF-8: rename the file."
                )
            else:
                found.files.setdefault(case_id, []).append(path)
    if not found.files and not found.problems:
        raise InputError(
            f"{folder}: holds no {suffix} file, subfolders included. Expected {expected}: check "
            "the path."
        )
    found.files = {key: sorted(found.files[key]) for key in sorted(found.files)}
    return found


def find_npz(folder: Path) -> FoundFiles:
    """Find all challenge files in and below ``folder``; see `find_files`."""
    return find_files(folder, ".npz", "a folder of challenge NPZ files")


def case_id_of(path: Path, suffix: str = ".npz") -> str:
    """Return the file's name without its suffix and without ``_image`` or ``_label``."""
    stem = path.name[: len(path.name) - len(suffix)]
    return stem.removesuffix(Role.IMAGE.value).removesuffix(Role.LABEL.value)


def file_of(paths: Sequence[Path], role: Role) -> Path:
    """Return the file of ``role`` among the files of one case.

    Raises:
        InputError: several files may have this role.
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
    """Raise `InputError` unless ``folder`` is an existing folder."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder. Expected {expected}: check the path, and that the previous "
            "step has run."
        )


def walk(
    folder: Path, visited: set[tuple[int, int]], problems: list[str], *, hidden: bool = False
) -> Iterable[Path]:
    """Yield the files in and below ``folder``, sorted.

    Args:
        visited: (device, inode) of the folders searched before; these are skipped.
        problems: gets a message for each folder that was left out.
        hidden: yield files and enter folders whose names begin with a dot, too.
    """
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
            "fix its permissions; its files were left out."
        )
        return
    # Real folders first: a file that a link leads to as well gets its real path.
    for entry in sorted(entries, key=lambda entry: entry.is_symlink()):
        if entry.name.startswith(".") and not hidden:
            continue
        path = folder / entry.name
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False  # a link to itself; opening it will raise
        if is_folder:
            yield from walk(path, visited, problems, hidden=hidden)
        else:
            yield path
