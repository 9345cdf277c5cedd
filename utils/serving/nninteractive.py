"""The protocol of nnInteractive's remote sessions, as nninteractive-client 2.5 and newer speak it.

3D Slicer's SlicerNNInteractive 1.0 and napari-nninteractive 2.5 use that client. A session has one
target. Its array is (Z, Y, X) in the client's own axes, without origin or direction.
"""

import asyncio
import json
import math
import secrets
from collections.abc import Callable

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from utils.prompts.kinds import Click, MaskPrompt, checked_box
from utils.serving.boxes import box_of_sides
from utils.serving.context import Context
from utils.serving.drawings import checked_drawing
from utils.serving.frames import json_response
from utils.serving.label_map import NO_CHANGE, Change
from utils.serving.nnia import declared, pack, unpack
from utils.serving.nninteractive_bodies import (
    AddBox,
    AddPoint,
    AutoZoom,
    ImageMeta,
    MaskMeta,
    Predict,
    SegMeta,
    TargetBuffer,
    body_of,
    meta_of,
    spacing_of,
)
from utils.serving.refusals import Refusal
from utils.serving.registry import PATIENCE, Intake, OpenSession, Result
from utils.serving.scan import scan_of_array, voxel_bytes
from utils.serving.session import Session
from utils.serving.uploads import MAX_ITEMSIZE, SLACK_BYTES, read_body

KIND = "nninteractive"
LEASE, META = "x-lease-token", "X-Meta"
TARGET = 1
#: Of a version of the reference whose clients ask for nothing that is not answered here.
VERSION = "2.6.0"


