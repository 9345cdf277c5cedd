"""Start the server: open the network, warm it up, say that it is ready, end on Ctrl-C."""

import asyncio
import hashlib
import logging
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from utils.errors import InputError
from utils.prediction.predictor import Predictor
from utils.prompts.kinds import Click
from utils.serving.app import build_app
from utils.serving.autosave import Autosaves
from utils.serving.connections import PatientProtocol
from utils.serving.context import Context
from utils.serving.private_folders import remove_abandoned_folders
from utils.serving.registry import Registry
from utils.serving.safety import is_loopback
from utils.serving.scan import Scan, phantom_scan
from utils.serving.session import Session
from utils.serving.worker import Worker

#: Share of the machine's memory that images and masks of all sessions may take.
MEMORY_SHARE = 0.5
#: uvicorn's settings: what a request may be, and nothing about this machine in an answer.
UVICORN = {
    "http": PatientProtocol,
    "ws": "none",
    "log_config": None,
    "log_level": "error",  # warnings tell of requests that are no HTTP, which may be endless
    "access_log": False,
    "server_header": False,
    "date_header": False,
    "proxy_headers": False,
    "h11_max_incomplete_event_size": 2**16,  # bytes of a request's line and headers
    "limit_concurrency": 256,
    "timeout_graceful_shutdown": 5,
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where the server listens, and by which names and secret it is reached."""

    host: str
    port: int
    token: str = ""
    names: Sequence[str] = ()
    framed_by: Sequence[str] = ()  # origins of pages that may show the page inside of theirs
    origins: Sequence[str] = ()  # of other pages that may send requests

    @property
    def url(self) -> str:
        """The address to open in a browser, with the token, which becomes a cookie."""
        return self._origin + (f"/?token={self.token}" if self.token else "/")

    @property
    def prefixed_url(self) -> str:
        """The address with the token in its path, which needs no cookie."""
        return self._origin + (f"/t/{self.token}/" if self.token else "/")

    @property
    def _origin(self) -> str:
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def require_safe(self) -> None:
        """Raise `InputError` if others could reach the server without a secret."""
        if not is_loopback(self.host) and not self.token:
            raise InputError(
                f"--host {self.host}: other machines can reach this address. Expected --token with "
                "it, so that only those who know the token can use the server: add --token, or "
                "leave --host out and use an ssh tunnel."
            )


@dataclass(frozen=True)
class Served:
    """What is served: a network, and the image that new sessions of the page get."""

    predictor: Predictor  # its network is shared by the predictors of all sessions
    network: str  # name of its file
    digest: str  # tells its file from others
    scan: Scan | None
    sessions: int  # at a time
    max_voxels: int
    save_dir: Path
    classes: Sequence[str] = ()
    class_colors: Mapping[str, str] = field(default_factory=dict)  # "#rrggbb" of some classes
    worker: Worker = field(default_factory=Worker)  # open the network in its thread: see there


def context_of(served: Served) -> Context:
    """Return the state of a server that is about to start."""
    first = served.classes[0] if served.classes else "target 1"

    def new_session() -> Session:
        return Session(served.predictor.sibling(), first)

    registry = Registry(new_session, served.worker, served.sessions, memory_bytes())
    return Context(
        registry=registry,
        autosaves=Autosaves(served.save_dir / "autosave", served.digest),
        save_dir=served.save_dir,
        network=served.network,
        device=str(served.predictor.network.device),
        max_voxels=served.max_voxels,
        first_scan=served.scan,
        classes=served.classes,
        class_colors=served.class_colors,
    )


def serve(served: Served, address: Address, *, open_browser: bool = False) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: the port is in use, or the address is not safe.
    """
    address.require_safe()
    remove_abandoned_folders()
    context = context_of(served)
    with listening_socket(address) as listening:
        address = replace(address, port=listening.getsockname()[1])
        config = uvicorn.Config(app_of(context, address), **UVICORN)

        def announce() -> None:
            logger.info("ready: %s", address.url)
            if open_browser:
                threading.Thread(target=webbrowser.open, args=[address.url], daemon=True).start()

        try:
            server = uvicorn.Server(config)
            asyncio.run(answer_requests(server, listening, context, served, announce))
        except KeyboardInterrupt:  # uvicorn raises it again once it has ended
            pass
        finally:
            context.registry.worker.close()
    logger.info("ended; prompts are kept in %s", context.autosaves.folder)


def app_of(context: Context, address: Address) -> ASGIApp:
    """Return the app for an address."""
    return build_app(
        context,
        host=address.host,
        port=address.port,
        names=address.names,
        token=address.token,
        framed_by=address.framed_by,
        origins=address.origins,
    )


def memory_bytes() -> float:
    """Return the bytes that images and masks of all sessions may take together."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 8 * 2.0**30
    return MEMORY_SHARE * total


def file_digest(path: Path) -> str:
    """Return 32 hexadecimal digits that tell a file's content from others."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def warm_up(predictor: Predictor) -> float:
    """Answer a click on a phantom, so that a user's first is not slow; return the seconds."""
    start = time.perf_counter()
    session, scan = Session(predictor.sibling()), phantom_scan()
    session.set_scan(scan)
    for positive in (True, False):
        middle = tuple(n // 2 + (0 if positive else 3) for n in scan.shape)
        session.add(1, Click(middle, positive))
    return time.perf_counter() - start


async def answer_requests(
    server: uvicorn.Server,
    listening: socket.socket,
    context: Context,
    served: Served,
    announce: Callable[[], None],
) -> None:
    """Answer requests until the server ends; ``announce`` is called once the network has run."""
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    seconds = await context.registry.worker.run(lambda: warm_up(served.predictor))
    if not server.should_exit:  # Ctrl-C may have come meanwhile
        context.is_ready = True
        logger.info("the network is warm after %.1f s on %s", seconds, context.device)
        announce()
    await serving


def listening_socket(address: Address) -> socket.socket:
    """Return a socket that listens on an address; port 0 is any free one.

    Raises:
        InputError: the port is in use, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {address.host} --port {address.port}: cannot be listened on ({error}). "
            "Expected an address of this machine and a port that no other program uses: end that "
            "program, or name another port."
        ) from error
