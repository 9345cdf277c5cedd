"""Names of files: which may be used, which are portable, and which may be one file.

Records, indices and kept scores name files. They may come from another machine, or be edited. A
name from them is used only if it is a plain name (`is_plain_name`) or a path that stays inside its
folder (`is_inside`), so that no such file can make a script read, replace or delete anything else.
"""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from utils.errors import InputError

#: Characters that a file's name cannot have on Windows, where trees may be copied to.
SEPARATORS = frozenset('/\\:*?"<>|')

#: Names of devices on Windows: no file there can have one of them, whatever its suffix.
DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)))
)


def is_plain_name(name: object) -> bool:
    """Tell whether ``name`` is the name of one file in a folder: no path, no control character."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not SEPARATORS & set(name)
        and not has_control_characters(name)
    )


def is_inside(path: object, folder: Path) -> bool:
    """Tell whether ``path``, relative to ``folder``, names something below it.

    Links in the folders of ``path`` are followed: the place behind them must be below ``folder``
    too. The last part may be a link, since removing or replacing it changes only the link.
    """
    if not isinstance(path, str) or has_control_characters(path):
        return False
    parts = Path(path).parts
    if not parts or os.path.isabs(path) or PureWindowsPath(path).anchor or ".." in parts:
        return False
    parent = (folder / path).parent
    return parent.resolve().is_relative_to(folder.resolve())


def require_inside(path: Path, folder: Path, advice: str) -> None:
    """Refuse a file to write whose place is not below ``folder`` once links are followed.

    Args:
        path: below ``folder`` by its name.
        advice: what is expected, and what to do.

    Raises:
        InputError: a link on the way leads out of ``folder``.
    """
    if not is_inside(path.relative_to(folder).as_posix(), folder):
        raise InputError(f"{path}: lies behind a link that leads out of {folder}. {advice}")


def has_control_characters(text: str) -> bool:
    """Tell whether a text has control characters, such as line ends: they could forge log lines."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)


def is_portable_folder(name: object) -> bool:
    """Tell whether a folder can have this name on Linux, macOS and Windows, and is not hidden."""
    return (
        is_plain_name(name)
        and name.isprintable()
        and name[0] != "."
        and name[-1] not in " ."
        and name.partition(".")[0].lower() not in DEVICES
    )


def collision_key(name: str) -> str:
    """Return a form of a name that is equal for names which may be one file.

    On macOS and Windows, names that differ only in upper and lower case are one file. On macOS so
    are the composed and decomposed forms of Unicode's characters ("é" of one or of two characters).
    """
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFC", folded).rstrip(" .")


def colliding_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of different names that may be one file, sorted; see `collision_key`."""
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(collision_key(name), set()).add(name)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
