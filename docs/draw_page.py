"""Draw the page of serve.py in every state, in light and dark, for a person to look at.

Reads   --checkpoint  a network file (default: weights/student.pth)
Writes  --out         a folder of PNG files: one a state and look, such as masks_light.png

    python docs/draw_page.py --out work_dir/page

It needs Chromium (apt-get install chromium) and requirements-dev.txt. The image is a phantom.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.page_drawing import READY, browser, wait
from utils.cases.phantoms import CT_CLASSES, ct_phantom
from utils.errors import exit_on_input_error
from utils.files.atomic import make_folder
from utils.files.nifti import write_nifti
from utils.prediction.predictor import Predictor
from utils.run.network import open_network
from utils.run.shipped import checkpoint_or_default
from utils.serving.background import BackgroundServer
from utils.serving.defaults import MAX_VOXELS
from utils.serving.server import Address, Served
from utils.serving.session import Session
from utils.serving.worker import Worker
from utils.volumes.geometry import affine_from_spacing, bounding_box

if TYPE_CHECKING:
    from playwright.sync_api import Page

TOKEN = "a-secret-for-the-pictures"
SEED = (0, 1)  # of the phantom
DRAWN_MS = 1500
CHANGE = "([path, body]) => fastsam3d.session.change(path, body, { timed: true })"
SETTLED = "() => fastsam3d.session.waiting === 0"
LOOK = "(at) => fastsam3d.viewer.moveTo(fastsam3d.viewer.order.toRas(at))"


class Look(NamedTuple):
    """How a person sees the page."""

    width: int
    height: int
    colors: str  # "light" or "dark"
    has_touch: bool = False


#: Name of a target -> the phantom's organ.
ORGANS = {"liver": "Liver", "left kidney": "Left kidney", "spleen": "Spleen"}
LOOKS = {
    "light": Look(1280, 720, "light"),
    "dark": Look(1280, 720, "dark"),
    "tablet": Look(820, 1180, "light", has_touch=True),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="(default: weights/student.pth)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS))
    return parser.parse_args(argv)


def draw(args: argparse.Namespace) -> None:
    """Write the pictures.

    Raises:
        InputError: the network or the folder cannot be used, or Chromium is not installed.
    """
    make_folder(args.out)
    checkpoint = checkpoint_or_default(args.checkpoint, "student")
    phantom = ct_phantom(np.random.default_rng(SEED))
    with tempfile.TemporaryDirectory() as folder:
        scan, wrong = Path(folder, "phantom.nii.gz"), Path(folder, "report.nii")
        write_nifti(scan, phantom.image, affine_from_spacing(phantom.spacing_xyz))
        wrong.write_text("no image")
        for name in args.looks:
            server = _server(checkpoint, Path(folder, name))
            with closing(server), browser(**LOOKS[name]._asdict()) as page:
                for state in _states(page, server, scan, wrong, phantom.label):
                    path = args.out / f"{state}_{name}.png"
                    page.screenshot(path=path)
                    print(path)


def _server(checkpoint: Path, folder: Path) -> BackgroundServer:
    """Return a server without an image, which asks for a token."""
    worker = Worker()
    served = Served(
        predictor=worker.call(lambda: Predictor(*open_network(checkpoint))),
        network=checkpoint.name,
        digest="",
        scan=None,
        sessions=4,
        max_voxels=MAX_VOXELS,
        save_dir=folder,
        classes=["liver", "left kidney", "right kidney", "spleen"],
        class_colors={"liver": "#b5523b"},
        worker=worker,
    )
    return BackgroundServer(served, Address("127.0.0.1", 0, TOKEN))


def _states(
    page: "Page", server: BackgroundServer, scan: Path, wrong: Path, labels: np.ndarray
) -> Iterator[str]:
    """Lead the page through its states; yield the name of each while it shows.

    Args:
        scan, wrong: an image, and a file that is none.
        labels: the organs of the image (D, H, W).
    """
    page.goto(server.address.url.partition("?")[0])
    yield "token"
    page.goto(server.address.url, wait_until="commit")
    page.wait_for_selector("#veil progress")
    yield "starting"
    wait(page, "() => window.fastsam3d && document.getElementById('veil').hidden")
    yield "no_image"
    page.set_input_files("#image-file", wrong)
    page.wait_for_selector("#messages li")
    yield "refused"
    page.keyboard.press("Escape")
    page.set_input_files("#image-file", scan)
    wait(page, READY)
    page.wait_for_timeout(DRAWN_MS)
    yield "image"
    _click_organs(page, labels)
    yield "masks"
    page.click("#save-menu summary")
    yield "saving"
    page.keyboard.press("Escape")
    page.click("#layout label:has([value=axial])")
    page.wait_for_timeout(DRAWN_MS)
    yield "one_plane"
    page.click("#layout label:has([value=volume])")
    page.wait_for_timeout(DRAWN_MS)
    yield "volume"
    page.click("#layout label:has([value=four])")
    page.click("#show-help")
    yield "help"
    page.click("#close-help")
    server.ask(_slow_down)
    page.evaluate("() => { fastsam3d.actions.click(fastsam3d.viewer.at, true); }")
    page.wait_for_timeout(DRAWN_MS)
    yield "waiting"
    wait(page, SETTLED)
    server.close()
    page.evaluate("() => { fastsam3d.session.change('undo', {}); }")
    page.wait_for_selector("#veil")
    yield "server_lost"


def _slow_down(session: Session) -> None:
    """Let the next clicks take as long as on a busy machine."""
    add = session.add

    def slow_add(*args: object) -> object:
        time.sleep(2 * DRAWN_MS / 1000)
        return add(*args)

    session.add = slow_add


def _click_organs(page: "Page", labels: np.ndarray) -> None:
    """Give each of three targets a box or clicks; look at the liver."""
    for number, (name, organ) in enumerate(ORGANS.items(), start=1):
        if number > 1:
            page.evaluate(CHANGE, ["targets", {"name": name}])
        start, stop = bounding_box(labels == CT_CLASSES[organ])
        middle = (start + stop) // 2
        box = {"from": [int(middle[0]), *start[1:].tolist()]}
        box["to"] = [int(middle[0]), *(stop[1:] - 1).tolist()]
        page.evaluate(CHANGE, ["prompts", {"target": number, "type": "box", **box}])
    inside = np.argwhere(labels == CT_CLASSES["Liver"])
    at = inside[len(inside) // 2].tolist()
    click = {"target": 1, "type": "point", "at": at, "positive": True}
    page.evaluate(CHANGE, ["prompts", click])
    wait(page, SETTLED)
    page.evaluate(LOOK, at)
    page.wait_for_timeout(DRAWN_MS)


@exit_on_input_error
def main() -> None:
    draw(parse_args())


if __name__ == "__main__":
    main()
