"""The stamp of a file: path, size and times, to notice that the file has changed.

The modification time can be set to any value, as by programs that copy. The inode's change time
cannot: it changes with each write, and also with the file's name, links and permissions.
"""

from pathlib import Path

from utils.errors import InputError


def stamp(path: Path) -> list[str | int]:
    """Return [path, bytes, modification and inode's change time in ns]; JSON keeps them unchanged.

    Raises:
        InputError: there is no such file, or no permission to access it.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Expected a file: check its path and permissions."
        ) from error
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
