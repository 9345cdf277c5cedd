"""Names of files: which names may be read back from a file, and which may be shown.

Records, indices and kept scores name files. They may come from another machine, or be edited. A
name from them is used only if it is a plain name (`is_plain_name`) or a path that stays inside its
folder (`is_inside`), so that no such file can make a script read, replace or delete anything else.
"""

import os
import unicodedata
from pathlib import Path, PureWindowsPath

#: Characters that a file's name cannot have on Windows, where trees may be copied to.
SEPARATORS = frozenset('/\\:*?"<>|')


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


def has_control_characters(text: str) -> bool:
    """Tell whether a text has control characters, such as line ends: they could forge log lines."""
    return any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)
