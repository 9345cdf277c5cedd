"""One owner of an output folder at a time, by a lock of the operating system.

The lock vanishes with its process, also if that is killed. So no lock is ever left behind: a file
``.lock`` that a killed process leaves in the folder only names the last owner.
"""

import errno
import fcntl
import logging
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from utils.errors import InputError, printable
from utils.files.atomic import unwritable

LOCK = ".lock"
BEGIN = b"process "  # how the content of a lock begins
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network file systems

logger = logging.getLogger(__name__)


class FolderInUseError(InputError):
    """Another process owns the folder."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own ``folder`` during the block; the folder is made if it is missing.

    Where the file system has no locks, a warning is logged and the block runs without one.

    Raises:
        FolderInUseError: another process, or another block of this one, owns the folder.
        WriteError: the folder cannot be written to.
    """
    path = Path(folder) / LOCK
    with _locked_file(path) as file:
        file.truncate(0)
        file.write(_owner())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
            with suppress(OSError):  # a worker that was forked in the block would keep the lock
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _locked_file(path: Path) -> TextIO:
    """Return the file ``path``, open and locked."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _require_own(path, read=False)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            file = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            _lock(file.fileno(), path)
            # An owner that has just ended has removed the file that was opened: open it anew.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                _require_own(path, read=True)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _require_own(path: Path, read: bool) -> None:
    """Raise an `InputError` if the file ``path`` is there and is no lock of ours.

    Args:
        read: compare its content, too.
    """
    try:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            if not read:
                return
            with path.open("rb") as file:
                if file.read(len(BEGIN)) in (b"", BEGIN):
                    return
    except FileNotFoundError:
        return
    raise InputError(
        f"{path}: is a link or a file of another origin. Expected no file of that name, or the "
        "lock of an earlier run: move it away, or choose another output folder."
    )


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = printable(path.read_text("utf-8", "replace")[:300]) or "another process"
        raise FolderInUseError(
            f"{path.parent}: is in use by {owner}.\nExpected a folder that no other run writes to: "
            "wait until that run has ended, stop it, or name another folder."
        ) from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise unwritable(path, error) from error
        logger.warning("%s: this file system has no locks; start no second run there", path.parent)


def _owner() -> str:
    command = " ".join(sys.argv)[:200]
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {platform.node()}, since {began} ({command})"
