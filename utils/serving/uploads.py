"""Take in what a client sends: bounded before and while it is read, and while it is inflated.

An uploaded image lies in a private folder until it is read, under a name of ours. Its header may
not name other files, since these would be read from this machine: see also meta_header.py.
"""

import asyncio
import io
import math
import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
from isal import igzip, isal_zlib
from starlette.requests import ClientDisconnect, Request

from utils.errors import InputError
from utils.files.images import image_suffix
from utils.files.itk import read_itk_grid
from utils.files.nifti import GZIP_MAGIC, HEADER_SIZE
from utils.serving.meta_header import MAX_HEADER, rewrite_header
from utils.serving.refusals import Refusal
from utils.serving.registry import Intake
from utils.serving.scan import IntensityFlags, Scan, open_upload

#: Formats whose voxels lie in the same file as the header.
UPLOAD_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
JSON_BYTES = 2**20
SLACK_BYTES = 2**20  # of header extensions and padding, beyond an image's voxels
MAX_ITEMSIZE = 8
BLOCK = 2**20
SECONDS_WITHOUT_BYTES = 60
NRRD_HEADER = re.compile(rb"\ANRRD000.*?\r?\n\r?\n", re.S)
#: The key by which a NRRD header names other files, wherever it stands: readers find it in more
#: places than the format says. So they do after the bytes that end lines for them alone.
NRRD_DATA_FILE = re.compile(rb"data\s*file", re.I)
ODD_BYTES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)")
META_END = b"\nElementDataFile = LOCAL\n"
META_COMPRESSED = re.compile(rb"^CompressedData = T", re.I | re.M)


def most_bytes(max_voxels: int) -> int:
    """Return the bytes of the largest image file that is taken in."""
    return max_voxels * MAX_ITEMSIZE + SLACK_BYTES


async def read_body(
    request: Request, most: int = JSON_BYTES, intake: Intake | None = None
) -> bytes:
    """Return a request's body.

    Args:
        intake: counts its bytes; for bodies of more than `JSON_BYTES`.

    Raises:
        Refusal: it is larger than ``most`` bytes, has no room, or stops coming.
    """
    parts = [part async for part in bounded_parts(request, most, intake)]
    return b"".join(parts)


async def save_body(request: Request, path: Path, most: int, intake: Intake) -> None:
    """Write a request's body to a file; see `read_body`."""
    with path.open("xb") as file:
        async for part in bounded_parts(request, most, intake):
            await asyncio.to_thread(file.write, part)


async def drop_body(request: Request, most: int) -> None:
    """Read a request's body, and keep nothing of it: a client may not wait for the refusal."""
    async for _ in bounded_parts(request, most):
        pass


async def bounded_parts(
    request: Request, most: int, intake: Intake | None = None
) -> AsyncIterator[bytes]:
    """Yield the parts of a request's body; refuse it by its length before any part is read.

    Raises:
        Refusal: the body is too large, its length is no number, or it stops coming.
    """
    length = request.headers.get("content-length")
    if length is not None and (not re.fullmatch("[0-9]{1,18}", length) or int(length) > most):
        raise too_large(length, most)
    stream, count = request.stream(), 0
    while True:
        try:
            part = await asyncio.wait_for(anext(stream, None), SECONDS_WITHOUT_BYTES)
        except (asyncio.TimeoutError, ClientDisconnect) as error:
            raise Refusal(400, "bad_request", "the body ended before its end.") from error
        if part is None:
            return
        count += len(part)
        if count > most:
            raise too_large(f"more than {most}", most)
        if part and intake is not None:
            intake.receive(len(part))
        if part:
            yield part


def too_large(found: str, most: int) -> Refusal:
    """Return the refusal of a body of too many bytes."""
    return Refusal(
        413, "too_large",
        f"the request has {found[:20]} bytes. Expected at most {most:,}: send less; of an image, "
        "crop or resample it.",
    )  # fmt: skip


def upload_suffix(name: str) -> str:
    """Return the ending of a format that is taken in, by the name that a client gives.

    Raises:
        Refusal: the name ends otherwise.
    """
    suffix = image_suffix(Path(name.replace("\\", "/")))
    if suffix not in UPLOAD_SUFFIXES:
        raise Refusal(
            400, "bad_image",
            f"the file's name ends in {name[-12:]!a}. Expected one of "
            f"{', '.join(UPLOAD_SUFFIXES)}: convert the image; of DICOM, the whole series.",
        )  # fmt: skip
    return suffix


