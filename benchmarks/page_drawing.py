"""How long the page takes to show a mask: the server's part, the page's own, and the drawing.

    python benchmarks/page_drawing.py --checkpoint weights/student.pth

The script starts serve.py and Chromium (apt-get install chromium; Playwright is in
requirements-dev.txt), opens a phantom as large as --shape, and clicks as benchmarks/serving.py
does. WebGL is drawn by the CPU here (SwiftShader), as on a machine without a graphics card.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import machine_line, table
from benchmarks.serving import Clicks, phantom, serving
from utils.errors import InputError, exit_on_input_error
from utils.run.flags import add_device_arguments, positive_int

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = (
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--no-sandbox",
)  # fmt: skip
WAIT_MS = 300_000
READY = "() => window.fastsam3d?.viewer.order && document.getElementById('veil').hidden"
#: Sends a click; returns the milliseconds until its mask is in the page, of these the server's, and
#: those until the mask is drawn.
CLICK = """async ([target, at, positive]) => {
    const { session, viewer } = fastsam3d;
    const drawn = new Promise((done) => viewer.addEventListener("drawn", done, { once: true }));
    let answer = null;
    session.addEventListener("answered", ({ detail }) => { answer = detail; }, { once: true });
    const start = performance.now();
    const prompt = { target, type: "point", at, positive };
    if (!(await session.change("prompts", prompt, { timed: true }))) throw new Error("refused");
    viewer.draw();
    const there = performance.now();
    await drawn;
    viewer.nv.gl.finish();
    return [there - start, answer.network, performance.now() - there];
}"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True)
    add("--network", help="name of the network in a released file, such as vit_b_ori")
    add("--shape", type=positive_int, nargs=3, default=[128, 256, 256], metavar=("D", "H", "W"))
    add("--clicks", type=positive_int, default=20, help="further clicks (default: 20)")
    add_device_arguments(parser)
    return parser.parse_args(argv)


@contextmanager
def browser() -> Iterator["Page"]:
    """Yield a page of 1280 by 720 pixels.

    Raises:
        InputError: Chromium is not installed.
    """
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        raise InputError("found no chromium. Expected it: apt-get install chromium.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM, timeout=WAIT_MS)
        try:
            page = chromium.new_page(viewport={"width": 1280, "height": 720})
            page.set_default_timeout(WAIT_MS)
            yield page
        finally:
            chromium.close()


def run(args: argparse.Namespace) -> np.ndarray:
    """Return milliseconds (clicks, 3): until the mask is in the page, the network's, the drawing.

    Raises:
        InputError: Chromium is not installed, or serve.py ended.
    """
    content, labels = phantom(args.shape)
    with tempfile.TemporaryDirectory() as folder, serving(args) as (url, _), browser() as page:
        scan = Path(folder) / "phantom.nii"
        scan.write_bytes(content)
        page.goto(url)
        while not page.evaluate(READY):
            page.wait_for_timeout(200)
        page.set_input_files("#image-file", scan)
        while page.evaluate("() => fastsam3d.session.state.image?.name") != scan.name:
            page.wait_for_timeout(200)
        while not page.evaluate(READY):
            page.wait_for_timeout(200)
        places = Clicks(labels, seed=99)
        page.evaluate(CLICK, [1, places.on(1).tolist(), True])
        near = [places.near(1) for _ in range(args.clicks)]
        return np.array([page.evaluate(CLICK, [1, at.tolist(), is_on]) for at, is_on in near])


@exit_on_input_error
def main() -> None:
    args = parse_args()
    there, network, drawing = run(args).T
    rows = [
        [name, *(f"{np.percentile(times, q):.0f}" for q in (50, 95))]
        for name, times in (
            ("click to labels in the page", there),
            ("of it the network", network),
            ("drawing after it", drawing),
        )
    ]
    print(f"{machine_line()}; {' x '.join(map(str, args.shape))} voxels\n")
    print(table(["in the page", "median ms", "p95 ms"], rows))


if __name__ == "__main__":
    main()
