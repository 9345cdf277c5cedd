"""The protocol of ITK-SNAP's deep-learning extension, versions 1 and 2.

Points are indices (x, y, z) from 0. Answers hold the whole mask, since the client imports a buffer
of the image's size unchecked. The client knows no undo and no token.
"""

import asyncio
import base64
import math
import re
from collections.abc import Callable

import msgspec
import numpy as np
from isal import igzip
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from utils.files.strict_json import JsonError, parse_json
from utils.prompts.kinds import Click
from utils.serving.context import Context
from utils.serving.drawings import checked_drawing
from utils.serving.forms import bad_form, file_of, form_of, inflated
from utils.serving.frames import json_response
from utils.serving.refusals import Refusal
from utils.serving.registry import Intake, OpenSession
from utils.serving.scan import scan_of_volume, voxel_bytes
from utils.serving.session import Session
from utils.serving.uploads import MAX_ITEMSIZE, SLACK_BYTES
from utils.volumes.forms import LPS
from utils.volumes.grid import Volume

KIND = "itksnap"
TARGET = 1
VERSION = "0.1.6"  # of the reference; clients ask for 0.1.2 or newer
MODEL = "fastsam3d"
INTERACTIONS = ["point", "scribble", "lasso"]


class Metadata(msgspec.Struct):
    """The grid of an uploaded image, as ITK has it: axes x, y, z, and a world of LPS."""

    dimensions: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    components_per_pixel: int = 1
    component_type: str = "float32"

    def affine(self) -> np.ndarray:
        """Return (4, 4): from voxels (x, y, z) to RAS+ mm."""
        lps = np.eye(4)
        lps[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        lps[:3, 3] = self.origin
        return LPS @ lps


class ITKSnap:
    """The handlers of the protocol's paths."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def routes(self) -> list[Route]:
        """Return the paths with their handlers."""
        drawings = {"scribble": self.scribble, "lasso": self.lasso, "box": self.box}
        return [
            Route("/status", self.status),
            Route("/v2/models", self.models),
            Route("/start_session", self.start),
            Route("/v2/start_session/{model}", self.start),
            Route("/upload_raw/{session}", self.upload, methods=["POST"]),
            Route("/v2/upload_raw/{session}", self.upload, methods=["POST"]),
            Route("/process_point_interaction/{session}", self.point),
            Route("/v2/process_point_interaction/{session}", self.point),
            Route("/reset_interactions/{session}", self.reset),
            Route("/v2/reset_interactions/{session}", self.reset),
            Route("/end_session/{session}", self.end),
            Route("/v2/end_session/{session}", self.end),
            *(
                Route(f"{front}/process_{kind}_interaction/{{session}}", handler, methods=["POST"])
                for front in ("", "/v2")
                for kind, handler in drawings.items()
            ),
        ]

    async def status(self, request: Request) -> Response:
        """Say that the server is there, and which version of the protocol it speaks."""
        return json_response({"status": "ok", "version": VERSION})

    async def models(self, request: Request) -> Response:
        """Say which prompts are taken."""
        model = {"id": MODEL, "channels": [1], "dimensions": 3, "interactions": INTERACTIONS}
        return json_response({"models": [model]})

    async def start(self, request: Request) -> Response:
        """Open a session."""
        return json_response({"session_id": self.context.registry.open(KIND).id})

    async def upload(self, request: Request) -> Response:
        """Take in the image."""
        each = self._session(request)
        with self.context.registry.intake(each) as intake:
            array, meta = await self._voxels(request, intake)
            volume = Volume(array, meta.affine())
            scan = await asyncio.to_thread(scan_of_volume, volume, "image.nii.gz")
            await self.context.registry.run(each, lambda session: session.set_scan(scan))
        return json_response({"message": "the image was taken in"})

    async def point(self, request: Request) -> Response:
        """Add a click; answer with the whole mask."""
        query = request.query_params
        given = query.getlist("point") or [query.get(axis, "") for axis in "xyz"]
        is_foreground = _is_foreground(request)
        if len(given) != 3 or not all(re.fullmatch("-?[0-9]{1,9}", text) for text in given):
            raise Refusal(400, "bad_prompt", "the point is no voxel x, y, z of whole numbers.")
        click = Click(tuple(map(int, given[::-1])), is_foreground)
        return await self._mask(request, lambda session: session.add(TARGET, click))

    async def scribble(self, request: Request) -> Response:
        """Add the prompts of a scribble; answer with the whole mask."""
        return await self._draw(request, is_lasso=False)

    async def lasso(self, request: Request) -> Response:
        """Add the prompts of a lasso; answer with the whole mask."""
        return await self._draw(request, is_lasso=True)

    async def box(self, request: Request) -> Response:
        """Refuse a box, which the list of models says is not taken."""
        self._session(request)
        raise Refusal(
            400, "bad_prompt",
            "no boxes are taken of ITK-SNAP. Expected a point, a scribble or a lasso: use one.",
        )  # fmt: skip

    async def reset(self, request: Request) -> Response:
        """Remove all prompts; the image stays."""
        each = self._session(request)

        def job(session: Session) -> None:
            if session.scan is not None:
                session.forget()

        await self.context.registry.run(each, job)
        return json_response({"status": "success"})

    async def end(self, request: Request) -> Response:
        """Close the session."""
        self.context.registry.close(self._session(request).id)
        return json_response({"message": "the session is closed"})

    async def _draw(self, request: Request, is_lasso: bool) -> Response:
        each, is_foreground = self._session(request), _is_foreground(request)
        with self.context.registry.intake(each) as intake:
            drawn, _ = await self._voxels(request, intake)

        def job(session: Session) -> None:
            drawing = checked_drawing(
                drawn, None, session.scan.shape, is_foreground=is_foreground, is_lasso=is_lasso
            )
            session.draw(TARGET, drawing)

        return await self._mask(request, job)

    async def _voxels(self, request: Request, intake: Intake) -> tuple[np.ndarray, Metadata]:
        """Return the image (D, H, W) of a request's form: raw float32, x fastest, gzipped."""
        form = await form_of(request, 4 * self.context.max_voxels + SLACK_BYTES, intake)
        meta = _metadata(form.fields.get("metadata", ""))
        count = math.prod(meta.dimensions)
        if count > self.context.max_voxels:
            raise Refusal(
                413, "too_large",
                f"the image has {count:,} voxels. Expected 1 to {self.context.max_voxels:,}: "
                "crop or resample it.",
            )  # fmt: skip
        async with self.context.decoding:
            intake.promise(count * voxel_bytes(MAX_ITEMSIZE // 2))
            array = await asyncio.to_thread(_float32_of, file_of(form), count)
        return array.reshape(meta.dimensions[::-1]), meta

    async def _mask(self, request: Request, job: Callable[[Session], object]) -> Response:
        each = self._session(request)

        def run(session: Session) -> bytes:
            session.require_image()
            job(session)
            return igzip.compress((session.labels == TARGET).view(np.int8).tobytes(), 1)

        mask = base64.b64encode(await self.context.registry.run(each, run)).decode()
        return json_response({"status": "success", "result": mask})

    def _session(self, request: Request) -> OpenSession:
        return self.context.registry.get(request.path_params["session"], KIND)


def _metadata(text: str) -> Metadata:
    try:
        meta = msgspec.convert(parse_json(text), Metadata)
    except (JsonError, msgspec.ValidationError) as error:
        raise bad_form(f"its metadata: {error}") from error
    numbers = (*meta.spacing, *meta.origin, *meta.direction)
    is_grid = all(0 < n < 2**31 for n in meta.dimensions) and all(map(math.isfinite, numbers))
    if len(meta.direction) != 9 or not is_grid:
        raise bad_form("its metadata holds no grid")
    if meta.components_per_pixel != 1 or meta.component_type.lower() not in ("float", "float32"):
        raise bad_form(f"it has {meta.components_per_pixel} components of {meta.component_type}")
    return meta


def _is_foreground(request: Request) -> bool:
    foreground = request.query_params.get("foreground", "true").lower()
    if foreground not in ("true", "false", "1", "0"):
        raise Refusal(400, "bad_prompt", "foreground is neither true nor false.")
    return foreground in ("true", "1")


def _float32_of(content: bytes, count: int) -> np.ndarray:
    """Return the ``count`` voxels of a gzip file."""
    raw = inflated(content, 4 * count)
    if len(raw) != 4 * count:
        raise bad_form(f"{count} voxels have {len(raw)} bytes")
    return np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
