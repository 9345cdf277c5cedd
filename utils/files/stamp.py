"""What tells that a file has changed since it was used: its path, size and modification time."""

from pathlib import Path

from utils.errors import InputError


def stamp(path: Path) -> list[str | int]:
    """Return [path, bytes, modification time in ns], which survive JSON unchanged.

    Raises:
        InputError: there is no such file, or it may not be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Expected a file: check its path and permissions."
        ) from error
    return [str(path), status.st_size, status.st_mtime_ns]
