"""The state of files, by which a changed source or a foreign output is noticed."""

import os
from pathlib import Path

from isal import isal_zlib

from utils.files.atomic import WriteError
from utils.files.safe_read import BLOCK, open_regular, reading


def identity_of(path: Path, status: os.stat_result) -> dict:
    """Return the facts that differ once a file, its folder or its content is replaced."""
    return {
        "real_path": os.path.realpath(path),
        "inode": [status.st_dev, status.st_ino],
        "times_ns": [status.st_mtime_ns, status.st_ctime_ns],
    }


def pairs_of(state: list[int] | None) -> list[list[int]]:
    """Return the [bytes, CRC-32] that an output may have."""
    return [state[at : at + 2] for at in range(0, len(state or ()), 2)]


def remove_file(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be removed ({error}), though its case no longer has it. Expected a "
            "folder that can be written to: fix the permissions, then run again."
        ) from error


def fingerprint_of(path: Path) -> list[int]:
    """Return size and CRC-32 of a file."""
    size, crc = 0, 0
    with reading(path, "an output of this step"), open_regular(path) as file:
        while block := file.read(BLOCK):
            crc = isal_zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]
