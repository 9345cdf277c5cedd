"""Read challenge NPZ files safely, even if their source is not trusted.

An NPZ file is a zip archive of ``.npy`` members. They are read here, not by `numpy.load`, so that

* nothing in a file is ever executed: `utils.files.safe_pickle` checks pickles on opening, and a
  file with a harmful pickle is refused as a whole, because other tools would run that pickle;
* the size is read from the header before anything is inflated, and a member whose size differs
  from its header is refused;
* Intel's ISA-L (package ``isal``) inflates, about twice as fast as zlib on images and more than
  twice on labels, and the deflated bytes can be copied unchanged into a ``.nii.gz``
  (`NpzArchive.deflated`, `utils.files.nifti.write_deflated_nifti`).

Arrays are returned as (D, H, W), C-ordered, in native byte order. A file that cannot be used raises
`InputError`, whose message begins with the file.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from isal import isal_zlib

from utils.errors import InputError
from utils.files.safe_pickle import MAX_BYTES, load_objects
from utils.files.safe_read import UNREADABLE, open_regular, reading

MAX_MEMBERS = 64
MAX_VOXELS = 2**30  # 1,024 x 1,024 x 1,024: more than any case of the challenge has
COMPRESSED_BLOCK, INFLATED_BLOCK = 2**16, 2**20  # bytes at a time
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: magic, name length, extra length


@dataclass(frozen=True)
class ArrayHeader:
    """The header of a ``.npy`` member."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    length: int  # bytes of the header, magic included

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Deflated:
    """The deflated bytes of a C-ordered little-endian array, with the ``.npy`` header first."""

    header: ArrayHeader
    chunks: Iterator[bytes]  # the raw deflate stream; exhausting it checks length and CRC
    size: int  # inflated bytes, header included
    crc: int  # CRC-32 of the inflated bytes


