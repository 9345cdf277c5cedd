"""The part of MONAI Label's protocol that 3D Slicer's module for it needs: info, session, infer.

What is about its collection of images is in monailabel_images.py.

Prompts come all at once with each request, so a session is given the whole list each time; what is
equal to the list before keeps what was computed. Points are voxels (x, y, z) of the image's file.
"""

import json
import secrets

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from utils.files.strict_json import JsonError, parse_json
from utils.prompts.kinds import Click, Prompt, checked_box
from utils.serving.context import Context
from utils.serving.downloads import target_file
from utils.serving.forms import bad_form, form_of
from utils.serving.frames import json_response
from utils.serving.monailabel_images import KIND, MonaiImages
from utils.serving.refusals import Refusal
from utils.serving.registry import OpenSession
from utils.serving.scan import Scan
from utils.serving.session import Session
from utils.serving.uploads import most_bytes

MODEL, TARGET = "fastsam3d", 1
#: What an answer holds: the mask's file, its labels' names, or both.
OUTPUTS = ("image", "json", "all")
#: Endings of the mask's file -> format of downloads.py.
FORMATS = {".nrrd": "nrrd", ".nii.gz": "nifti"}

Place = tuple[float, float, float]


class Params(msgspec.Struct):
    """The prompts of a request; keys that are not named here are left out."""

    foreground: list[Place] = []
    background: list[Place] = []
    roi: tuple[float, float, float, float, float, float] | None = None
    label: str = ""
    result_extension: str = ".nrrd"


class MonaiLabel:
    """The handlers of the protocol's paths."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.images = MonaiImages(context)

    def routes(self) -> list[Route]:
        """Return the paths with their handlers."""
        return [
            Route("/auth/", self.auth),
            Route("/info/", self.info),
            Route("/session/", self.open_session, methods=["PUT"]),
            Route("/session/{session}", self.session),
            Route("/session/{session}", self.close_session, methods=["DELETE"]),
            Route("/infer/{model}", self.infer, methods=["POST"]),
            *self.images.routes(),
        ]

    async def auth(self, request: Request) -> Response:
        """Say that no user name is asked for; the token comes in the address."""
        return json_response({"enabled": False})

    async def info(self, request: Request) -> Response:
        """Say which models there are; "deepgrow" is the kind whose tools place points."""
        labels = list(self.context.classes) or ["target"]
        model = {
            "type": "deepgrow",
            "labels": labels,
            "dimension": 3,
            "description": f"FastSAM3D, network {self.context.network}: points and a box",
            "config": {},
        }
        return json_response(
            {
                "name": "FastSAM3D",
                "description": "Promptable segmentation of 3-D images",
                "version": "0.8.5",
                "labels": labels,
                "models": {MODEL: model},
                "trainers": {},
                "strategies": {},
                "scoring": {},
                "train_stats": {},
                "datastore": {},
            }
        )

    async def open_session(self, request: Request) -> Response:
        """Take in an image and open a session on it."""
        with self.context.registry.intake() as intake:
            form = await form_of(request, most_bytes(self.context.max_voxels), intake)
            if "files" not in form.files:
                raise bad_form("it has no file 'files'")
            each = self.context.registry.open(KIND)
            try:
                scan = await self.images.read(form.names["files"], form.files["files"], intake)
            except BaseException:
                self.context.registry.close(each.id)
                raise
            await self.images.open(request, each, scan)
        return json_response({"session_id": each.id, "session_info": {}})

    async def session(self, request: Request) -> Response:
        """Answer with the session, or with nothing, which makes the client send the image anew."""
        if not self.context.registry.has(request.path_params["session"]):
            return json_response({})
        each = self._session(request.path_params["session"])
        return json_response({"name": each.id, "image": each.session.scan.name})

    async def close_session(self, request: Request) -> Response:
        """Close the session."""
        self.context.registry.close(self._session(request.path_params["session"]).id)
        return json_response({})

    async def infer(self, request: Request) -> Response:
        """Answer all prompts of a request with a mask."""
        if request.path_params["model"] != MODEL:
            raise Refusal(404, "no_such_path", f"there is no such model. Expected {MODEL}.")
        output = request.query_params.get("output", "all")
        if output not in OUTPUTS:
            raise Refusal(400, "bad_request", f"output is none of {', '.join(OUTPUTS)}.")
        # A session goes before a file, and a file before the name of an image.
        registry, session_id = self.context.registry, request.query_params.get("session_id")
        each = self._session(session_id) if session_id else None
        most = 0 if session_id else most_bytes(self.context.max_voxels)
        with registry.intake(each) as intake:
            form = await form_of(request, 2**20 + most, intake)
            params = _params(form.fields.get("params", "{}"))
            if each is None and "file" in form.files:
                scan = await self.images.read(form.names["file"], form.files["file"], intake)
                return await self._answer_once(scan, params, output)
        return await self._answer(each or self._named(request), params, output)

    async def _answer_once(self, scan: Scan, params: Params, output: str) -> Response:
        """Answer a request that brings its image, in a session for it alone."""
        each = self.context.registry.open(KIND)
        try:
            await self.context.registry.run(each, lambda session: session.set_scan(scan))
            return await self._answer(each, params, output)
        finally:
            self.context.registry.close(each.id)

    async def _answer(self, each: OpenSession, params: Params, output: str) -> Response:
        file_format = FORMATS[params.result_extension]

        def job(session: Session) -> bytes:
            session.replace({}, {TARGET: _prompts(params, session.scan.shape)})
            return b"" if output == "json" else target_file(session, TARGET, file_format)[1]

        mask = await self.context.registry.run(each, job)
        found = {"label_names": {params.label or "target": 1}}
        if output == "json":
            return json_response(found)
        if output == "image":
            return Response(mask, media_type="application/octet-stream")
        return _two_parts(found, mask, f"res{params.result_extension}")

    def _named(self, request: Request) -> OpenSession:
        """Return the session of the image that a request names, which may be a session's id."""
        image = request.query_params.get("image", "")
        if self.context.registry.has(image):
            return self._session(image)
        return self.images.find(request, image)

    def _session(self, session_id: str) -> OpenSession:
        return self.context.registry.get(session_id, KIND)


