"""Forms of other clients (multipart/form-data), and the arrays in them: bounded, and no pickles."""

import asyncio
import io
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from utils.files.safe_read import UNREADABLE
from utils.serving.refusals import Refusal
from utils.serving.registry import Intake
from utils.serving.uploads import JSON_BYTES, read_body, too_large

KINDS = "buif"
CHUNK = 2**20  # bytes of a form that are parsed at once
GZIP_WINDOW = 31  # zlib's code for a gzip stream


class Form(NamedTuple):
    """The fields of a form, and the content of its files with the names that the client gives."""

    fields: Mapping[str, str]
    files: Mapping[str, bytes]
    names: Mapping[str, str]


async def form_of(request: Request, most: int, intake: Intake | None = None) -> Form:
    """Return a request's form of at most ``most`` bytes; a Content-Encoding is left unread.

    Args:
        intake: counts its bytes; for forms with an image.

    Raises:
        Refusal: it is too large, or no such form.
    """
    body = await read_body(request, most, intake)
    starts = iter(range(0, max(len(body), 1), CHUNK))

    async def receive() -> dict:
        await asyncio.sleep(0)  # other requests are answered between the parts of a large form
        start = next(starts, None)
        if start is None:
            return {"type": "http.disconnect"}
        part, has_more = body[start : start + CHUNK], start + CHUNK < len(body)
        return {"type": "http.request", "body": part, "more_body": has_more}

    try:
        parsed = Request(request.scope, receive).form(
            max_files=4, max_fields=16, max_part_size=JSON_BYTES
        )
        async with parsed as form:
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            sent_files = {
                name: value for name, value in form.items() if isinstance(value, UploadFile)
            }
            files = {name: await value.read() for name, value in sent_files.items()}
            names = {name: value.filename or "" for name, value in sent_files.items()}
    except (HTTPException, ValueError) as error:
        raise bad_form(getattr(error, "detail", str(error))) from error
    return Form(fields, files, names)


def bad_form(found: str) -> Refusal:
    """Return the refusal of a form."""
    return Refusal(
        400, "bad_request",
        f"the form cannot be used: {found[:200]}. Expected what the client of this protocol "
        "sends: see docs/serving.md.",
    )  # fmt: skip


def file_of(form: Form, name: str = "file") -> bytes:
    """Return the content of a form's file.

    Raises:
        Refusal: there is none of this name.
    """
    if name not in form.files:
        raise bad_form(f"it has no file {name!r}")
    return form.files[name]


def inflated(content: bytes, most: int) -> bytes:
    """Return the content of a gzip file.

    Raises:
        Refusal: it is damaged, or has more than ``most`` bytes.
    """
    stream = zlib.decompressobj(GZIP_WINDOW)
    try:
        found = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise bad_form(f"a file is no gzip file ({error})") from error
    if len(found) > most:
        raise too_large(f"more than {most} inflated", most)
    if not stream.eof:
        raise bad_form("a gzip file is cut off")
    return found


def npy_array(content: bytes, max_voxels: int) -> np.ndarray:
    """Return the array of a ``.npy`` file with numbers along three axes.

    Raises:
        Refusal: it is damaged, of another kind, or too large.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read_header(file)
    except (*UNREADABLE, RecursionError) as error:
        raise bad_form(f"a file is no .npy file ({type(error).__name__})") from error
    start, count = file.tell(), math.prod(shape)
    if dtype.kind not in KINDS or dtype.itemsize > 8 or len(shape) != 3 or count < 1:
        raise bad_form(f"an array has dtype {dtype}, shape {shape}")
    if count > max_voxels:
        raise too_large(f"{count} voxels", max_voxels)
    if len(content) - start != count * dtype.itemsize:
        raise bad_form(f"an array of {count} voxels has {len(content) - start} bytes")
    flat = np.frombuffer(content, dtype, count, start)
    array = flat.reshape(shape, order="F" if by_columns else "C")
    return np.ascontiguousarray(array, dtype.newbyteorder("="))
