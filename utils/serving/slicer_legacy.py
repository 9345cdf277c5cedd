"""The REST protocol of SlicerNNInteractive 0.3.x, which has no sessions of its own.

A client is told from others by its address, and by the token in the URL's prefix. Masks go back
whole: packed bits, gzipped. The client's own undo arrives as a segmentation to start from.
"""

import asyncio
from collections.abc import Callable

import msgspec
import numpy as np
from isal import igzip
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from utils.errors import InputError
from utils.prompts.kinds import Click, MaskPrompt, Prompt, checked_box
from utils.serving.boxes import box_of_corners
from utils.serving.context import Context
from utils.serving.drawings import checked_drawing
from utils.serving.forms import Form, file_of, form_of, inflated, npy_array
from utils.serving.frames import json_response
from utils.serving.nninteractive_bodies import body_of
from utils.serving.refusals import Refusal
from utils.serving.registry import Intake, OpenSession
from utils.serving.scan import scan_of_array, voxel_bytes
from utils.serving.session import Session
from utils.serving.uploads import MAX_ITEMSIZE, SLACK_BYTES, drop_body

KIND = "slicer_legacy"
TARGET = 1
NO_IMAGE = {"status": "error", "message": "No image uploaded"}  # the client then sends it
YES = ("true", "1", "yes")


class Point(msgspec.Struct):
    """A click at voxel (k, j, i)."""

    voxel_coord: tuple[int, int, int]
    positive_click: bool


class Box(msgspec.Struct):
    """A box between two voxels, both inside, in any order; one may lie outside of the image."""

    outer_point_one: tuple[int, int, int]
    outer_point_two: tuple[int, int, int]
    positive_click: bool


class SlicerLegacy:
    """The handlers of the six paths; four of them are shared with nninteractive.py."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._ids: dict[tuple[str, str], str] = {}  # client -> its session

    def routes(self) -> list[Route]:
        """Return the paths that are this protocol's alone."""
        return [
            Route("/upload_image", self.upload_image, methods=["POST"]),
            Route("/upload_segment", self.upload_segment, methods=["POST"]),
        ]

    async def upload_image(self, request: Request) -> Response:
        """Take in the image, a plain ``.npy`` file (k, j, i)."""
        most = self.context.max_voxels * MAX_ITEMSIZE + SLACK_BYTES
        each = self._session(request, opens=True)
        with self.context.registry.intake(each) as intake:
            form = await form_of(request, most, intake)
            async with self.context.decoding:
                array = await asyncio.to_thread(npy_array, file_of(form), self.context.max_voxels)
                intake.promise(array.size * voxel_bytes(array.itemsize))
                # The client does not say the spacing.
                spacing_zyx = (1.0, 1.0, 1.0)
                scan = await asyncio.to_thread(scan_of_array, array, spacing_zyx, "image.nii.gz")
            await self.context.registry.run(each, lambda session: session.set_scan(scan))
        return json_response({"status": "ok"})

    async def upload_segment(self, request: Request) -> Response:
        """Start from a mask, a gzipped ``.npy`` file; an empty one starts from nothing."""
        each = self._session(request)
        if each is None:
            return json_response(NO_IMAGE)
        with self.context.registry.intake(each) as intake:
            _, mask = await self._form_with_mask(request, intake)

        def job(session: Session) -> None:
            if mask.shape != session.scan.shape:
                raise Refusal(400, "bad_prompt", "the segment has another shape than the image.")
            if not mask.any():
                session.forget()
                return
            session.add(TARGET, MaskPrompt(mask), run=False)
            session.show(mask.view(np.uint8))

        return await self._answer(each, job, json_response({"status": "ok"}))

    async def add_point(self, request: Request) -> Response:
        """Add a click; answer with the mask."""
        body = await body_of(request, Point)
        return await self._add(request, lambda _: Click(body.voxel_coord, body.positive_click))

    async def add_box(self, request: Request) -> Response:
        """Add a box; one beside the target counts as a click in its middle."""
        body = await body_of(request, Box)

        def prompt(session: Session) -> Prompt:
            one, two = body.outer_point_one, body.outer_point_two
            if body.positive_click:
                return box_of_corners(one, two, session.scan.volume)
            low, high = np.minimum(one, two).tolist(), (np.maximum(one, two) + 1).tolist()
            box = checked_box(low, high, session.scan.shape)
            return Click(tuple(int(number) for number in box.centre_zyx), False)

        return await self._add(request, prompt)

    async def add_scribble(self, request: Request) -> Response:
        """Add the prompts of a scribble; answer with the mask."""
        return await self._draw(request, is_lasso=False)

    async def add_lasso(self, request: Request) -> Response:
        """Add the prompts of a lasso; answer with the mask."""
        return await self._draw(request, is_lasso=True)

    async def _draw(self, request: Request, is_lasso: bool) -> Response:
        each = self._session(request)
        if each is None:
            await drop_body(request, self.context.max_voxels + SLACK_BYTES)
            return json_response(NO_IMAGE)
        with self.context.registry.intake(each) as intake:
            form, drawn = await self._form_with_mask(request, intake)
        is_foreground = form.fields.get("positive_click", "").lower() in YES

        def job(session: Session) -> None:
            drawing = checked_drawing(
                drawn, None, session.scan.shape, is_foreground=is_foreground, is_lasso=is_lasso
            )
            session.draw(TARGET, drawing)

        return await self._answer(each, job)

    async def _add(self, request: Request, prompt: Callable[[Session], Prompt]) -> Response:
        each = self._session(request)
        if each is None:
            return json_response(NO_IMAGE)
        return await self._answer(each, lambda session: session.add(TARGET, prompt(session)))

    async def _answer(
        self,
        each: OpenSession,
        job: Callable[[Session], object],
        answer: Response | None = None,
    ) -> Response:
        """Run a job; answer with the mask, or with a message that the client shows."""

        def run(session: Session) -> bytes:
            job(session)
            return b"" if answer else np.packbits(session.labels == TARGET).tobytes()

        try:
            bits = await self.context.registry.run(each, run)
        except Refusal as error:
            if error.status == 429:
                raise
            return json_response({"status": "error", "message": error.message})
        except InputError as error:
            return json_response({"status": "error", "message": str(error)})
        if answer is not None:
            return answer
        headers = {"Content-Encoding": "gzip", "Cache-Control": "no-store"}
        return Response(igzip.compress(bits, 1), 200, headers, "application/octet-stream")

    async def _form_with_mask(self, request: Request, intake: Intake) -> tuple[Form, np.ndarray]:
        """Return a request's form, and the mask (k, j, i) bool in it."""
        most = self.context.max_voxels + SLACK_BYTES
        form = await form_of(request, most, intake)
        array = await asyncio.to_thread(
            lambda: npy_array(inflated(file_of(form), most), self.context.max_voxels)
        )
        return form, array > 0

    def _session(self, request: Request, *, opens: bool = False) -> OpenSession | None:
        """Return the session of a client; None if it has no image."""
        registry = self.context.registry
        address = request.client.host if request.client else ""
        client = (address, request.scope.get("path_token", ""))
        found = self._ids.get(client, "")
        if registry.has(found):
            each = registry.get(found, KIND)
            return each if opens or each.session.scan is not None else None
        if not opens:
            return None
        each = registry.open(KIND)
        self._ids = {key: value for key, value in self._ids.items() if registry.has(value)}
        self._ids[client] = each.id
        return each
