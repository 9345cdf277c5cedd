"""The server's app: all protocols on one port, behind the checks of safety.py."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from utils.errors import InputError, is_out_of_memory
from utils.run.failures import release_memory
from utils.serving.context import Context
from utils.serving.frames import json_response
from utils.serving.itksnap import ITKSnap
from utils.serving.monailabel import MonaiLabel
from utils.serving.nninteractive import LEASE, META, NNInteractive
from utils.serving.page_api import PageApi
from utils.serving.page_files import PageFiles
from utils.serving.page_images import PageImages
from utils.serving.refusals import Refusal
from utils.serving.safety import Guard
from utils.serving.slicer_legacy import SlicerLegacy

SECONDS_BETWEEN_LOOKS = 5
Handler = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger(__name__)


def build_app(
    context: Context,
    *,
    host: str,
    port: int,
    names: Iterable[str] = (),
    token: str = "",
    framed_by: Iterable[str] = (),
    origins: Sequence[str] = (),
) -> ASGIApp:
    """Return the app.

    Args:
        host, port: where the server listens.
        names: further names by which clients may call it.
        token: a secret that clients must show; empty: none.
        framed_by: origins of pages that may show the server's page inside of theirs.
        origins: of other pages that may send requests (CORS).
    """
    files = PageFiles()
    routes = [
        Route("/", files.index),
        Route("/login", files.login),
        Route("/static/{path:path}", files.static),
        *PageApi(context, files).routes(),
        *PageImages(context).routes(),
        *either_lease_or_not(NNInteractive(context), SlicerLegacy(context)),
        *ITKSnap(context).routes(),
        *MonaiLabel(context).routes(),
    ]
    app = Starlette(
        routes=routes,
        lifespan=_closing_unused(context),
        exception_handlers={
            Refusal: _on_refusal,
            InputError: _on_input_error,
            HTTPException: _on_http_error,
        },
        middleware=[Middleware(Defects)],
    )
    guard = Guard(
        app,
        host=host,
        names=names,
        token=token,
        cookie=f"fastsam3d_{port}",
        framed_by=framed_by,
        origins=origins,
    )
    if not origins:
        return guard
    # Around the guard, so that a page that was allowed can read why it is refused.
    return CORSMiddleware(
        guard,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,  # public pages may ask for this machine
        expose_headers=["Content-Disposition", "Retry-After", META],
    )


def either_lease_or_not(leased: NNInteractive, legacy: SlicerLegacy) -> list[Route]:
    """Return the paths of two protocols that share four of them, told apart by the lease."""
    handlers = {
        "/add_point_interaction": legacy.add_point,
        "/add_bbox_interaction": legacy.add_box,
        "/add_scribble_interaction": legacy.add_scribble,
        "/add_lasso_interaction": legacy.add_lasso,
    }
    routes = []
    for route in leased.routes():
        other = handlers.get(route.path)
        if other is None:
            routes.append(route)
        else:
            routes.append(Route(route.path, _by_lease(route.endpoint, other), methods=["POST"]))
    return [*routes, *legacy.routes()]


def _by_lease(leased: Handler, other: Handler) -> Handler:
    async def handler(request: Request) -> Response:
        return await (leased if LEASE in request.headers else other)(request)

    return handler


def error_response(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Response:
    """Return an error as JSON, in the page's form and in the other protocols' (``detail``)."""
    content = {"error": {"code": code, "message": message}, "detail": message}
    return json_response(content, status, headers)


async def _on_refusal(request: Request, error: Refusal) -> Response:
    return error_response(error.status, error.code, error.message, error.headers)


async def _on_input_error(request: Request, error: InputError) -> Response:
    return error_response(400, "bad_prompt", str(error))


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """Answer to paths and methods that there are not, saying what this server is."""
    if error.status_code in (404, 405):
        message = (
            f"{request.method} {request.url.path[:100]} is none of this server's. It is FastSAM3D, "
            "and serves its page and clients of nnInteractive, SlicerNNInteractive, ITK-SNAP and "
            "MONAI Label: see docs/serving.md."
        )
        return error_response(error.status_code, "no_such_path", message, error.headers)
    name = HTTPStatus(error.status_code).phrase
    return error_response(error.status_code, "bad_request", f"{name}: {error.detail}")


class Defects:
    """An ASGI app around another that answers where the other fails; the server goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; answer it with an error that is logged if the app fails."""
        has_begun = False

        async def watched_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception as error:
            logger.error("%a failed", scope.get("path", "")[:100], exc_info=error)
            if has_begun or scope["type"] != "http":
                raise
            await _on_defect(error)(scope, receive, send)


def _on_defect(error: Exception) -> Response:
    if is_out_of_memory(error):
        release_memory()
        message = "there is not enough memory for this. Crop or resample the image."
        return error_response(503, "full", message)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = "the server's disk is full. Free space there, then try again."
        return error_response(503, "full", message)
    message = f"the server has a defect ({type(error).__name__}); its log says more."
    return error_response(500, "defect", message)


def _closing_unused(context: Context) -> "Lifespan[Starlette]":
    """Return the app's lifespan: unused sessions are closed until the server ends."""

    async def look() -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            context.registry.close_unused()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(look())
        yield
        looking.cancel()

    return lifespan
