"""A server in a thread of this process, with one session that its pages and this process share."""

import asyncio
import atexit
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import uvicorn

from utils.errors import InputError
from utils.serving.registry import OpenSession
from utils.serving.server import (
    UVICORN,
    Address,
    Served,
    answer_requests,
    app_of,
    context_of,
    listening_socket,
)
from utils.serving.session import Session

SECONDS_TO_END = 10

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class BackgroundServer:
    """Answers requests until `close`, or until the process ends.

    Args:
        address: port 0 is any free one.

    Raises:
        InputError: the network cannot use the image, or the port is in use.
    """

    def __init__(self, served: Served, address: Address) -> None:
        address.require_safe()
        self._listening = listening_socket(address)
        self.address = replace(address, port=self._listening.getsockname()[1])
        self._context = context_of(served)
        config = uvicorn.Config(app_of(self._context, self.address), **UVICORN)
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._shared: OpenSession | None = None
        opened: Future = Future()
        self._thread = threading.Thread(
            target=self._run, args=[served, opened], name="fastsam3d-server", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)
        try:
            self._shared = opened.result()
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._server.should_exit

    def ask(self, job: Callable[[Session], Result]) -> Result:
        """Run a job of the shared session after the requests before it; return its result.

        Raises:
            InputError: the server has ended; or as the job.
        """
        if not self.is_open:
            raise InputError("the server of this image has ended. Expected it to run: show anew.")
        running = self._context.registry.run(self._shared, job)
        return asyncio.run_coroutine_threadsafe(running, self._loop).result()

    def close(self) -> None:
        """End the server and let go of the image; prompts stay in the autosaves."""
        atexit.unregister(self.close)
        self._server.should_exit = True
        self._thread.join(SECONDS_TO_END)
        self._context.registry.worker.close()
        self._context.registry.close(self._context.shared)
        self._context.first_scan = self._shared = None
        self._listening.close()

    def _run(self, served: Served, opened: Future) -> None:
        try:
            self._loop.run_until_complete(self._answer(served, opened))
        except BaseException as error:
            if opened.done():
                logger.exception("the server has ended")
            else:
                opened.set_exception(error)
        finally:
            self._server.should_exit = True
            self._loop.close()

    async def _answer(self, served: Served, opened: Future) -> None:
        opened.set_result(await self._context.open_shared())
        with suppress(asyncio.CancelledError):  # the warm-up, by `close`
            await answer_requests(
                self._server, self._listening, self._context, served, lambda: None
            )
