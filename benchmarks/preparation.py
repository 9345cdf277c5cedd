"""Speed of the three data scripts, compared with a plain sequential script on the same phantoms.

The plain script prepares one case at a time: `np.load`, one pass over the label per class,
`nib.save` with its defaults, and a copy of the image for each organ. Both run in turns as separate
processes; their start is timed too. The trees are compared voxel by voxel. The row "a second run"
is a run with nothing to do. The second table has the times of the parts of one case.

    python benchmarks/preparation.py
    python benchmarks/preparation.py --cases 40 --runs 3 --json work_dir/preparation.json
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cases.label_table import organ_slug, read_label_table
from utils.cases.phantoms import ct_phantom
from utils.files.atomic import atomic_path
from utils.files.nifti import read_nifti, write_deflated_nifti, write_nifti
from utils.files.npz_archive import NpzArchive
from utils.run.flags import new_file, positive_int
from utils.volumes.labels import count_values

ROOT = Path(__file__).resolve().parent.parent
DATASET = "CT_Phantom"
STEPS = ("classify.py", "categorize.py", "reallocate.py")
AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=positive_int, default=16, help="phantoms (default: %(default)s)"
    )
    parser.add_argument(
        "--classes", type=positive_int, default=16, help="classes per case (default: %(default)s)"
    )
    parser.add_argument(
        "--zoom",
        type=positive_int,
        default=3,
        help="in-plane zoom, 1 = 104 voxels (default: %(default)s)",
    )
    parser.add_argument(
        "--runs",
        type=positive_int,
        default=3,
        help="runs of each script, in turns (default: %(default)s)",
    )
    parser.add_argument("--json", type=new_file, help="also write the numbers to this file")
    parser.add_argument("--plain", nargs=3, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Time everything in a temporary folder; return the numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_class_file(folder / "classes.json", args.classes)
        voxels = write_cases(folder / "npz", args)
        commands = {
            "plain script": [plain_command(folder, table)],
            "ours, 1 worker": our_commands(folder, table, "ours1", 1),
            "ours, 2 workers": our_commands(folder, table, "ours2", 2),
        }
        outputs = {"plain script": "plain", "ours, 1 worker": "ours1", "ours, 2 workers": "ours2"}
        seconds: dict[str, list[float]] = {title: [] for title in commands}
        for number in tqdm(range(args.runs), desc="runs", disable=None):
            for title, steps in commands.items():
                for tree in folder.glob(f"{outputs[title]}*"):
                    shutil.rmtree(tree)
                os.sync()  # writing out the previous run is not timed
                seconds[title].append(sum(map(seconds_of, steps)))
            if number == 0:
                files = compare_trees(folder / "plain", folder / "ours1", folder / "ours2")
        for step in commands["ours, 1 worker"]:
            seconds_of(step)  # hashes the new files; later runs compare only file times
        again = [sum(map(seconds_of, commands["ours, 1 worker"])) for _ in range(args.runs)]
        idle = [seconds_of([sys.executable, ROOT / step, "--help"]) for step in STEPS]
        return {
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
            "cases": args.cases,
            "classes": args.classes,
            "voxels": voxels,
            "identical_files": files,
            "seconds": seconds,
            "second_run_seconds": again,
            "imports_seconds": sum(idle),
            "tree_bytes": {tree: size_of(folder / tree) for tree in ("plain", "ours1")},
            "one_case": time_parts(folder, table),
        }


def write_class_file(path: Path, classes: int) -> Path:
    """Write a class file with one data set."""
    entry = {str(value): [f"organ {value}"] for value in range(1, classes + 1)}
    path.write_text(json.dumps({DATASET: {**entry, "instance_label": 0}}))
    return path


def write_cases(folder: Path, args: argparse.Namespace) -> int:
    """Write phantoms of CT size; their organs are cut into ``args.classes`` classes."""
    folder.mkdir()
    voxels = 0
    for number in tqdm(range(args.cases), desc="cases", disable=None):
        rng = np.random.default_rng(number)
        phantom = ct_phantom(rng)
        factors = (2, args.zoom, args.zoom)
        image = ndimage.zoom(phantom.image, factors, order=1).astype(np.float32)
        image += rng.normal(0, 3, image.shape) * (image > 12)  # air is clipped flat in real files
        label = np.kron(phantom.label > 0, np.ones(factors, np.uint8))
        places = np.add.outer(np.arange(label.shape[1]), np.arange(label.shape[2])) // 24
        label *= (places % args.classes + 1).astype(np.uint8)
        voxels += label.size
        np.savez_compressed(
            folder / f"{DATASET}_{number:04d}.npz",
            imgs=np.clip(image, 0, 255).astype(np.uint8)[tuple(map(slice, label.shape))],
            gts=label,
            spacing=np.array([0.8, 0.8, 2.0]),
        )
    return voxels


def plain_command(folder: Path, table: Path) -> list:
    return [sys.executable, __file__, "--plain", table, folder / "npz", folder / "plain"]


def our_commands(folder: Path, table: Path, name: str, workers: int) -> list[list]:
    common = ["--workers", str(workers)]
    classified, tree, npz = folder / f"{name}_classified", folder / name, folder / "npz"
    flags = {
        "classify.py": ["--labels", npz, "--json", table, "--out", classified],
        "categorize.py": ["--in", classified, "--json", table, "--out", tree],
        "reallocate.py": ["--images", npz, "--tree", tree],
    }
    return [[sys.executable, ROOT / step, *common, *flags[step]] for step in STEPS]


def prepare_plainly(table: Path, npz: Path, tree: Path) -> None:
    """Do the three steps one case at a time, with the defaults of NumPy and nibabel."""
    labels = read_label_table(table).datasets[DATASET]
    for path in sorted(npz.glob("*.npz")):
        case = np.load(path)
        label = case["gts"]
        folders = []
        for value in np.unique(label):
            if value == 0:
                continue
            folder = tree / organ_slug(labels.classes[int(value)]) / DATASET
            (folder / "labelsTr").mkdir(parents=True, exist_ok=True)
            (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
            mask = (label == value).astype(np.uint8)
            name = f"{path.stem}.nii.gz"
            nib.save(nib.Nifti1Image(mask.T, AFFINE), folder / "labelsTr" / name)
            folders.append(folder / "imagesTr" / name)
        nib.save(nib.Nifti1Image(case["imgs"].T, AFFINE), folders[0])
        for folder in folders[1:]:
            shutil.copyfile(folders[0], folder)


def compare_trees(expected: Path, *others: Path) -> int:
    """Require the same files with the same voxels in all trees; return the number of files."""
    names = sorted(path.relative_to(expected) for path in expected.rglob("*.nii.gz"))
    for other in others:
        found = sorted(path.relative_to(other) for path in other.rglob("*.nii.gz"))
        if found != names:
            sys.exit(f"{other} has other files than {expected}: {set(found) ^ set(names)}")
        for name in names:
            a, b = read_nifti(expected / name), read_nifti(other / name)
            same = a.array.dtype == b.array.dtype and np.array_equal(a.array, b.array)
            if not same or not np.allclose(a.affine, b.affine):
                sys.exit(f"{other / name} differs from {expected / name}")
    return len(names)


def time_parts(folder: Path, table: Path) -> dict[str, dict[str, float]]:
    """Return the milliseconds of the parts of one case, for the plain script and for ours."""
    path = min((folder / "npz").iterdir())
    case = np.load(path)
    image, label = case["imgs"], case["gts"]
    out = folder / "part.nii.gz"
    values = [value for value in np.unique(label) if value]

    def ours(key: str) -> None:
        with NpzArchive(path) as archive:
            archive.array(key)

    def carry_over() -> None:
        with NpzArchive(path) as archive:
            write_deflated_nifti(out, archive.deflated("imgs"), AFFINE)

    def save(array: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(array.T, AFFINE), out)

    parts: dict[str, tuple[Callable, Callable]] = {
        "inflate the image": (lambda: np.load(path)["imgs"], lambda: ours("imgs")),
        "inflate the label": (lambda: np.load(path)["gts"], lambda: ours("gts")),
        "find the classes": (lambda: np.unique(label), lambda: count_values(label)),
        "write all organs' labels": (
            lambda: [save((label == value).astype(np.uint8)) for value in values],
            lambda: [write_nifti(out, label == value, AFFINE) for value in values],
        ),
        "write the image": (lambda: save(image), lambda: write_nifti(out, image, AFFINE)),
        "image from NPZ to NIfTI": (lambda: save(np.load(path)["imgs"]), carry_over),
    }
    return {
        title: {"usual_ms": milliseconds(usual), "ours_ms": milliseconds(mine)}
        for title, (usual, mine) in parts.items()
    }


def milliseconds(function: Callable, runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def seconds_of(command: list) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def size_of(tree: Path) -> int:
    """Return the bytes of a tree's files, links counted once."""
    sizes = {p.stat().st_ino: p.stat().st_size for p in tree.rglob("*.nii.gz")}
    return sum(sizes.values())


