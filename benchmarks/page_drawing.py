"""How long the page takes to show a mask: until it has the labels, and until they are drawn.

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
from benchmarks.serving import Clicks, add_server_arguments, phantom, serving
from utils.errors import InputError, exit_on_input_error

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: WebGL without a graphics card. --no-sandbox: for root, as in containers.
CHROMIUM = (
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--no-sandbox", "--disable-extensions", "--disable-background-networking",
)  # fmt: skip
WAIT_MS = 300_000
READY = "() => window.fastsam3d?.viewer.order && document.getElementById('veil').hidden"
#: Sends a click; returns the milliseconds until its mask is in the page, those of the network among
#: them, and those of the drawing that follows.
CLICK = """async ([target, at, positive]) => {
    const { session, viewer } = fastsam3d;
    let answer = null;
    session.addEventListener("answered", ({ detail }) => { answer = detail; }, { once: true });
    const start = performance.now();
    const prompt = { target, type: "point", at, positive };
    if (!(await session.change("prompts", prompt, { timed: true }))) throw new Error("refused");
    const there = performance.now();
    const drawn = new Promise((done) => viewer.addEventListener("drawn", done, { once: true }));
    viewer.draw();
    await drawn;
    viewer.nv.gl.finish();
    return [there - start, answer.network, performance.now() - there];
}"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_server_arguments(parser)
    return parser.parse_args(argv)


@contextmanager
def browser(
    width: int = 1280, height: int = 720, colors: str = "light", *, has_touch: bool = False
) -> Iterator["Page"]:
    """Yield a page of a browser.

    Args:
        width, height: of its window, in pixels.
        colors: "light" or "dark", as the user's desktop wants it.
        has_touch: the screen is touched, as on a tablet.

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
            page = chromium.new_page(
                viewport={"width": width, "height": height},
                color_scheme=colors,
                has_touch=has_touch,
            )
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
        wait(page, READY)
        page.set_input_files("#image-file", scan)
        wait(page, f"() => fastsam3d.session.state.image?.name === '{scan.name}'")
        wait(page, READY)
        places = Clicks(labels, seed=99)
        page.evaluate(CLICK, [1, places.on(1).tolist(), True])
        near = [places.near(1) for _ in range(args.clicks)]
        return np.array([page.evaluate(CLICK, [1, at.tolist(), is_on]) for at, is_on in near])


def wait(page: "Page", condition: str) -> None:
    """Wait until a condition holds; the page's policy forbids the browser's own wait."""
    while not page.evaluate(condition):
        page.wait_for_timeout(200)


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
