"""The page in Debian's Chromium: a server in a thread, and a user who clicks on voxels."""

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from benchmarks.page_drawing import CHROMIUM
from utils.serving.context import Context
from utils.serving.page_files import PAGE, VIEWER
from utils.serving.server import UVICORN, Address, app_of, listening_socket

WAIT_S = 300  # SwiftShader on a busy CPU


def require_browser() -> str:
    """Return Chromium's path; skip the test where Chromium, Playwright or the viewer is missing."""
    pytest.importorskip("playwright.sync_api", reason="no package playwright")
    if not (PAGE / VIEWER).is_file():
        pytest.skip("no NiiVue: make page")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    return path


@contextmanager
def served(context: Context, token: str = "") -> Iterator[str]:
    """Serve the page on a free port; yield its address."""
    with listening_socket(Address("127.0.0.1", 0)) as listening:
        address = Address("127.0.0.1", listening.getsockname()[1], token)
        server = uvicorn.Server(uvicorn.Config(app_of(context, address), **UVICORN))
        context.is_ready = True
        thread = threading.Thread(target=asyncio.run, args=[server.serve([listening])])
        thread.start()
        try:
            yield address.url
        finally:
            server.should_exit = True
            thread.join()
            context.registry.worker.close()


@contextmanager
def browser(path: str, folder: Path) -> Iterator:
    """Yield a new page of a browser, whose downloads go to a temporary folder."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=CHROMIUM, downloads_path=folder, timeout=1000 * WAIT_S
        )
        try:
            tab = chromium.new_context(viewport={"width": 1280, "height": 720}).new_page()
            tab.set_default_timeout(1000 * WAIT_S)
            yield tab
        finally:
            chromium.close()


class User:
    """Works with the page as a person does: by mouse, keyboard and file dialogs.

    Args:
        frame: address of the page where it is in a frame of the page of ``url``.
    """

    def __init__(self, tab, url: str, frame: str = "") -> None:
        self.tab = self.page = tab
        self.faults: list[str] = []
        tab.on("pageerror", lambda error: self.faults.append(str(error)))
        tab.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        tab.goto(url)
        if frame:
            (self.page,) = [each for each in tab.frames if each.url == frame]
        self.wait("fastsam3d.session.state && document.getElementById('veil').hidden")

    def wait(self, condition: str) -> None:
        """Wait until a condition of the page holds."""
        end = time.monotonic() + WAIT_S
        # Not the browser's own wait_for_function, which the page's policy forbids as eval.
        while not self.page.evaluate(f"() => Boolean(window.fastsam3d && {condition})"):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.1)

    def settled(self) -> dict:
        """Wait until all answers are there; return the state."""
        self.wait("fastsam3d.session.waiting === 0")
        return self.page.evaluate("() => fastsam3d.session.state")

    def place(self, zyx: Sequence[int], view: str = "axial") -> tuple[float, float]:
        """Return where a voxel of the crosshair's slice lies on the screen."""
        code = """([zyx, view]) => {
            const { viewer } = fastsam3d;
            const place = viewer.canvasPlace(view, viewer.fraction(viewer.order.toRas(zyx)));
            const { left, top } = document.getElementById("overlay").getBoundingClientRect();
            return [left + place[0] / devicePixelRatio, top + place[1] / devicePixelRatio];
        }"""
        x, y = self.page.evaluate(code, [list(zyx), view])
        if self.page is self.tab:
            return x, y
        frame = self.page.frame_element().bounding_box()
        return x + frame["x"], y + frame["y"]

    def go_to(self, zyx: Sequence[int]) -> None:
        """Move the crosshair to a voxel."""
        code = "(zyx) => fastsam3d.viewer.moveTo(fastsam3d.viewer.order.toRas(zyx))"
        self.page.evaluate(code, list(zyx))
        self.tab.wait_for_timeout(300)  # drawn

    def click(self, zyx: Sequence[int], view: str = "axial", **how: object) -> dict:
        self.go_to(zyx)
        self.tab.mouse.move(*self.place(zyx, view))
        self.tab.mouse.down(**how)
        self.tab.mouse.up(**how)
        return self.settled()

    def drag(self, start: Sequence[int], stop: Sequence[int], view: str = "axial") -> dict:
        self.go_to(start)
        self.tab.mouse.move(*self.place(start, view))
        self.tab.mouse.down()
        self.tab.mouse.move(*self.place(stop, view), steps=4)
        self.tab.mouse.up()
        return self.settled()

    def press(self, keys: str) -> dict:
        self.tab.keyboard.press(keys)
        return self.settled()

    def labels(self) -> list[int]:
        """Return the labels that the page shows, in the file's order, x fastest."""
        code = """() => {
            const { viewer, session } = fastsam3d;
            const [depth, height, width] = session.state.image.shape_zyx;
            const labels = [];
            for (let z = 0; z < depth; z++) for (let y = 0; y < height; y++)
                for (let x = 0; x < width; x++)
                    labels.push(fastsam3d.masks.labelAt(viewer.order.toRas([z, y, x])));
            return labels;
        }"""
        return self.page.evaluate(code)

    def download(self, button: str, menu: str) -> bytes:
        """Choose an entry of a menu; return the file that the browser saves."""
        self.tab.click(f"#{menu} summary")
        with self.tab.expect_download() as waiting:
            self.tab.click(f"#{button}")
        return Path(waiting.value.path()).read_bytes()
