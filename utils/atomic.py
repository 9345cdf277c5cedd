"""Files that appear whole or not at all (no torch)."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError

#: How the name of a half-written file begins.
TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{8}-")


class WriteError(InputError):
    """An output cannot be written: disk full, no permission, or a file where a folder should be."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    The temporary name starts with ``.tmp-`` and keeps the suffixes (``.nii.gz``), so that writers
    that look at the suffix work and globs for finished files do not match it. When the block
    raises, a full disk included, the temporary file is removed and ``path`` is as it was.

    Raises:
        WriteError: in place of an OS error in the block, which should do nothing but write.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(_unwritable(path, error)) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> str:
    folder = next(p for p in path.absolute().parents if p.is_dir())
    free_mib = shutil.disk_usage(folder).free / 2**20
    return (
        f"{path}: cannot be written ({error}).\n"
        f"Expected a folder that can be written to, with room ({free_mib:,.0f} MiB are free "
        f"in {folder}).\nFree space or fix the permissions there, or choose another output "
        "folder; then run again: what was finished before is kept."
    )
