"""napari with the plug-in napari-nninteractive, driven by its own buttons, layers and mouse events.

    xvfb-run -a CLIENTS/bin/python tests/napari_worker.py URL IMAGE.npz ANSWERS.npz

IMAGE.npz holds ``image`` (D, H, W) and ``spacing_zyx``. ANSWERS.npz gets the labels that the
plug-in shows after each step, by the step's name. It runs in an environment without this project.
"""

import sys
import time
from collections.abc import Callable

import httpx
import napari
import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

WAIT_S = 120
POINTS, BOXES = "nnInteractive - Point Layer", "nnInteractive - BBox Layer"
SCRIBBLES, LASSOS = "nnInteractive - Scribble Layer", "nnInteractive - Lasso Layer"
LABELS = "nnInteractive - Label Layer"
TOOLS = ("points", "boxes", "scribbles", "lassos")
#: Places of the steps in the image (z, y, x).
INSIDE, OUTSIDE, OTHER, BEYOND = (6, 7, 8), (9.2, 10.9, 12.4), (13, 16, 20), (99, 0, 0)
BOX = ((13, 12, 16), (13, 20, 24))  # two corners, on one slice
OUTLINE = ((13, 12, 17), (13, 12, 23), (13, 17, 25), (13, 20, 20), (13, 16, 15))


class User:
    """Somebody who works with the plug-in.

    Args:
        url: of the server.
        image: (D, H, W).
        spacing_zyx: in mm.
    """

    def __init__(self, url: str, image: np.ndarray, spacing_zyx: np.ndarray) -> None:
        self.answers: dict[str, np.ndarray] = {}
        self.viewer = napari.Viewer()
        self.viewer.add_image(image, name="scan", scale=spacing_zyx)
        _, self.widget = self.viewer.window.add_plugin_dock_widget(
            "napari-nninteractive", "nnInteractive"
        )
        self.widget.mode_switch.buttons[1].click()  # remote
        self.widget.server_url_edit.setText(url)

    def wait(self, what: str, is_done: Callable[[], bool]) -> None:
        """Let the program run until something is done."""
        end = time.monotonic() + WAIT_S
        while not is_done():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: {self.widget.remote_status_label.text()}")
            QApplication.processEvents()
            time.sleep(0.01)

    def connect(self) -> None:
        """Press Connect."""
        self.widget.connect_btn.click()
        self.wait("connect", lambda: self.widget._remote_connected)

    def initialize(self) -> None:
        """Press Initialize, which sends the image."""
        self.widget.init_button.click()
        self.wait("initialize", lambda: POINTS in self.viewer.layers)

    def choose(self, tool: int) -> None:
        """Press the button of a tool, unless it is chosen already."""
        if self.widget.interaction_button.index != tool:
            self.widget.interaction_button.buttons[tool].click()

    def point(self, zyx: tuple[float, ...], positive: bool = True) -> None:
        """Add a point to the plug-in's layer, as its mouse callback does."""
        self.choose(0)
        self.widget.prompt_button.buttons[0 if positive else 1].click()
        self.viewer.layers[POINTS].add(np.array(zyx, float))

    def box(self, corner: tuple[int, ...], opposite: tuple[int, ...]) -> None:
        """Add a rectangle on one slice to the plug-in's layer."""
        self.choose(1)
        self.widget.prompt_button.buttons[0].click()
        (z, top, left), (_, bottom, right) = corner, opposite
        corners = [[z, top, left], [z, top, right], [z, bottom, right], [z, bottom, left]]
        self.viewer.layers[BOXES].add(np.array(corners, float), shape_type="rectangle")

    def show_slice(self, number: int) -> None:
        """Move the slider to a slice."""
        self.viewer.dims.set_current_step(0, number)
        QApplication.processEvents()

    def scribble(self, z: int, y: int, columns: range) -> None:
        """Paint a stroke on a slice, as the brush's mouse callback does."""
        self.show_slice(z)
        self.choose(2)
        layer = self.viewer.layers[SCRIBBLES]
        with layer.block_history():
            for x in columns:
                layer.paint((z, y, x), 1)
        self.answers["drawn scribble"] = layer.data > 0

    def lasso(self, outline: tuple[tuple[int, ...], ...]) -> None:
        """Add an outline on a slice to the plug-in's layer."""
        self.show_slice(outline[0][0])
        self.choose(3)
        layer = self.viewer.layers[LASSOS]
        layer.add(np.array(outline, float), shape_type="polygon")
        drawn, sides = layer.get_last()
        whole = np.zeros(self.viewer.layers[LABELS].data.shape, bool)
        whole[tuple(slice(*side) for side in sides)] = drawn
        self.answers["drawn lasso"] = whole

    def click_canvas(self) -> None:
        """Click with the mouse in the middle of the picture, on the slice that is shown."""
        self.choose(0)
        self.widget.prompt_button.buttons[0].click()
        canvas = self.viewer.window._qt_viewer.canvas.native
        middle = QPoint(canvas.width() // 2, canvas.height() // 2)
        before = len(self.viewer.layers[POINTS].data)
        QTest.mouseMove(canvas, middle)
        QTest.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=middle)
        self.wait("mouse", lambda: len(self.viewer.layers[POINTS].data) > before)
        self.answers["mouse at"] = self.viewer.layers[POINTS].data[-1]

    def keep(self, step: str) -> None:
        """Remember the labels that are shown."""
        self.answers[step] = self.viewer.layers[LABELS].data.copy()


