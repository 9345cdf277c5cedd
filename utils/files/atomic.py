"""Write files atomically: they appear whole or not at all."""

import os
import platform
import re
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from utils.errors import InputError

#: Start of a half-written file's name: a hash of the machine, the process id, a random number.
TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-([0-9a-f]+)-[0-9a-f]{8}-")
ABANDONED_SECONDS = 24 * 3600  # without a change, if another machine was writing


#: Called with the temporary and the final path of a file that is complete; see `checked_by`.
_check: ContextVar[Callable[[Path, Path], None] | None] = ContextVar("_check", default=None)


class WriteError(InputError):
    """An output cannot be written: disk full, no permission, or a file where a folder should be."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    The temporary name starts with ``.tmp-``, so that globs for finished files do not match it. It
    names its process (`is_abandoned`) and keeps the suffixes (``.nii.gz``) that some writers need.
    If the block raises, also for a full disk, the temporary file is removed and ``path`` is
    unchanged.

    Raises:
        WriteError: replaces an OS error of the block, which should only write.
    """
    path = Path(path)
    owner = f"{_machine()}-{os.getpid():x}-{uuid.uuid4().hex[:8]}"
    # The end of the name suffices, and keeps the whole below 255 bytes, the limit of file systems.
    temporary = path.with_name(f".tmp-{owner}-{path.name[-48:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if check := _check.get():
            check(temporary, path)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


@contextmanager
def checked_by(check: Callable[[Path, Path], None]) -> Iterator[None]:
    """Call ``check(temporary, path)`` for each file of the block before it gets its final name.

    If ``check`` raises, the file is not written. Other threads are not affected.
    """
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def make_folder(folder: Path) -> None:
    """Make an output folder, with its parents, and check that files can be written to it.

    Raises:
        WriteError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".tmp-"):
            pass
    except OSError as error:
        raise unwritable(folder / "", error) from error


def remove_abandoned(folder: Path) -> None:
    """Remove the half-written files, at any depth, of processes that have ended."""
    for path in folder.rglob(".tmp-*"):
        if is_abandoned(path):
            path.unlink(missing_ok=True)


def is_abandoned(temporary: Path) -> bool:
    """Tell whether the process that was writing a temporary file has ended."""
    match = TEMPORARY.match(temporary.name)
    if match is None:
        return False
    machine, process = match[1], int(match[2], 16)
    try:
        if machine != _machine():
            return time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # a number too large for a process
        return True
    except OSError:  # a process of another user, or the file was renamed meanwhile
        return False
    return False


def unwritable(path: Path, error: OSError) -> WriteError:
    """Return the error for a ``path`` that could not be written, with the room that is left."""
    folder = next(p for p in path.absolute().parents if p.is_dir())
    free_mib = shutil.disk_usage(folder).free / 2**20
    return WriteError(
        f"{path}: cannot be written ({error}).\n"
        f"Expected a folder that can be written to, with room ({free_mib:,.0f} MiB are free "
        f"in {folder}).\nFree space or fix the permissions there, or choose another output "
        "folder; then run again: finished work is kept."
    )


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"
