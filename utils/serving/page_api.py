"""The HTTP API of the page: sessions, targets, prompts, and masks as boxes of what changed."""

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from utils.errors import InputError
from utils.prompts.kinds import Click, Prompt
from utils.prompts.standing import drops_box
from utils.serving import page_bodies as bodies
from utils.serving.boxes import box_of_corners
from utils.serving.context import Context, milliseconds_since
from utils.serving.downloads import stem_of
from utils.serving.frames import frame, frame_response, json_response
from utils.serving.label_map import NO_CHANGE, Change
from utils.serving.page_files import PageFiles
from utils.serving.page_state import state_of
from utils.serving.prompt_file import prompts_json, read_prompts_json
from utils.serving.refusals import Refusal
from utils.serving.registry import OpenSession
from utils.serving.session import Session
from utils.serving.uploads import JSON_BYTES, UPLOAD_SUFFIXES, most_bytes, read_body
from utils.volumes.intensity import MODALITIES

BOX_DROPPED = "This click contradicts the box, which no longer counts: click on the target."
#: A job in the predictor's thread that changes the session; None where there was nothing to do.
Job = Callable[[Session], Change | None]


class PageApi:
    """The handlers of the paths below ``/api``."""

    def __init__(self, context: Context, files: PageFiles) -> None:
        self.context, self.files = context, files

    def routes(self) -> list[Route]:
        """Return the paths with their handlers."""
        session = "/api/sessions/{session}"
        return [
            Route("/api/status", self.status),
            Route("/api/sessions", self.open_session, methods=["POST"]),
            Route(session, self.state),
            Route(session, self.close_session, methods=["DELETE"]),
            Route(f"{session}/heartbeat", self.heartbeat),
            Route(f"{session}/earlier", self.take_up, methods=["POST"]),
            Route(f"{session}/targets", self.add_target, methods=["POST"]),
            Route(f"{session}/targets/{{target}}", self.describe_target, methods=["PATCH"]),
            Route(f"{session}/targets/{{target}}", self.remove_target, methods=["DELETE"]),
            Route(f"{session}/prompts", self.add_prompt, methods=["POST"]),
            Route(f"{session}/undo", self.undo, methods=["POST"]),
            Route(f"{session}/redo", self.redo, methods=["POST"]),
            Route(f"{session}/clear", self.clear, methods=["POST"]),
            Route(f"{session}/mask", self.mask),
            Route(f"{session}/prompts.json", self.prompts_file),
            Route(f"{session}/prompts.json", self.load_prompts, methods=["POST"]),
        ]

    async def status(self, request: Request) -> Response:
        """Answer with the server's state and limits."""
        context, registry = self.context, self.context.registry
        registry.close_unused()
        content = {
            "name": "FastSAM3D",
            "ready": context.is_ready,
            "stage": "ready" if context.is_ready else "warming up",
            "page_ready": self.files.is_ready,
            "network": context.network,
            "device": context.device,
            "max_voxels": context.max_voxels,
            "max_upload_bytes": most_bytes(context.max_voxels),
            "formats": list(UPLOAD_SUFFIXES),
            "sessions": {"open": len(registry), "most": registry.most},
            "save_dir": str(context.save_dir),
            "classes": list(context.classes),
            "class_colors": dict(context.class_colors),
            "modalities": list(MODALITIES),
        }
        return json_response(content)

    async def open_session(self, request: Request) -> Response:
        """Open a session, or take one up again."""
        wanted = (await bodies.body_of(request, bodies.Resume)).resume
        context, registry = self.context, self.context.registry
        wanted = context.shared or wanted
        if registry.has(wanted):
            return await self._state(registry.get(wanted, "page"), 201)
        scan = context.first_scan
        is_saved = scan is not None and context.autosaves.has(scan.digest, wanted)
        each = registry.open("page", wanted if is_saved else None)
        try:
            await context.open_first(each)
            if is_saved:
                await registry.run(each, lambda session: self._restore(each, session))
            return await self._state(each, 201)
        except BaseException:  # nobody would know the session, which would keep its place
            registry.close(each.id)
            raise

    async def state(self, request: Request) -> Response:
        """Answer with the session's state."""
        return await self._state(self._session(request))

    async def close_session(self, request: Request) -> Response:
        """Close the session, unless others show it, too; its autosave stays."""
        each = self._session(request)
        if not each.is_kept:
            self.context.registry.close(each.id)
        return Response(status_code=204)

    async def heartbeat(self, request: Request) -> Response:
        """Answer at once, also while the network runs."""
        each = self._session(request, uses=False)
        content = {
            "revision": each.session.revision,
            "busy": each.waiting > 0,
            "waiting": each.waiting,
            "remaining_seconds": round(self.context.registry.remaining_seconds(each), 1),
        }
        return json_response(content)

    async def take_up(self, request: Request) -> Response:
        """Take up the targets and prompts of an autosave of the same image."""
        saved = (await bodies.body_of(request, bodies.Earlier)).id
        each = self._session(request)

        def job(session: Session) -> Change:
            change, notes = self.context.autosaves.restore(saved, session)
            each.notes += notes
            return change

        return await self._run(request, each, job)

    async def add_target(self, request: Request) -> Response:
        """Add a target at the end of the list."""
        body = await bodies.body_of(request, bodies.NewTarget)
        name, color = bodies.checked_name(body.name), bodies.checked_color(body.color)

        def job(session: Session) -> Change:
            session.add_target(name, color)
            return NO_CHANGE

        return await self._run(request, self._session(request), job, status=201)

    async def describe_target(self, request: Request) -> Response:
        """Change a target's name or colour."""
        body = await bodies.body_of(request, bodies.ChangedTarget)
        name = None if body.name is None else bodies.checked_name(body.name)
        color = None if body.color is None else bodies.checked_color(body.color)
        target = bodies.checked_target(request.path_params["target"])
        if name == "":
            raise Refusal(400, "bad_request", "the name is empty. Expected 1 to 64 characters.")

        def job(session: Session) -> Change:
            session.describe_target(target, name, color)
            return NO_CHANGE

        return await self._run(request, self._session(request), job)

    async def remove_target(self, request: Request) -> Response:
        """Remove a target with its prompts."""
        target = bodies.checked_target(request.path_params["target"])
        each = self._session(request)
        return await self._run(request, each, lambda session: session.remove_target(target))

    async def add_prompt(self, request: Request) -> Response:
        """Add a click or a box; answer with the voxels that changed."""
        body = await bodies.body_of(request, bodies.Point | bodies.Box)
        each = self._session(request)

        def job(session: Session) -> Change:
            change = session.add(body.target, _prompt(body, session))
            if drops_box(session.prompts[body.target]):
                each.notes.append(BOX_DROPPED)
            return change

        return await self._run(request, each, job)

    async def undo(self, request: Request) -> Response:
        """Take back the last step."""
        await bodies.body_of(request, bodies.Nothing)
        return await self._run(request, self._session(request), lambda session: session.undo())

    async def redo(self, request: Request) -> Response:
        """Do the last undone step again."""
        await bodies.body_of(request, bodies.Nothing)
        return await self._run(request, self._session(request), lambda session: session.redo())

    async def clear(self, request: Request) -> Response:
        """Remove the prompts of one target, or of all."""
        target = (await bodies.body_of(request, bodies.Clear)).target
        each = self._session(request)
        return await self._run(request, each, lambda session: session.clear(target))

    async def mask(self, request: Request) -> Response:
        """Answer with all labels."""
        each = self._session(request)
        return await self._run(request, each, lambda session: session.whole_mask())

    async def prompts_file(self, request: Request) -> Response:
        """Answer with the file that predict.py reads."""
        each = self._session(request)

        def job(session: Session) -> tuple[str, bytes]:
            session.require_image()
            return f"{stem_of(session)}.json", prompts_json(session)

        return attachment(*await self.context.registry.run(each, job), "application/json")

    async def load_prompts(self, request: Request) -> Response:
        """Replace all targets and prompts by those of a file."""
        text = await read_body(request, JSON_BYTES)

        def job(session: Session) -> Change:
            session.require_image()
            return session.replace(*read_prompts_json(text, session.scan))

        return await self._run(request, self._session(request), job)

    def _session(self, request: Request, *, uses: bool = True) -> OpenSession:
        return self.context.registry.get(request.path_params["session"], "page", uses=uses)

    async def _state(self, each: OpenSession, status: int = 200) -> Response:
        context = self.context
        content = await context.registry.run(each, lambda _: state_of(context, each, anew=True))
        return json_response(content, status)

    async def _run(
        self,
        request: Request,
        each: OpenSession,
        job: Job,
        *,
        status: int = 200,
    ) -> Response:
        """Run a job in the predictor's thread; answer with the state and what changed."""
        start = time.perf_counter()

        def run(session: Session) -> bytes:
            began = time.perf_counter()
            change = job(session) or NO_CHANGE
            took = {"network_ms": milliseconds_since(began)}
            took["ms"] = milliseconds_since(start)
            return frame(state_of(self.context, each) | took, change)

        return frame_response(request, await self.context.registry.run(each, run), status)

    def _restore(self, each: OpenSession, session: Session) -> None:
        """Take up a session's own autosave; one that cannot be used is kept for later."""
        try:
            _, notes = self.context.autosaves.restore(each.id, session)
            each.notes += ["Earlier work on this image was taken up again.", *notes]
        except InputError as error:
            self.context.autosaves.set_aside(session.scan.digest, each.id)
            each.notes.append(f"Earlier work could not be taken up: {error}")


def attachment(name: str, content: bytes, kind: str = "application/octet-stream") -> Response:
    """Return a file to be saved by the browser; ``name`` is of ASCII characters without quotes."""
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
    }
    return Response(content, 200, headers, kind)


def _prompt(body: bodies.Point | bodies.Box, session: Session) -> Prompt:
    if isinstance(body, bodies.Point):
        return Click(body.at, body.positive)
    session.require_image()
    return box_of_corners(body.corner, body.to, session.scan.volume)
