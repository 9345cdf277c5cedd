"""The page's images and files: uploads, the voxels to show, and masks to save."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from isal import isal_zlib
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from utils.cases.inputs import FORMATS
from utils.errors import InputError
from utils.files.atomic import unwritable
from utils.files.nifti import nifti_front
from utils.serving import page_bodies as bodies
from utils.serving.context import Context, milliseconds_since
from utils.serving.downloads import labels_file, save_new, target_file
from utils.serving.frames import accepts_gzip, frame, frame_response, json_response
from utils.serving.label_map import NO_CHANGE
from utils.serving.page_api import attachment
from utils.serving.page_state import state_of
from utils.serving.private_folders import private_folder
from utils.serving.refusals import Refusal
from utils.serving.registry import Intake, OpenSession
from utils.serving.safety import is_loopback
from utils.serving.scan import IntensityFlags, Scan, voxel_bytes
from utils.serving.session import Session
from utils.serving.uploads import (
    MAX_ITEMSIZE,
    bad_image,
    declared_voxels,
    most_bytes,
    read_upload,
    save_body,
    upload_suffix,
)
from utils.volumes.intensity import MODALITIES

BLOCK = 2**20


class PageImages:
    """The handlers of images and files."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def routes(self) -> list[Route]:
        """Return the paths with their handlers."""
        session = "/api/sessions/{session}"
        return [
            Route(f"{session}/image", self.open_image, methods=["POST"]),
            Route(f"{session}/image.nii", self.voxels),
            Route(f"{session}/download", self.download),
            Route(f"{session}/save", self.save, methods=["POST"]),
        ]

    async def open_image(self, request: Request) -> Response:
        """Take in an image file and open it in the session."""
        context, each, start = self.context, self._session(request), time.perf_counter()
        name = request.query_params.get("name", "")[-200:]
        suffix, flags = upload_suffix(name), _flags_of(request)
        with context.registry.intake(each) as intake:
            with private_folder() as folder:
                path = folder / f"image{suffix}"
                await save_body(request, path, most_bytes(context.max_voxels), intake)
                async with context.decoding:
                    scan = await asyncio.to_thread(self._read, path, name, flags, intake)

            def job(session: Session) -> bytes:
                context.autosaves.set_aside(scan.digest, each.id)
                session.set_scan(scan)
                took = {"ms": milliseconds_since(start), "network_ms": 0.0}
                return frame(state_of(context, each, anew=True) | took, NO_CHANGE)

            return frame_response(request, await context.registry.run(each, job))

    async def voxels(self, request: Request) -> Response:
        """Answer with the voxels as uncompressed NIfTI, in a dtype that the page can show."""
        each = self._session(request)
        each.session.require_image()
        scan = each.session.scan
        headers = {"ETag": f'"{scan.digest}"', "Cache-Control": "private, no-cache"}
        if scan.digest in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        volume, dtype = scan.volume, scan.view_dtype
        front = nifti_front(Path(scan.name), volume.shape, dtype, volume.affine, volume.forms)
        kind = "application/octet-stream"
        if accepts_gzip(request) and not is_loopback(request.client.host if request.client else ""):
            parts = _deflated(_parts(front, scan))
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            return StreamingResponse(parts, 200, headers, kind)
        headers["Content-Length"] = str(len(front) + volume.array.size * dtype.itemsize)
        return StreamingResponse(_parts(front, scan), 200, headers, kind)

    async def download(self, request: Request) -> Response:
        """Answer with the labels of all targets, or with the mask of one, as a file."""
        each, query = self._session(request), request.query_params
        file_format, target = _format(query.get("format", "nifti")), query.get("target", "")
        kind = query.get("kind", "labels")
        if kind not in ("labels", "target") or not re.fullmatch("[0-9]{0,5}", target):
            raise Refusal(400, "bad_request", "expected kind=labels, or kind=target&target=ID.")

        def job(session: Session) -> tuple[str, bytes]:
            session.require_image()
            if kind == "labels":
                return labels_file(session, file_format)
            return target_file(session, int(target or 0), file_format)

        return attachment(*await self.context.registry.run(each, job))

    async def save(self, request: Request) -> Response:
        """Write the masks into the server's folder, under names that no file has yet."""
        body = await bodies.body_of(request, bodies.Save)
        file_format, each = _format(body.format), self._session(request)
        if body.kind not in ("labels", "targets"):
            raise Refusal(400, "bad_request", "expected the kind labels or targets.")

        def job(session: Session) -> list[Path]:
            session.require_image()
            if body.kind == "labels":
                files = [labels_file(session, file_format)]
            else:
                given = [number for number, prompts in session.prompts.items() if prompts]
                files = [target_file(session, number, file_format) for number in given]
            return [self._save(name, content) for name, content in files]

        paths = await self.context.registry.run(each, job)
        return json_response({"files": list(map(str, paths))})

    def _save(self, name: str, content: bytes) -> Path:
        folder = self.context.save_dir
        try:
            return save_new(folder, name, content)
        except OSError as error:
            raise unwritable(folder / name, error) from error

    def _read(self, path: Path, name: str, flags: IntensityFlags, intake: Intake) -> Scan:
        """Check and read an upload, in a thread beside the network's."""
        most = self.context.max_voxels
        try:
            voxels = declared_voxels(path, most)
        except InputError as error:
            raise bad_image(path, name, error) from error
        intake.promise(voxels * voxel_bytes(MAX_ITEMSIZE // 2))
        return read_upload(path, name, flags, most)

    def _session(self, request: Request) -> OpenSession:
        return self.context.registry.get(request.path_params["session"], "page")


def _flags_of(request: Request) -> IntensityFlags:
    """Return what the page says about the network's intensities."""
    query = request.query_params
    modality, window = query.get("modality") or None, query.get("window")
    if modality is not None and modality not in MODALITIES:
        raise Refusal(400, "bad_request", f"the modality is none of {', '.join(MODALITIES)}.")
    if not window:
        return IntensityFlags(modality)
    match = re.fullmatch(r"(-?[0-9]{1,6}(?:\.[0-9]{1,6})?),([0-9]{1,6}(?:\.[0-9]{1,6})?)", window)
    if match is None or float(match[2]) <= 0:
        raise Refusal(
            400, "bad_request", "the window is no pair LEVEL,WIDTH. Expected two numbers, the "
            "second above 0, such as 40,400.",
        )  # fmt: skip
    return IntensityFlags(modality, window=(float(match[1]), float(match[2])))


def _format(name: str) -> str:
    if name not in FORMATS:
        raise Refusal(400, "bad_request", f"the format is none of {', '.join(FORMATS)}.")
    return name


def _parts(front: bytes, scan: Scan) -> Iterator[bytes]:
    """Yield a NIfTI file in parts; voxels are converted slice by slice."""
    yield front
    dtype = scan.view_dtype
    few = max(1, BLOCK // max(1, scan.volume.array[0].size * dtype.itemsize))
    for first in range(0, len(scan.volume.array), few):
        yield np.ascontiguousarray(scan.volume.array[first : first + few], dtype).tobytes()


def _deflated(parts: Iterator[bytes]) -> Iterator[bytes]:
    stream = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    for part in parts:
        if small := stream.compress(part):
            yield small
    yield stream.flush()
