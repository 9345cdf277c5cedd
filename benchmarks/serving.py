"""How long a click takes over HTTP, from its sending to its mask, and what the server's memory is.

    python benchmarks/serving.py --checkpoint weights/student.pth
    python benchmarks/serving.py --checkpoint weights/student.pth --shape 300 512 512 --targets 1 8

The script starts serve.py, sends a phantom as large as --shape, and clicks as the page does: one
click on an organ for each target, then further clicks at random places on and beside the targets'
organs. Then it clicks on until --all-clicks have been sent, and reads the server's memory. The
times hold all that the server does and the way through this machine's network, and not the drawing
of the page, which benchmarks/page_drawing.py times. The masks are pasted together as the page does
it, and compared with the server's whole mask.
"""

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import json_file, machine, machine_line, table, write_json
from utils.cases.phantoms import ct_phantom
from utils.errors import InputError, exit_on_input_error
from utils.files.nifti import nifti_front
from utils.files.strict_json import parse_json
from utils.run.flags import add_device_arguments, positive_int
from utils.volumes.geometry import affine_from_spacing

ROOT = Path(__file__).resolve().parent.parent
EXTENT_MM = (160.0, 200.0, 200.0)  # of the phantom, about a real one's


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_server_arguments(parser)
    add("--targets", type=positive_int, nargs="+", default=[1, 8, 32], help="(default: 1 8 32)")
    memory = "clicks after which the memory is read (default: 200)"
    add("--all-clicks", type=positive_int, default=200, help=memory)
    add("--json", type=json_file, help="also write the numbers to this file")
    return parser.parse_args(argv)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the server and its image, and the number of further clicks."""
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True)
    add("--network", help="name of the network in a released file, such as vit_b_ori")
    add("--shape", type=positive_int, nargs=3, default=[128, 256, 256], metavar=("D", "H", "W"))
    add("--clicks", type=positive_int, default=20, help="further clicks (default: 20)")
    add_device_arguments(parser)


class Page:
    """One session of the page."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=600)
        session = self.http.post("/api/sessions", json={}).raise_for_status().json()["session"]
        self.path = f"/api/sessions/{session}"
        self.labels = np.zeros(0, np.uint8)

    def send(self, path: str, **body: object) -> float:
        """Send a request, and paste the labels that come back; return the milliseconds."""
        start = time.perf_counter()
        answer = self.http.post(f"{self.path}/{path}", json=body).raise_for_status()
        self._paste(answer.content)
        return (time.perf_counter() - start) * 1000

    def click(self, zyx: Sequence[int], positive: bool, target: int) -> float:
        """Send a click; return the milliseconds until its mask is there."""
        at = [int(number) for number in zyx]
        return self.send("prompts", target=target, type="point", at=at, positive=bool(positive))

    def upload(self, content: bytes, shape: Sequence[int]) -> float:
        """Send an image; return the seconds until it is open."""
        start = time.perf_counter()
        self.http.post(f"{self.path}/image?name=a.nii", content=content).raise_for_status()
        self.labels = np.zeros(shape, np.uint8)
        return time.perf_counter() - start

    def require_whole(self) -> None:
        """Raise `InputError` unless the pasted labels are the server's whole mask."""
        pasted, self.labels = self.labels, np.zeros_like(self.labels)
        self._paste(self.http.get(f"{self.path}/mask").raise_for_status().content)
        if not np.array_equal(pasted, self.labels):
            raise InputError("the pasted masks are not the whole mask. Expected equal ones.")

    def _paste(self, content: bytes) -> None:
        (length,) = struct.unpack_from("<I", content)
        box = parse_json(content[4 : 4 + length])["box"]
        if box is not None:
            place = self.labels[tuple(slice(*side) for side in box)]
            runs = content[4 + length :]
            lengths = np.frombuffer(runs, "<u4", len(runs) // 5)
            values = np.frombuffer(runs, np.uint8, offset=lengths.nbytes)
            place[...] = np.repeat(values, lengths).reshape(place.shape)


def phantom(shape: Sequence[int]) -> tuple[bytes, np.ndarray]:
    """Return a NIfTI file of a phantom of this shape, and the labels of its organs (D, H, W)."""
    small = ct_phantom(np.random.default_rng((0, 1)))
    places = np.ix_(*(np.arange(n) * m // n for n, m in zip(shape, small.label.shape, strict=True)))
    noise = np.random.default_rng(0).integers(-20, 20, tuple(shape), np.int16)
    array = small.image[places].astype(np.int16) * 3 - 300 + noise
    spacing_zyx = [mm / n for mm, n in zip(EXTENT_MM, shape, strict=True)]
    affine = affine_from_spacing(np.array(spacing_zyx[::-1]))
    front = nifti_front(Path("a.nii"), array.shape, array.dtype, affine)
    return front + array.tobytes(), small.label[places]


class Clicks:
    """Places on organs, and near them."""

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        self.labels, self.rng = labels, np.random.default_rng(seed)
        self.organs = np.unique(labels[labels > 0])
        self.voxels = [np.argwhere(labels == organ) for organ in self.organs]

    def on(self, target: int) -> np.ndarray:
        """Return a random voxel of a target's organ; targets, from 1, share the organs in turns."""
        voxels = self.voxels[(target - 1) % len(self.organs)]
        return voxels[self.rng.integers(len(voxels))]

    def near(self, target: int) -> tuple[np.ndarray, bool]:
        """Return a voxel on or beside a target's organ, and whether it is on it."""
        place = self.on(target) + self.rng.integers(-6, 7, 3)
        place = np.clip(place, 0, np.array(self.labels.shape) - 1)
        organ = self.organs[(target - 1) % len(self.organs)]
        return place, bool(self.labels[tuple(place)] == organ)


def scored(page: Page, labels: np.ndarray, targets: int, clicks: int) -> dict[str, list[float]]:
    """Return milliseconds of the first click on each target, and of further clicks."""
    page.send("clear", target=None)
    have = len(page.http.get(page.path).json()["targets"])
    for _ in range(targets - have):
        page.send("targets")
    places = Clicks(labels, seed=targets)
    found = {"first": [page.click(places.on(n), True, n) for n in range(1, targets + 1)]}
    found["further"] = [
        page.click(*places.near(n % targets + 1), n % targets + 1) for n in range(clicks)
    ]
    page.require_whole()
    return found


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure; return times in ms, MB/s and MiB."""
    content, labels = phantom(args.shape)
    with serving(args) as (url, process):
        page = Page(url)
        report: dict[str, object] = {"machine": machine(), "shape": args.shape}
        report["upload_mb_s"] = len(content) / 1e6 / page.upload(content, args.shape)
        report["targets"] = {n: scored(page, labels, n, args.clicks) for n in args.targets}
        sent = sum(len(times) for kinds in report["targets"].values() for times in kinds.values())
        targets, places = args.targets[-1], Clicks(labels, seed=99)
        for n in range(args.all_clicks - sent):
            page.click(*places.near(n % targets + 1), n % targets + 1)
        report["clicks"] = max(sent, args.all_clicks)
        report["memory_mib"] = {name: memory_mib(process.pid, name) for name in ("VmRSS", "VmHWM")}
        other = Page(url)
        other.upload(content, args.shape)
        with ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda each: scored(each, labels, 1, args.clicks), (page, other))
            report["two sessions"] = [times["further"] for times in both]
        report["volume_mib"] = len(content) / 2**20
    if args.json:
        write_json(args.json, report)
    return report


@contextmanager
def serving(args: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen]]:
    """Yield the address of a server that is ready, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--checkpoint", args.checkpoint.resolve(), "--port", 0]
        words += ["--device", args.device, "--precision", args.precision]
        words += ["--network", args.network] if args.network else []
        command = [sys.executable, str(ROOT / "serve.py"), *map(str, words)]
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        try:
            lines = iter(process.stderr.readline, "")
            ready = next((line for line in lines if line.startswith("ready: ")), None)
            if ready is None:
                raise InputError("serve.py ended. Expected a server: run it alone to see why.")
            yield ready.split()[1], process
        finally:
            process.terminate()
            process.communicate()


def memory_mib(process: int, name: str) -> float | None:
    """Return the resident set of a process, VmRSS, or the largest so far, VmHWM.

    None where /proc does not tell.
    """
    path = Path(f"/proc/{process}/status")
    match = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(match[1]) / 1024 if match else None


def report_text(report: dict) -> str:
    """Return the table of a report."""
    rows = [
        [f"{kind} click, {n} targets", *(f"{np.percentile(times[kind], q):.0f}" for q in (50, 95))]
        for n, times in report["targets"].items()
        for kind in ("first", "further")
    ]
    both = np.concatenate(report["two sessions"])
    allowed = 3 * report["volume_mib"] + 1e9 / 2**20
    rows.append(
        ["further click, two sessions", *(f"{np.percentile(both, q):.0f}" for q in (50, 95))]
    )
    now, peak = (f"{mib:.0f}" if mib else "unknown" for mib in report["memory_mib"].values())
    return (
        f"{machine_line()}; {' x '.join(map(str, report['shape']))} voxels, "
        f"{report['volume_mib']:.0f} MiB\n\n{table(['over HTTP', 'median ms', 'p95 ms'], rows)}\n\n"
        f"upload {report['upload_mb_s']:.0f} MB/s; memory after {report['clicks']} clicks "
        f"{now} MiB, at most {peak} MiB; 3 x the image + 1 GB are {allowed:.0f} MiB"
    )


@exit_on_input_error
def main() -> None:
    print(report_text(run(parse_args())))


if __name__ == "__main__":
    main()
