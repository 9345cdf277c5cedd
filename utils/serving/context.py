"""What all protocols of one server share: the network's facts, sessions, limits and folders."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.serving.autosave import Autosaves
from utils.serving.registry import OpenSession, Registry
from utils.serving.scan import Scan


@dataclass(eq=False)
class Context:
    """The server's state, used by the event loop's thread alone unless said otherwise."""

    registry: Registry
    autosaves: Autosaves
    save_dir: Path
    network: str  # name of its file, for people
    device: str
    max_voxels: int
    first_scan: Scan | None = None  # the image of new sessions
    classes: Sequence[str] = ()  # names offered for targets
    class_colors: Mapping[str, str] = field(default_factory=dict)  # "#rrggbb" of some of them
    shared: str = ""  # the one session that all pages show, where there is one
    is_ready: bool = False  # the network has run once
    decoding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    async def open_first(self, each: OpenSession) -> None:
        """Give a new session of the page the server's image, and autosaves from then on."""
        if self.first_scan is not None:
            scan = self.first_scan
            await self.registry.run(each, lambda session: session.set_scan(scan))
        self.save_changes(each)

    async def open_shared(self) -> OpenSession:
        """Open the session that all pages show from then on; it stays open without requests.

        Raises:
            InputError: the network cannot use the server's image.
        """
        each = self.registry.open("page")
        each.is_kept, self.shared = True, each.id
        await self.open_first(each)
        return each

    def save_changes(self, each: OpenSession) -> None:
        """Write the session's prompts to its autosave after each change from now on."""
        each.session.on_change = lambda session: self.autosaves.write(each.id, session)


def milliseconds_since(start: float) -> float:
    """Return the time since `time.perf_counter` was ``start``, in ms."""
    return round((time.perf_counter() - start) * 1000, 1)