def declared_voxels(path: Path, max_voxels: int) -> int:
    """Return the number of voxels that the header of an uploaded image declares.

    A gzipped NIfTI file is inflated in its place, no further than its header's voxels.

    Args:
        path: ends in one of `UPLOAD_SUFFIXES`.

    Raises:
        InputError: the file cannot be used, or has more voxels or bytes than it may have.
    """
    if path.suffix.lower() in (".gz", ".nii"):
        return _nifti_voxels(path, max_voxels)
    if path.suffix.lower() == ".mha":
        rewrite_header(path)
    else:
        _require_own_voxels(path)
    count = math.prod(read_itk_grid(path).shape)
    _require_voxels(count, max_voxels)
    if path.suffix.lower() == ".mha":
        _require_bounded(path, count * MAX_ITEMSIZE)
    return count


def read_upload(path: Path, name: str, flags: IntensityFlags, max_voxels: int) -> Scan:
    """Return the scan of an upload that `declared_voxels` has checked.

    Raises:
        Refusal: the image cannot be used; the message names it as the client does.
    """
    try:
        return open_upload(path, name, flags, max_voxels)
    except InputError as error:
        raise bad_image(path, name, error) from error


def bad_image(path: Path, name: str, error: InputError) -> Refusal:
    """Return the refusal of an upload; its place on this machine is left out of the message."""
    if isinstance(error, Refusal):
        return error
    return Refusal(400, "bad_image", str(error).replace(str(path), name))


def _nifti_voxels(path: Path, max_voxels: int) -> int:
    with path.open("rb") as file:
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            stream = igzip.IGzipFile(fileobj=file, mode="rb") if zipped else file
            front = stream.read(HEADER_SIZE + 540)
            voxels, declared = _declared(front)
            _require_voxels(voxels, max_voxels)
            if zipped:
                inflated = path.with_name("inflated")
                _copy(front, stream, inflated, declared + SLACK_BYTES)
                inflated.replace(path)
        except InputError:
            raise
        except (EOFError, OSError, zlib.error, isal_zlib.error) as error:
            raise InputError(
                f"{path}: cannot be inflated ({error}). Expected a complete file: send it again."
            ) from error
    return voxels


def _declared(front: bytes) -> tuple[int, int]:
    """Return the voxels, and the bytes of the whole file, that a NIfTI header declares."""
    kind = nib.Nifti2Header if front[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Header
    try:
        header = kind.from_fileobj(io.BytesIO(front), check=False)
        voxels = math.prod(int(n) for n in header.get_data_shape())
        itemsize, offset = header.get_data_dtype().itemsize, int(header["vox_offset"])
    except Exception as error:  # of a damaged header nibabel raises many kinds
        raise InputError(
            f"the image has no NIfTI header that can be read ({type(error).__name__}). Expected a "
            "NIfTI-1 or NIfTI-2 file: export it again."
        ) from error
    if not 0 <= offset <= SLACK_BYTES:
        raise InputError(
            f"the voxels of the image begin at byte {offset:.4g}. Expected 0 to {SLACK_BYTES:,}: "
            "export it again."
        )
    return voxels, offset + max(voxels, 0) * min(itemsize, MAX_ITEMSIZE)


def _copy(front: bytes, stream: BinaryIO, target: Path, most: int) -> None:
    with target.open("xb") as file:
        part = front
        while part:
            file.write(part)
            if file.tell() > most:
                raise InputError(
                    f"the image inflates to more than {most:,} bytes, the size of its header's "
                    "voxels. Expected no more: export it again."
                )
            part = stream.read(BLOCK)


def _require_voxels(count: int, max_voxels: int) -> None:
    if count > max_voxels:
        raise Refusal(
            413, "too_large",
            f"the image has {count:,} voxels. Expected at most {max_voxels:,}: crop or resample "
            "it, or start the server with a larger --max-voxels.",
        )  # fmt: skip


def _require_own_voxels(path: Path) -> None:
    """Refuse a NRRD header that names another file, or whose end is not found."""
    with path.open("rb") as file:
        header = NRRD_HEADER.match(file.read(MAX_HEADER))
    if header is None or NRRD_DATA_FILE.search(header[0]) or ODD_BYTES.search(header[0]):
        raise InputError(
            f"{path}: has no header of at most {MAX_HEADER:,} bytes with the voxels behind it. "
            "Expected header and voxels in one file: write the image as .nrrd, .mha or .nii.gz."
        )


def _require_bounded(path: Path, most: int) -> None:
    """Refuse compressed voxels that inflate to more than ``most`` bytes; see `rewrite_header`."""
    with path.open("rb") as file:
        header, end, _ = file.read(MAX_HEADER).partition(META_END)
        if not META_COMPRESSED.search(header):
            return
        file.seek(len(header) + len(end))
        stream, count = zlib.decompressobj(47), 0
        while not stream.eof and (part := stream.unconsumed_tail or file.read(BLOCK)):
            try:
                count += len(stream.decompress(part, BLOCK))
            except zlib.error:
                return  # reading the image reports it
            if count > most + SLACK_BYTES:
                raise InputError(
                    f"{path}: inflates to more than the {most:,} bytes of its header's voxels. "
                    "Expected no more: export it again."
                )
