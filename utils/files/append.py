"""Append to a log of ours: never through a link, which could lead to any other file."""

import os
import stat
from pathlib import Path
from typing import TextIO

from utils.errors import InputError
from utils.files.atomic import unwritable


def open_append(path: Path) -> TextIO:
    """Open a UTF-8 text file to append to it; it is made if missing.

    Raises:
        InputError: the file is a link, has a second name (hard link), or is no regular file.
        WriteError: the file cannot be written to.
    """
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        if not path.is_symlink():
            descriptor = os.open(path, flags, 0o666)
            file = os.fdopen(descriptor, "a", encoding="utf-8")
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
                return file
            file.close()
    except OSError as error:
        raise unwritable(path, error) from error
    raise InputError(
        f"{path}: is a link, has a second name (a hard link), or is no regular file. Expected a "
        "file of this folder alone, since a log is appended to it: move it away, or choose another "
        "output folder."
    )
