"""The sessions that are open: how many, how much memory, and when an unused one is closed."""

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    yields: float = math.inf  # without any request, where another session needs its place


#: By kind of client. A page asks after its session every 15 seconds, in a background tab once a
#: minute; a closed one leaves its session behind. So do the clients beside nnInteractive's, which
#: never say that they are there, nor that they go.
UNHEARD = Patience(3600, 3600, yields=300)
PATIENCE = {
    "page": Patience(900, 12 * 3600, yields=180),
    "nninteractive": Patience(60, 600),
    "slicer_legacy": UNHEARD,
    "itksnap": UNHEARD,
    "monailabel": UNHEARD,
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
    taking_in: int = 0  # images that are being uploaded
    is_kept: bool = False  # stays open without requests
    notes: list[str] = field(default_factory=list)  # for the user, until they are sent
    extra: dict = field(default_factory=dict)  # what a protocol keeps beside the session


class Intake:
    """The memory that one request needs while it brings an image; see `Registry.intake`."""

    def __init__(self, registry: "Registry", each: OpenSession | None) -> None:
        self._registry, self._each = registry, each
        self.received = 0  # bytes of its body so far
        self.promised = 0  # bytes of the image that it becomes

    def receive(self, count: int) -> None:
        """Count bytes of the body.

        Raises:
            Refusal: they do not fit into memory beside all others.
        """
        self._registry.require_room(self.received + count, self._each, self, "the upload")
        self.received += count

    def promise(self, needed_bytes: int) -> None:
        """Keep room for the image, in place of the session's present one.

        Raises:
            Refusal: it does not fit into memory beside the body and all others.
        """
        needed = self.received + needed_bytes
        self._registry.require_room(needed, self._each, self, "the image")
        self.promised = needed_bytes


class Registry:
    """All open sessions.

    Args:
        new_session: makes a session without an image.
        most: sessions at a time.
        memory_bytes: of the images and masks of all sessions together, and of uploads.
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
        self._intakes: list[Intake] = []

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
        self._make_place()
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
            raise no_session()
        found.heard = self._clock()
        if uses:
            found.used = found.heard
        return found

    def has(self, session_id: str) -> bool:
        """Tell whether a session is open."""
        return session_id in self._open

    def of_kind(self, kind: str) -> list[OpenSession]:
        """Return the open sessions of a kind of client, without hearing of them."""
        return [each for each in self._open.values() if each.kind == kind]

    def close(self, session_id: str) -> None:
        """Close a session, if it is open."""
        self._open.pop(session_id, None)

    def close_unused(self) -> None:
        """Close the sessions whose clients have gone."""
        for each in list(self._open.values()):
            is_gone = self.remaining_seconds(each, silent=True) <= 0
            if is_gone and not (each.is_kept or each.waiting or each.taking_in):
                self.close(each.id)

    def is_left(self, session_id: str) -> bool:
        """Tell whether no client was heard of a session for so long that it may have gone."""
        each = self._open.get(session_id)
        return each is None or self._clock() - each.heard >= PATIENCE[each.kind].yields

    def _make_place(self) -> None:
        """Where all places are taken, close the session that was silent longest, of those that may.

        Its client sends the image again with its next prompt, or asks its user to.
        """
        may = [
            each
            for each in self._open.values()
            if self.is_left(each.id) and not (each.waiting or each.taking_in)
        ]
        if may and len(self._open) >= self.most:
            self.close(min(may, key=lambda each: each.heard).id)

    def remaining_seconds(self, each: OpenSession, *, silent: bool = False) -> float:
        """Return the seconds until a session is closed for idleness, or for silence if sooner."""
        patience, now = PATIENCE[each.kind], self._clock()
        idle = each.used + patience.idle - now
        return min(idle, each.heard + patience.silent - now) if silent else idle

    @contextmanager
    def intake(self, each: OpenSession | None = None) -> Iterator[Intake]:
        """Count the memory of a request that brings an image, until the block ends.

        Args:
            each: its session, which is not closed meanwhile; None: it opens one later.
        """
        new = Intake(self, each)
        self._intakes.append(new)
        if each is not None:
            each.taking_in += 1
        try:
            yield new
        finally:
            self._intakes.remove(new)
            if each is not None:
                each.taking_in -= 1
                each.heard = self._clock()

    def require_room(
        self,
        needed_bytes: int,
        instead_of: OpenSession | None = None,
        intake: Intake | None = None,
        what: str = "the image",
    ) -> None:
        """Check that an image of a session fits into memory beside the others; any thread may.

        Args:
            instead_of: the session whose present image is dropped then.
            intake: of the request itself, whose memory is in ``needed_bytes``.

        Raises:
            Refusal: it does not fit.
        """
        others = [each.session for each in list(self._open.values()) if each is not instead_of]
        scans = {id(each.scan): each.scan.nbytes for each in others if each.scan is not None}
        taken = sum(scans.values()) + sum(each.mask_bytes for each in others)
        taken += sum(o.received + o.promised for o in list(self._intakes) if o is not intake)
        if taken + needed_bytes > self.memory_bytes:
            raise full(
                f"{what} needs {needed_bytes / 2**20:,.0f} MiB of memory, and other sessions and "
                f"uploads take {taken / 2**20:,.0f} MiB. Expected at most "
                f"{self.memory_bytes / 2**20:,.0f} MiB together: crop or resample the image, or "
                "close other sessions."
            )

    async def run(self, each: OpenSession, job: Callable[[Session], Result]) -> Result:
        """Run a job of a session in the predictor's thread; return its result.

        Raises:
            Refusal: too many requests wait, of this session or of all; or it was closed meanwhile.
        """
        if self._open.get(each.id) is not each:
            raise no_session()
        if each.waiting >= MOST_WAITING_EACH:
            raise busy(f"{each.waiting} requests of this session wait")
        each.waiting += 1
        try:
            return await self.worker.run(lambda: job(each.session))
        finally:
            each.waiting -= 1
            each.heard = self._clock()


def no_session() -> Refusal:
    """Return the refusal of a request of a session that is not open."""
    return Refusal(
        404, "no_session",
        "there is no such session: it was closed after a time without requests, or the server was "
        "started anew. Open another.",
    )  # fmt: skip
