"""The sessions that are open: how many, how much memory, and when an unused one is closed."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from utils.serving.refusals import Refusal, full
from utils.serving.session import Session
from utils.serving.worker import MOST_WAITING_EACH, Worker, busy

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """Seconds after which a session is closed."""

    silent: float  # without any request
    idle: float  # without a request that does something


#: By kind of client. A page in a background tab may send nothing for minutes; the others beside
#: nnInteractive's never say that they are there.
PATIENCE = {
    "page": Patience(900, 12 * 3600),
    "nninteractive": Patience(60, 600),
    "slicer_legacy": Patience(3600, 3600),
    "itksnap": Patience(3600, 3600),
    "monailabel": Patience(3600, 3600),
}


@dataclass(eq=False)
class OpenSession:
    """A session with its id, and when its client was heard last."""

    id: str
    kind: str  # a key of PATIENCE
    session: Session
    heard: float  # times of the registry's clock
    used: float
    waiting: int = 0  # requests that are not answered yet
    notes: list[str] = field(default_factory=list)  # for the user, until they are sent
    extra: dict = field(default_factory=dict)  # what a protocol keeps beside the session


class Registry:
    """All open sessions.

    Args:
        new_session: makes a session without an image.
        most: sessions at a time.
        memory_bytes: of the images and masks of all sessions together.
        clock: seconds.
    """

    def __init__(
        self,
        new_session: Callable[[], Session],
        worker: Worker,
        most: int,
        memory_bytes: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker, self.most, self.memory_bytes = worker, most, memory_bytes
        self._new_session, self._clock = new_session, clock
        self._open: dict[str, OpenSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, kind: str, session_id: str | None = None) -> OpenSession:
        """Open a session.

        Args:
            session_id: of a session that is taken up again; by default a new one.

        Raises:
            Refusal: there are as many as there may be.
        """
        self.close_unused()
        if len(self._open) >= self.most:
            raise full(
                f"{len(self._open)} sessions are open. Expected fewer than --sessions "
                f"{self.most}: close one, or wait until an unused one is closed."
            )
        now = self._clock()
        new = OpenSession(session_id or secrets.token_hex(16), kind, self._new_session(), now, now)
        self._open[new.id] = new
        return new

    def get(self, session_id: str, kind: str, *, uses: bool = True) -> OpenSession:
        """Return an open session, which is heard of now.

        Args:
            uses: the request does something, rather than only show that the client is there.

        Raises:
            Refusal: there is none of this id and kind.
        """
        self.close_unused()
        found = self._open.get(session_id)
        if found is None or found.kind != kind:
            raise Refusal(
                404, "no_session",
                "there is no such session: it was closed after a time without requests, or the "
                "server was started anew. Open another.",
            )  # fmt: skip
        found.heard = self._clock()
        if uses:
            found.used = found.heard
        return found

    def has(self, session_id: str) -> bool:
        """Tell whether a session is open."""
        return session_id in self._open

    def close(self, session_id: str) -> None:
        """Close a session, if it is open."""
        self._open.pop(session_id, None)

    def close_unused(self) -> None:
        """Close the sessions whose clients have gone."""
        for each in list(self._open.values()):
            if not each.waiting and self.remaining_seconds(each, silent=True) <= 0:
                self.close(each.id)

    def remaining_seconds(self, each: OpenSession, *, silent: bool = False) -> float:
        """Return the seconds until a session is closed for idleness, or for silence if sooner."""
        patience, now = PATIENCE[each.kind], self._clock()
        idle = each.used + patience.idle - now
        return min(idle, each.heard + patience.silent - now) if silent else idle

    def require_room(self, needed_bytes: int, instead_of: OpenSession | None = None) -> None:
        """Check that an image of a session fits into memory beside the others.

        Args:
            instead_of: the session whose present image is dropped then.

        Raises:
            Refusal: it does not fit.
        """
        others = [each.session for each in list(self._open.values()) if each is not instead_of]
        scans = {id(each.scan): each.scan.nbytes for each in others if each.scan is not None}
        taken = sum(scans.values()) + sum(each.mask_bytes for each in others)
        if taken + needed_bytes > self.memory_bytes:
            raise full(
                f"the image needs {needed_bytes / 2**20:,.0f} MiB of memory, and other sessions "
                f"take {taken / 2**20:,.0f} MiB. Expected at most "
                f"{self.memory_bytes / 2**20:,.0f} MiB together: crop or resample the image, or "
                "close other sessions."
            )

    async def run(self, each: OpenSession, job: Callable[[Session], Result]) -> Result:
        """Run a job of a session in the predictor's thread; return its result.

        Raises:
            Refusal: too many requests wait, of this session or of all.
        """
        if each.waiting >= MOST_WAITING_EACH:
            raise busy(f"{each.waiting} requests of this session wait")
        each.waiting += 1
        try:
            return await self.worker.run(lambda: job(each.session))
        finally:
            each.waiting -= 1
            each.heard = self._clock()
