"""The stamp of a file: path, size and modification time, to notice that the file has changed."""

from pathlib import Path

from utils.errors import InputError


def stamp(path: Path) -> list[str | int]:
    """Return [path, bytes, modification time in ns], which survive JSON unchanged.

    Raises:
        InputError: there is no such file, or no permission to access it.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Expected a file: check its path and permissions."
        ) from error
    return [str(path), status.st_size, status.st_mtime_ns]
