"""Folders for uploads while they are read: private, and removed, after a crash as well."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: The name tells the process, so that a later one can see whether it has ended.
NAME = re.compile(r"fastsam3d-([0-9]{1,9})-.*")


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder below ``TMPDIR`` that only this user can open; it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f"fastsam3d-{os.getpid()}-") as folder:
        yield Path(folder)


def remove_abandoned_folders() -> None:
    """Remove the folders of this user's servers that have ended without doing so."""
    if os.name != "posix":  # elsewhere a process cannot be asked without harm
        return
    for path in Path(tempfile.gettempdir()).glob("fastsam3d-*"):
        match = NAME.fullmatch(path.name)
        with suppress(OSError):
            is_own = path.is_dir() and not path.is_symlink() and path.stat().st_uid == os.getuid()
            if match and is_own and _has_ended(int(match[1])):
                shutil.rmtree(path)


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
