"""Answers of predict.py: marked, so that a later run can replace them and no other file.

The mark is a comment of the file's format, which readers skip: in gzip's header (``.nii.gz``), at
the end of a ZIP archive (``.npz``), in the header of an NRRD file. It holds a digest of all other
bytes. So a file of another program has no valid mark, and neither has an answer that was corrected
by hand.
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from utils.errors import InputError
from utils.files.atomic import atomic_path

MARK = b"answer of predict.py, BLAKE2b of the other bytes "
LENGTH = len(MARK) + 32  # with the digest in hexadecimal
GZIP, ZIP, NRRD = b"\x1f\x8b\x08", b"PK\x03\x04", b"NRRD"  # how such files begin
GZIP_COMMENT = b"\x10"  # the only flag of a gzip header with a comment
GZIP_HEADER = 10  # bytes
SMALLEST = 22  # bytes of the shortest file without its mark, an empty ZIP archive


class ForeignFileError(InputError):
    """A file in the output folder is no answer of predict.py, and would be replaced."""


def write_answer(path: Path, write: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Write an answer with its mark.

    Args:
        write: writes the answer, without a mark, to the path that it is given.
        overwrite: also replace a file that is no answer.

    Raises:
        ForeignFileError: ``path`` is no answer; see `require_replaceable`.
        WriteError: the disk is full, or the folder is not writable.
    """
    require_replaceable([path], overwrite=overwrite)
    with atomic_path(path) as temporary:
        write(temporary)
        temporary.write_bytes(marked(temporary.read_bytes()))


def require_replaceable(paths: Iterable[Path], *, overwrite: bool = False) -> None:
    """Raise `ForeignFileError` for files that a run must not replace.

    A run replaces unchanged answers. Links, write-protected files and all other files are replaced
    only with ``overwrite``, and a folder never is.
    """
    faults = [(path, fault) for path in paths if (fault := _fault(path, overwrite))]
    if not faults:
        return
    path, fault = faults[0]
    more = f" (and {len(faults) - 1} more such files)" if len(faults) > 1 else ""
    raise ForeignFileError(
        f"{path}: is {fault}{more}. Expected no file of that name, or an unchanged answer of "
        "predict.py: move it away, name another --output, or replace it with --overwrite."
    )


def require_distinct_files(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise `InputError` if an output is one of the inputs, by its name or through links.

    Links are followed, and two names of one file (hard links, or upper and lower case where the
    file system does not tell them apart) are the same file.
    """
    names: dict[str, Path] = {}
    files: dict[tuple[int, int], Path] = {}
    for path in inputs:
        names.setdefault(os.path.realpath(path), path)
        if identity := _identity(path):
            files.setdefault(identity, path)
    for output in outputs:
        source = names.get(os.path.realpath(output)) or files.get(_identity(output))
        if source is not None:
            raise InputError(
                f"{output}: is the same file as the input {source}. Expected an output folder "
                "without inputs, since these are never written to: name another."
            )


def marked(data: bytes) -> bytes:
    """Return the content of a gzip, ZIP or NRRD file with a mark; it must have no comment yet."""
    if data.startswith(GZIP):
        front, back = data[:3] + GZIP_COMMENT + data[4:GZIP_HEADER], data[GZIP_HEADER:]
        before, after = b"", b"\0"
    elif data.startswith(ZIP):
        front, back = data[:-2], b""  # without the comment's length, which is 0
        before, after = struct.pack("<H", LENGTH), b""
    elif data.startswith(NRRD):
        end = data.index(b"\n") + 1
        front, back = data[:end], data[end:]
        before, after = b"# ", b"\n"
    else:
        raise ValueError("only gzip, ZIP and NRRD files can be marked")
    digest = hashlib.blake2b(front + back, digest_size=16).hexdigest().encode()
    return front + before + MARK + digest + after + back


def is_answer(data: bytes) -> bool:
    """Tell whether a file's content has a mark that is valid: no other byte has changed."""
    if MARK not in data or len(data) < LENGTH + SMALLEST:
        return False
    if data.startswith(GZIP + GZIP_COMMENT):
        plain = data[:3] + b"\0" + data[4:GZIP_HEADER] + data[GZIP_HEADER + LENGTH + 1 :]
    elif data.startswith(ZIP):
        plain = data[: -LENGTH - 2] + b"\0\0"
    elif data.startswith(NRRD) and b"\n" in data:
        end = data.index(b"\n") + 1
        plain = data[:end] + data[end + LENGTH + 3 :]
    else:
        return False
    return marked(plain) == data


def _fault(path: Path, overwrite: bool) -> str:
    """Return what ``path`` is, if it must not be replaced."""
    try:
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return "a folder"
        if overwrite:
            return ""
        if stat.S_ISLNK(status.st_mode):
            return "a link"
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        if not status.st_mode & stat.S_IWUSR:
            return "a write-protected file"
        return "" if _holds_answer(path) else "a file of other origin, or a changed answer"
    except (FileNotFoundError, NotADirectoryError):  # making the folder reports the latter
        return ""
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"


def _holds_answer(path: Path) -> bool:
    with path.open("rb") as file:
        ends = file.read(4096)
        file.seek(max(0, path.stat().st_size - LENGTH))
        ends += file.read(LENGTH)
    return MARK in ends and is_answer(path.read_bytes())  # a file of many GB is not read in full


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the file behind ``path``; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