def work(user: User) -> None:
    """Go through all that the plug-in does with a server."""
    widget = user.widget
    user.connect()
    user.initialize()
    enabled = [button.isEnabled() for button in widget.interaction_button.buttons]
    user.answers["tools"] = np.array([tool for tool, on in zip(TOOLS, enabled) if on])  # noqa: B905
    user.point(INSIDE)
    user.keep("point")
    user.point(OUTSIDE, positive=False)
    user.keep("outside")
    user.box(*BOX)
    user.keep("box")
    widget.undo_button.click()
    user.keep("undo box")
    widget.undo_button.click()
    user.keep("undo outside")
    try:
        user.point(BEYOND)
    except httpx.HTTPStatusError as error:
        user.answers["beyond"] = np.array(error.response.json()["detail"])
    user.keep("after beyond")
    widget.auto_run_ckbx.setChecked(False)
    user.point(OUTSIDE, positive=False)
    user.keep("not run")
    widget.run_button.click()
    user.keep("run")
    widget.auto_run_ckbx.setChecked(True)
    widget.reset_button.click()  # next object
    user.keep("next object")
    user.click_canvas()
    user.keep("mouse")
    widget.reset_interaction_button.click()
    user.keep("reset")
    user.scribble(6, 7, range(2, 27))
    user.keep("scribble")
    widget.undo_button.click()
    user.keep("undo scribble")
    user.lasso(OUTLINE)
    user.keep("lasso")
    widget.reset_interaction_button.click()
    index = widget.label_for_init.findText("object 1 - scan")
    widget.label_for_init.setCurrentIndex(index)
    widget.load_mask_btn.click()
    user.keep("loaded")
    user.point(INSIDE)
    user.keep("loaded and point")
    widget.session._http.post("/release")  # as if the server had forgotten the session
    user.point(OTHER)
    user.answers["status"] = np.array(widget.remote_status_label.text())
    user.initialize()
    user.keep("resumed")
    user.point(OTHER)
    user.keep("resumed and point")


def main() -> None:
    url, image, answers = sys.argv[1:]
    given = np.load(image)
    user = User(url, given["image"], given["spacing_zyx"])
    work(user)
    np.savez(answers, **user.answers)
    user.viewer.close()
    QApplication.processEvents()


if __name__ == "__main__":
    main()