def report_table(result: dict) -> str:
    """Return the tables that the command prints."""
    megabytes = 2 * result["voxels"] / 1e6  # image and label, a byte a voxel
    medians = {title: statistics.median(times) for title, times in result["seconds"].items()}
    plain = medians["plain script"]
    lines = [
        f"{result['cases']} cases, {megabytes / 2 / result['cases']:.1f} M voxels and "
        f"{result['classes']} classes each; {result['machine']}; medians; start-up included",
        f"{result['identical_files']} files identical in all trees",
        "",
        f"{'':18}{'s':>8}{'cases/s':>10}{'MB/s':>8}{'ratio':>8}",
    ]
    for title, seconds in medians.items():
        lines.append(
            f"{title:18}{seconds:8.2f}{result['cases'] / seconds:10.2f}"
            f"{megabytes / seconds:8.1f}{plain / seconds:8.2f}"
        )
    again = statistics.median(result["second_run_seconds"])
    lines.append(
        f"{'a second run':18}{again:8.2f}   of which {result['imports_seconds']:.2f} s are the "
        f"three scripts' imports; {100 * again / medians['ours, 1 worker']:.1f} % of the first"
    )
    sizes = result["tree_bytes"]
    lines.append(
        f"trees on disk: plain {sizes['plain'] / 1e6:.1f} MB, ours {sizes['ours1'] / 1e6:.1f} MB"
    )
    lines += ["", f"{'one case, one process':28}{'usual ms':>10}{'ours ms':>10}{'ratio':>8}"]
    for title, part in result["one_case"].items():
        usual, ours = part["usual_ms"], part["ours_ms"]
        lines.append(f"{title:28}{usual:10.1f}{ours:10.1f}{usual / ours:8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    args = parse_args()
    if args.plain:
        prepare_plainly(*args.plain)
        return
    result = run(args)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(result, indent=1))
    print(report_table(result))


if __name__ == "__main__":
    main()
