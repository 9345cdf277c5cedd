"""Arrays as the protocol of nnInteractive sends them: the envelope "NNIA" around blosc2 frames.

Little-endian: ``NNIA`` | u8 version 1 | u8 codec | u8 ndim | u8 n | n bytes dtype name | ndim x i64
shape | u32 chunks | for each chunk: u64 bytes, u64 compressed bytes, blosc2 frame. C order.

The sizes in an envelope are the sender's word: they are checked against a limit before any memory
is taken, and each frame's own size before it is inflated.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import blosc2
import numpy as np

from utils.serving.refusals import Refusal

MAGIC, VERSION, ZSTD = b"NNIA", 1, 1
KINDS = "buif"  # bool, whole numbers, floats: no objects, texts, dates or complex numbers
CHUNK_BYTES = 2**30
MOST_AXES = 4


class Envelope(NamedTuple):
    """What the head of an envelope declares."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int  # of the chunks


def unpack(buffer: bytes, most_bytes: int) -> np.ndarray:
    """Return the array of an envelope.

    Args:
        most_bytes: of the array.

    Raises:
        Refusal: the envelope is damaged or declares another size than it has, or its array is too
            large or of another kind.
    """
    with _damage():
        head = envelope(buffer)
        size = math.prod(head.shape) * head.dtype.itemsize
        if size > most_bytes:
            raise Refusal(
                413, "too_large",
                f"the array has {size:,} bytes. Expected at most {most_bytes:,}: crop or resample "
                "the image.",
            )  # fmt: skip
        return _filled(buffer, head, size)


def declared(buffer: bytes) -> tuple[tuple[int, ...], int]:
    """Return the shape that an envelope declares, and the bytes of a voxel.

    Raises:
        Refusal: its head is damaged, or its array is of another kind.
    """
    with _damage():
        head = envelope(buffer)
        return head.shape, head.dtype.itemsize


@contextmanager
def _damage() -> Iterator[None]:
    """Turn the errors of a damaged envelope into a `Refusal`."""
    try:
        yield
    except Refusal:
        raise
    except (struct.error, UnicodeDecodeError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(str(error)) from error


def envelope(buffer: bytes) -> Envelope:
    """Return what the head of an envelope declares.

    Raises:
        ValueError, struct.error: the head is damaged, or of another version or kind of array.
    """
    magic, version, _, axes, length = struct.unpack_from("<4sBBBB", buffer)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"it begins with {magic!r}, version {version}")
    if axes > MOST_AXES:
        raise ValueError(f"it has {axes} axes")
    name = buffer[8 : 8 + length].decode("ascii")
    dtype = np.dtype(name) if name.isidentifier() else None
    if dtype is None or dtype.kind not in KINDS or dtype.itemsize > 8:
        raise ValueError(f"its dtype is {name[:20]!r}")
    shape = struct.unpack_from(f"<{axes}q", buffer, 8 + length)
    if any(side < 0 or side > 2**31 for side in shape):
        raise ValueError(f"its shape is {shape}")
    return Envelope(dtype, shape, 8 + length + 8 * axes)


def pack(array: np.ndarray) -> bytes:
    """Return an array, of at most 1 GiB, as an envelope."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name.encode("ascii")
    parts = [struct.pack("<4sBBBB", MAGIC, VERSION, ZSTD, array.ndim, len(name)), name]
    parts.append(struct.pack(f"<{array.ndim}q", *array.shape))
    raw = memoryview(array.reshape(-1).view(np.uint8))
    starts = range(0, len(raw), CHUNK_BYTES)
    parts.append(struct.pack("<I", len(starts)))
    for start in starts:
        piece = raw[start : start + CHUNK_BYTES]
        frame = blosc2.compress2(
            piece, typesize=array.itemsize, codec=blosc2.Codec.ZSTD, clevel=1,
            filters=[blosc2.Filter.NOFILTER], nthreads=1,
        )  # fmt: skip
        parts += [struct.pack("<QQ", len(piece), len(frame)), frame]
    return b"".join(parts)


def damaged(found: str) -> Refusal:
    """Return the refusal of an envelope."""
    return Refusal(
        400, "bad_request",
        f"the array cannot be used: {found[:200]}. Expected an array of numbers as "
        "nninteractive-client sends it.",
    )  # fmt: skip


def _filled(buffer: bytes, head: Envelope, size: int) -> np.ndarray:
    (chunks,) = struct.unpack_from("<I", buffer, head.start)
    frames, place, total = [], head.start + 4, 0
    for _ in range(min(chunks, size // head.dtype.itemsize + 1)):
        raw, packed = struct.unpack_from("<QQ", buffer, place)
        frame = memoryview(buffer)[place + 16 : place + 16 + packed]
        if len(frame) != packed or packed < 32:
            raise ValueError("a chunk is cut off")
        own, stored, _ = blosc2.get_cbuffer_sizes(frame)
        if own != raw or stored != packed or raw % head.dtype.itemsize or not raw:
            raise ValueError(f"a chunk of {own} bytes declares {raw}")
        frames.append((frame, total, total + raw))
        place, total = place + 16 + packed, total + raw
    if total != size or len(frames) != chunks:
        raise ValueError(f"its chunks have {total} bytes, its shape {size}")
    array = np.empty(size // head.dtype.itemsize, head.dtype)
    room = array.view(np.uint8)
    for frame, start, stop in frames:
        blosc2.decompress2(frame, dst=room[start:stop])
    return array.reshape(head.shape)
