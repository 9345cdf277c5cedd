"""Connections of clients: answers leave at once, and those that ask for nothing are closed.

An answer is written in two parts, head and body. The system would hold the second part back until
the client has confirmed the first, which takes 40 ms (Nagle's algorithm). asyncio turns this off
only for sockets that name their protocol, which those of `socket.create_server` do not.
"""

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds after which a connection is closed if no whole request's head has come.
PATIENCE_SECONDS = 20.0


class PatientProtocol(H11Protocol):
    """uvicorn's protocol; it waits for the end of a head, as long as a client likes, by itself."""

    _look: asyncio.TimerHandle | None = None
    _last: object = None  # the request at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to look after the connection."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._last = self  # at the first look nothing is known
        self._plan()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to look after it."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _plan(self) -> None:
        self._look = self.loop.call_later(PATIENCE_SECONDS / 2, self._close_if_idle)

    def _close_if_idle(self) -> None:
        """Close the connection if no request has come since the last look, and none is going on."""
        is_answered = self.cycle is None or self.cycle.response_complete
        if is_answered and self.cycle is self._last:
            self.transport.close()
            return
        self._last = self.cycle
        self._plan()
