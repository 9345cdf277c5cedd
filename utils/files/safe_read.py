"""Open files that may be damaged, unreadable or not regular; every error names the file."""

import hashlib
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from isal import isal_zlib

from utils.errors import InputError

BLOCK = 2**20  # bytes read at once

# zipfile, ISA-L and NumPy raise these on damaged files; `OSError` covers permissions too.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    isal_zlib.error,
    struct.error,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    MemoryError,  # a header nested too deeply for Python's parser
    RuntimeError,  # an encrypted member, or a compression unknown to zipfile
    tokenize.TokenError,
    SyntaxError,  # an array header that is not a Python literal
    TypeError,
    ValueError,
)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a folder, a pipe or a device is refused before it can block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: is not a regular file. Expected one: give the file itself.")
    return path.open("rb")


@contextmanager
def reading(path: Path, expected: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors of a damaged or unreadable file into an `InputError` that names it.

    Args:
        expected: what the file should be, for the message.
        also: further exceptions that the reader raises on damaged files.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Expected {expected}: check the path.") from error
    except (*UNREADABLE, *also) as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {error}).\n"
            f"Expected {expected}: copy or download it again, and check that it may be read."
        ) from error


def sha256_of(path: Path, expected: str) -> tuple[int, str]:
    """Return the bytes of a file and their SHA-256 in hexadecimal; ``expected`` as in `reading`."""
    digest, size = hashlib.sha256(), 0
    with reading(path, expected), open_regular(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
