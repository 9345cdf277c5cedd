"""Free disk space, checked before work begins."""

import shutil
from pathlib import Path

from utils.errors import InputError


def free_space(folder: Path) -> tuple[int, Path]:
    """Return the free bytes on the disk of ``folder``, and the existing folder measured for it."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(place).free, place


def require_space(folder: Path, need: int, title: str, advice: str) -> None:
    """Raise `InputError` unless ``need`` bytes are free on the disk of ``folder``.

    Args:
        title: what needs the space, for the message.
        advice: what to do, for the message.
    """
    free, place = free_space(folder)
    if need > free:
        raise InputError(
            f"{folder}: {title} needs about {readable(need)}, and {readable(free)} are free in "
            f"{place}.\nExpected enough room before anything is written: {advice}."
        )


def readable(size: int) -> str:
    """Return a number of bytes as text in MB or GB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"