class NpzArchive:
    """An open challenge file.

    Args:
        path: the ``.npz`` file.
        max_voxels: size of the largest array that is read.

    Raises:
        InputError: not an NPZ file, damaged, too large, or with a pickle that is not plain data.
    """

    def __init__(self, path: Path, max_voxels: int = MAX_VOXELS) -> None:
        self.path = Path(path)
        self.max_voxels = max_voxels

    def __enter__(self) -> "NpzArchive":
        with reading(self.path, "a complete challenge NPZ file"):
            self._file = open_regular(self.path)
            try:
                self._archive = zipfile.ZipFile(self._file)
                self._members = self._list_members()
                self.headers = {key: self._read_header(key) for key in self._members}
                self.objects = {
                    key: self._read_objects(key)
                    for key, header in self.headers.items()
                    if header.dtype.hasobject
                }
            except BaseException:
                self._file.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def array(self, key: str) -> np.ndarray:
        """Return one array of numbers or strings; arrays of objects are in `objects`.

        Takes the memory of the array; twice that if it is Fortran-ordered or big-endian.
        """
        header = self.headers[key]
        if header.dtype.hasobject:
            raise InputError(
                f"{self.path}: {key!r} holds Python objects, shape {header.shape}. Expected an "
                "array of numbers: save it with a dtype such as uint8."
            )
        with reading(self.path, "a complete challenge NPZ file"):
            shape = header.shape[::-1] if header.fortran_order else header.shape
            array = np.empty(shape, header.dtype)
            buffer = memoryview(array.reshape(-1).view(np.uint8)) if array.size else bytearray()
            position = -header.length
            for piece in self._inflated(self._members[key]):
                skipped = min(len(piece), max(0, -position))
                buffer[max(0, position) : position + len(piece)] = piece[skipped:]
                position += len(piece)
        array = array.T if header.fortran_order else array
        return array.astype(header.dtype.newbyteorder("="), order="C", copy=False)

    def deflated(self, key: str) -> Deflated | None:
        """Return the deflated bytes of one array; None for arrays that `Deflated` does not cover.

        Its ``chunks`` are inflated only to check them; the array is never in memory as a whole.
        """
        header, member = self.headers[key], self._members[key]
        plain = header.dtype.kind in "iu" and header.dtype.newbyteorder("<") == header.dtype
        if not plain or header.fortran_order or member.compress_type != zipfile.ZIP_DEFLATED:
            return None
        return Deflated(header, self._checked_chunks(member), member.file_size, member.CRC)

    def _list_members(self) -> dict[str, zipfile.ZipInfo]:
        members = {}
        for member in self._archive.infolist():
            key = member.filename.removesuffix(".npy")
            if key in members:
                raise InputError(
                    f"{self.path}: holds {key!r} twice. Expected each array once: which of them "
                    "counts is not defined; export the file again."
                )
            if key != member.filename:
                members[key] = member
        taken = sum(member.compress_size for member in members.values())
        if len(members) > MAX_MEMBERS or taken > self.path.stat().st_size:
            raise InputError(
                f"{self.path}: {len(members)} arrays of {taken:,} bytes together. Expected at most "
                f"{MAX_MEMBERS}, no larger than the file: it is damaged or harmful, download it "
                "again."
            )
        return members

    def _read_header(self, key: str) -> ArrayHeader:
        member = self._members[key]
        start = _Head(self._inflated(member))
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{key!r} has the .npy version {version}")
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, fortran_order, dtype = read(start)
        header = ArrayHeader(dtype, shape, fortran_order, start.position)
        self._require_size(key, header, member)
        return header

    def _require_size(self, key: str, header: ArrayHeader, member: zipfile.ZipInfo) -> None:
        if any(length < 0 for length in header.shape):
            raise ValueError(f"{key!r} has shape {header.shape}")
        if header.dtype.hasobject:
            too_large = member.file_size > MAX_BYTES
        else:
            too_large = max(math.prod(header.shape), header.nbytes // 8) > self.max_voxels
            if header.length + header.nbytes != member.file_size and not too_large:
                raise ValueError(
                    f"{key!r} takes {member.file_size:,} bytes, and "
                    f"{header.length + header.nbytes:,} by its header"
                )
        if too_large:
            raise InputError(
                f"{self.path}: {key!r} has shape {header.shape}, dtype {header.dtype}. Expected at "
                f"most {self.max_voxels:,} voxels of 8 bytes: if that is right and memory "
                "suffices, raise --max-voxels."
            )

    def _read_objects(self, key: str) -> object:
        data = b"".join(self._inflated(self._members[key]))
        return load_objects(data[self.headers[key].length :], f"{self.path}, {key!r}")

    def _compressed(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield a member's compressed bytes."""
        if member.flag_bits & 1:
            raise ValueError(f"{member.filename!r} is encrypted")
        self._file.seek(member.header_offset)
        magic, name, extra = LOCAL_HEADER.unpack(self._file.read(LOCAL_HEADER.size))
        if magic != b"PK\x03\x04":
            raise ValueError(f"{member.filename!r} does not begin at the listed offset")
        position = member.header_offset + LOCAL_HEADER.size + name + extra
        end = position + member.compress_size
        while position < end:
            self._file.seek(position)
            chunk = self._file.read(min(COMPRESSED_BLOCK, end - position))
            if not chunk:
                raise EOFError(f"{member.filename!r} is cut off")
            position += len(chunk)
            yield chunk

    def _inflated(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield a member's inflated bytes; check its length and CRC meanwhile."""
        check = _Check(member)
        inflate = _inflater(member)
        for chunk in self._compressed(member):
            yield from map(check, inflate(chunk))
        check.finish()

    def _checked_chunks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield a member's deflated bytes; meanwhile inflate and check them as `_inflated` does."""
        with reading(self.path, "a complete challenge NPZ file"):
            check = _Check(member)
            stream = isal_zlib.decompressobj(-15)
            for chunk in self._compressed(member):
                for piece in _inflate(stream, chunk):
                    check(piece)
                yield chunk
            check.finish()
            if not stream.eof:  # NumPy would read it, but a gzip file of it is unreadable
                raise ValueError(f"{member.filename!r} has no last deflate block")


def member_sizes(path: Path, key: str) -> tuple[int, int]:
    """Return the deflated and the inflated bytes of a member, from the zip directory alone.

    Both are 0 where the member or the archive cannot be read.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo(f"{key}.npy")
            return member.compress_size, member.file_size
    except (InputError, *UNREADABLE):
        return 0, 0


class _Head:
    """The first piece of a member as a file object, for NumPy's header reader."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._content = next(pieces, b"")
        self.position = 0

    def read(self, size: int) -> bytes:
        self.position += size
        return self._content[self.position - size : self.position]


class _Check:
    """Compares the inflated bytes of a member with the length and CRC in the archive."""

    def __init__(self, member: zipfile.ZipInfo) -> None:
        self._member, self._size, self._crc = member, 0, 0

    def __call__(self, piece: bytes) -> bytes:
        self._size += len(piece)
        self._crc = isal_zlib.crc32(piece, self._crc)
        if self._size > self._member.file_size:
            raise ValueError(f"{self._member.filename!r} is longer than its size in the archive")
        return piece

    def finish(self) -> None:
        if (self._size, self._crc) != (self._member.file_size, self._member.CRC):
            raise ValueError(f"{self._member.filename!r} differs from its checksum")


def _inflater(member: zipfile.ZipInfo) -> Callable[[bytes], Iterable[bytes]]:
    """Return a function that takes a compressed chunk and yields pieces of bounded size."""
    if member.compress_type == zipfile.ZIP_STORED:
        return lambda chunk: (chunk,)
    if member.compress_type != zipfile.ZIP_DEFLATED:
        raise ValueError(f"{member.filename!r} is compressed by method {member.compress_type}")
    return partial(_inflate, isal_zlib.decompressobj(-15))


def _inflate(stream: "isal_zlib.Decompress", chunk: bytes) -> Iterator[bytes]:
    """Yield the inflated bytes of ``chunk``, in pieces of at most `INFLATED_BLOCK` bytes."""
    while True:
        if stream.eof:
            if chunk or stream.unused_data:
                raise ValueError("bytes follow the end of a member")
            return
        piece = stream.decompress(chunk, INFLATED_BLOCK)
        chunk = stream.unconsumed_tail
        if piece:
            yield piece
        elif not chunk:
            return