class NNInteractive:
    """The handlers of the 17 paths."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def routes(self) -> list[Route]:
        """Return the paths with their handlers."""
        post = {
            "/claim": self.claim,
            "/release": self.release,
            "/heartbeat": self.heartbeat,
            "/set_image": self.set_image,
            "/set_target_buffer": self.set_target_buffer,
            "/set_do_autozoom": self.set_do_autozoom,
            "/reset_interactions": self.reset,
            "/undo": self.undo,
            "/predict": self.predict,
            "/add_point_interaction": self.add_point,
            "/add_bbox_interaction": self.add_box,
            "/add_scribble_interaction": self.add_scribble,
            "/add_lasso_interaction": self.add_lasso,
            "/add_initial_seg_interaction": self.add_initial_seg,
        }
        get = {
            "/healthz": self.healthz,
            "/capabilities": self.capabilities,
            "/lease_status": self.lease_status,
        }
        routes = [Route(path, handler, methods=["POST"]) for path, handler in post.items()]
        return [*routes, *(Route(path, handler) for path, handler in get.items())]

    async def healthz(self, request: Request) -> Response:
        """Say that the server is there; needs neither token nor lease."""
        return json_response({"ok": True})

    async def claim(self, request: Request) -> Response:
        """Open a session; its id is the lease."""
        await read_body(request)
        registry = self.context.registry
        each = registry.open(KIND, secrets.token_hex(16))
        return json_response(
            {
                "lease_token": each.id,
                "idle_timeout_seconds": PATIENCE[KIND].idle,
                "liveness_timeout_seconds": PATIENCE[KIND].silent,
                "max_sessions": registry.most,
            }
        )

    async def capabilities(self, request: Request) -> Response:
        """Say what is taken, which is everything."""
        self._lease(request)
        interactions = ("points", "bbox2d", "bbox3d", "scribble", "lasso")
        return json_response(
            {
                "supported_interactions": dict.fromkeys(interactions, True),
                "channel_mapping": {"points": [0, 1], "bbox": [2, 3]},
                "num_interaction_channels": 4,
                "supports_initial_label": True,
                "supports_zero_shot_label_refinement": True,
                "preferred_scribble_thickness": [3, 3, 3],
                "interaction_decay": 1.0,
                "inference_session_version": VERSION,
                "supports_undo": True,
                "do_autozoom": True,
                "license": f"that of {self.context.network}; the program's is Apache-2.0",
            }
        )

    async def release(self, request: Request) -> Response:
        """Close the session, if it is open."""
        await read_body(request)
        each = self._lease(request, missing_too=True)
        if each is not None:
            self.context.registry.close(each.id)
        return json_response({"released": True})

    async def heartbeat(self, request: Request) -> Response:
        """Say that the client is there, and how long it may be idle."""
        each = self._lease(request, uses=False)
        await read_body(request)
        seconds = self.context.registry.remaining_seconds(each)
        return json_response({"remaining_seconds": seconds})

    async def lease_status(self, request: Request) -> Response:
        """Say how long the client may be idle."""
        each = self._lease(request, uses=False)
        seconds = self.context.registry.remaining_seconds(each)
        content = {"remaining_seconds": seconds, "idle_timeout_seconds": PATIENCE[KIND].idle}
        return json_response(content)

    async def set_image(self, request: Request) -> Response:
        """Take in the image (1, Z, Y, X); of several channels the first."""
        each, meta = self._lease(request), meta_of(request, ImageMeta)
        spacing_zyx = spacing_of(meta)
        most = self.context.max_voxels * MAX_ITEMSIZE + SLACK_BYTES
        with self.context.registry.intake(each) as intake:
            body = await read_body(request, most, intake)
            async with self.context.decoding:
                array = await asyncio.to_thread(self._image, body, intake)
                del body
                scan = await asyncio.to_thread(scan_of_array, array[0], spacing_zyx, "image.nii.gz")
            await self._run(each, lambda session: session.set_scan(scan))
        each.extra.clear()
        return json_response({"original_image_shape": list(array.shape)})

    async def set_target_buffer(self, request: Request) -> Response:
        """Check the shape and dtype of the client's own mask."""
        each, body = self._lease(request), await body_of(request, TargetBuffer)
        each.session.require_image()
        if body.shape != each.session.scan.shape:
            raise Refusal(
                400, "bad_request",
                f"the target buffer has shape {body.shape}. Expected the image's, "
                f"{each.session.scan.shape}.",
            )  # fmt: skip
        name = body.dtype.removeprefix("torch.")
        dtype = np.dtype(name) if name in np.sctypeDict else None
        if dtype is None or dtype.kind not in "bui":
            raise Refusal(
                400, "bad_request",
                f"the target buffer is of dtype {body.dtype[:20]!a}. Expected bool or whole "
                "numbers.",
            )  # fmt: skip
        each.extra["dtype"] = dtype
        return json_response({})

    async def set_do_autozoom(self, request: Request) -> Response:
        """Take note of a choice that changes nothing: regions always follow the target here."""
        self._lease(request)
        await body_of(request, AutoZoom)
        return json_response({})

    async def reset(self, request: Request) -> Response:
        """Remove prompts, mask and what could be undone; the image stays."""
        each = self._lease(request)
        await read_body(request)

        def job(session: Session) -> None:
            if session.scan is not None:
                session.forget()

        await self._run(each, job)
        return json_response({})

    async def undo(self, request: Request) -> Response:
        """Take back the last prompt, whichever number were taken back before."""
        each = self._lease(request)
        await read_body(request)

        def job(session: Session) -> tuple[bool, Change]:
            session.require_image()
            change = session.undo()
            return change is not None, change or NO_CHANGE

        return await self._diff(each, job)

    async def predict(self, request: Request) -> Response:
        """Compute the mask of prompts that were sent without prediction."""
        each = self._lease(request)
        await body_of(request, Predict)
        return await self._diff(each, lambda session: (True, session.refresh()))

    async def add_point(self, request: Request) -> Response:
        """Add a click."""
        each, body = self._lease(request), await body_of(request, AddPoint)
        place = tuple(round(number) for number in body.coordinates)
        click = Click(place, body.include_interaction)
        return await self._diff(each, lambda session: self._add(session, click, body))

    async def add_box(self, request: Request) -> Response:
        """Add a box; one that is said to be beside the target counts as a click in its middle."""
        each, body = self._lease(request), await body_of(request, AddBox)
        start, stop = ([side[end] for side in body.bbox_coords] for end in (0, 1))

        def job(session: Session) -> tuple[bool, Change]:
            session.require_image()
            if body.include_interaction:
                prompt = box_of_sides(start, stop, session.scan.volume)
            else:
                box = checked_box(start, stop, session.scan.shape)
                prompt = Click(tuple(int(number) for number in box.centre_zyx), False)
            return self._add(session, prompt, body)

        return await self._diff(each, job)

    async def add_scribble(self, request: Request) -> Response:
        """Add a curve, which counts as a few clicks on it."""
        return await self._draw(request, is_lasso=False)

    async def add_lasso(self, request: Request) -> Response:
        """Add a filled outline, which counts as a box or as a few clicks in it."""
        return await self._draw(request, is_lasso=True)

    async def add_initial_seg(self, request: Request) -> Response:
        """Start from a mask, in place of all prompts before."""
        each, meta = self._lease(request), meta_of(request, SegMeta)
        mask = await self._mask(request, each)

        def job(session: Session) -> tuple[bool, Change]:
            session.require_image()
            if mask.shape != session.scan.shape:
                raise Refusal(
                    400, "bad_prompt",
                    f"the segmentation has shape {mask.shape}. Expected the image's, "
                    f"{session.scan.shape}.",
                )  # fmt: skip
            if not mask.any():
                return False, session.clear(TARGET)
            change = session.add(TARGET, MaskPrompt(mask), run=meta.run_prediction)
            if not meta.run_prediction:
                session.show(mask.view(np.uint8))
            return meta.run_prediction, change

        return await self._diff(each, job)

    def _add(self, session: Session, prompt: object, flags: object) -> tuple[bool, Change]:
        change = session.add(TARGET, prompt, run=flags.run_prediction)
        return flags.run_prediction, change

    async def _diff(
        self, each: OpenSession, job: Callable[[Session], tuple[bool, Change]]
    ) -> Response:
        """Run a job; answer with the server's mask in the box that changed."""
        ran, change = await self._run(each, job)
        box = change.box if ran else None
        labels = change.labels.astype(each.extra.get("dtype", np.uint8), copy=False)
        meta = {
            "ran_prediction": ran,
            "bbox": box and [[side.start, side.stop] for side in box],
            "dtype": labels.dtype.name if box else None,
            "shape": list(labels.shape) if box else None,
        }
        body = await asyncio.to_thread(pack, labels) if box else b""
        headers = {META: json.dumps(meta), "Cache-Control": "no-store"}
        return Response(body, 200, headers, "application/octet-stream")

    async def _run(self, each: OpenSession, job: Callable[[Session], Result]) -> Result:
        """Run a job of a session; a session that was closed meanwhile counts as expired."""
        try:
            return await self.context.registry.run(each, job)
        except Refusal as error:
            if error.code != "no_session":
                raise
            raise _expired(error) from error

    async def _draw(self, request: Request, is_lasso: bool) -> Response:
        each, meta = self._lease(request), meta_of(request, MaskMeta)
        drawn = await self._mask(request, each)

        def job(session: Session) -> tuple[bool, Change]:
            session.require_image()
            drawing = checked_drawing(
                drawn, meta.interaction_bbox, session.scan.shape,
                is_foreground=meta.include_interaction, is_lasso=is_lasso,
            )  # fmt: skip
            run = meta.run_prediction
            return run, session.draw(TARGET, drawing, run=run)

        return await self._diff(each, job)

    async def _mask(self, request: Request, each: OpenSession) -> np.ndarray:
        """Return the mask in a request's body, bool; it has no more voxels than the image."""
        each.session.require_image()
        most = math.prod(each.session.scan.shape) * MAX_ITEMSIZE
        with self.context.registry.intake(each) as intake:
            body = await read_body(request, most + SLACK_BYTES, intake)
            return await asyncio.to_thread(lambda: unpack(body, most) > 0)

    def _image(self, body: bytes, intake: Intake) -> np.ndarray:
        """Return the first channel (1, Z, Y, X) of an image."""
        shape, itemsize = declared(body)
        if len(shape) != 4 or 0 in shape:
            raise Refusal(
                400, "bad_image",
                f"the image has shape {shape}. Expected (channels, Z, Y, X), none of them 0.",
            )  # fmt: skip
        voxels = math.prod(shape[1:])
        if voxels > self.context.max_voxels:
            raise Refusal(
                413, "too_large",
                f"the image has {voxels:,} voxels. Expected at most {self.context.max_voxels:,}: "
                "crop or resample it.",
            )  # fmt: skip
        others = (shape[0] - 1) * voxels * itemsize
        intake.promise(voxels * voxel_bytes(itemsize) + others)
        array = unpack(body, self.context.max_voxels * MAX_ITEMSIZE)
        return array if shape[0] == 1 else array[:1].copy()

    def _lease(
        self, request: Request, *, uses: bool = True, missing_too: bool = False
    ) -> OpenSession | None:
        """Return the session of a request.

        Args:
            missing_too: return None where there is none.

        Raises:
            Refusal: there is none, with the status that the clients know.
        """
        token = request.headers.get(LEASE, "")
        try:
            return self.context.registry.get(token, KIND, uses=uses)
        except Refusal as error:
            if missing_too:
                return None
            raise _expired(error) from error


def _expired(error: Refusal) -> Refusal:
    """Return the refusal of a closed session, with the status that the clients know."""
    return Refusal(410, error.code, error.message)