def _prompts(params: Params, shape: tuple[int, int, int]) -> tuple[Prompt, ...]:
    """Return the prompts of a request: its box, then clicks inside, then clicks outside."""
    found: list[Prompt] = []
    if params.roi is not None:
        starts, stops = params.roi[::2][::-1], params.roi[1::2][::-1]
        found.append(checked_box(starts, stops, shape))
    for places, is_foreground in ((params.foreground, True), (params.background, False)):
        for place in places:
            if not all(abs(number) < 2**31 for number in place):
                raise Refusal(400, "bad_prompt", "a point holds numbers that are no voxels.")
            found.append(Click(tuple(round(number) for number in place[::-1]), is_foreground))
    return tuple(found)


def _params(text: str) -> Params:
    try:
        params = msgspec.convert(parse_json(text), Params)
    except (JsonError, msgspec.ValidationError) as error:
        raise bad_form(f"its params: {error}") from error
    if params.result_extension not in FORMATS:
        raise bad_form(
            f"its params: result_extension {params.result_extension[:20]!a}. Expected one of "
            f"{', '.join(FORMATS)}"
        )
    return params


def _two_parts(params: dict, mask: bytes, name: str) -> Response:
    """Return a form with the JSON ``params`` and the file of the mask."""
    boundary = secrets.token_hex(16)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(params)}\r\n".encode(),
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
        f'filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode(),
        mask,
        f"\r\n--{boundary}--\r\n".encode(),
    ]
    return Response(b"".join(parts), media_type=f"multipart/form-data; boundary={boundary}")
