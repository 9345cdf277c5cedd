"""Is there room for what is about to be written? (no torch)"""

import shutil
from pathlib import Path

from utils.errors import InputError


def free_space(folder: Path) -> tuple[int, Path]:
    """Return the free bytes where ``folder`` is or will be, and the folder that was asked."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(place).free, place


def require_space(folder: Path, need: int, title: str, advice: str) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        InputError: ``need`` bytes are not free; ``title`` needs them, ``advice`` says what to do.
    """
    free, place = free_space(folder)
    if need > free:
        raise InputError(
            f"{folder}: {title} needs about {readable(need)}, and {readable(free)} are free in "
            f"{place}.\nExpected enough room before anything is written: {advice}."
        )


def readable(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
