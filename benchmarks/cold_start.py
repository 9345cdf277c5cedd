"""Seconds from the start of a process to its first mask on disk, for predict.py.

    python benchmarks/cold_start.py
    python benchmarks/cold_start.py --checkpoints student.pth --runs 9 --json work_dir/cold.json
    python benchmarks/cold_start.py --networks fastsam3d --engines eager compiled

The challenge starts a new container for every step, so every answer takes this time. The case is a
made-up abdomen with the boxes of two organs and a click into one of them. Networks have random
weights unless --checkpoints are given. Networks and engines take turns; after the warm-up the
system has cached all files. The table has the parts of predict.py --timing;
the rest of the process is the interpreter's start and end. All runs must write the same mask, and
the mask must not be empty.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    alternate,
    json_file,
    machine,
    machine_line,
    summary,
    table,
    write_json,
)
from segment_anything import checkpoint_payload, network_configs, sam_model_registry3D
from utils.cases.phantoms import boxes_of, ct_phantom
from utils.errors import InputError, exit_on_input_error
from utils.run.flags import non_negative_int, positive_int, seed

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("imports", "weights", "cases", "network", "writing")  # of predict.py --timing
REST = "start and end"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=sorted(network_configs),
        default=["tiny_fastsam3d", "fastsam3d", "vit_b_ori"],
        help="networks with random weights, if no --checkpoints are given (default: both students "
        "and the teacher)",
    )
    parser.add_argument("--checkpoints", type=Path, nargs="+", help="trained networks instead")
    parser.add_argument("--engines", nargs="+", help="of predict.py (default: predict.py's)")
    parser.add_argument("--device", default="auto", help="(default: auto)")
    parser.add_argument("--precision", default="auto", help="(default: auto)")
    parser.add_argument("--runs", type=positive_int, default=5, help="timed starts (default: 5)")
    parser.add_argument("--warmup", type=non_negative_int, default=1, help="(default: 1)")
    parser.add_argument("--seed", type=seed, default=0, help="(default: 0)")
    parser.add_argument("--json", type=json_file, help="also write the numbers to this file")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Time every network with every engine; return a row for each, and the machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = write_case(folder / "CT_phantom.npz", args.seed)
        checkpoints = args.checkpoints or [
            save_random(folder / f"{network}.pth", network, args.seed) for network in args.networks
        ]
        starts = {}
        for path in checkpoints:
            for engine in args.engines or [None]:
                title = path.stem if engine is None else f"{path.stem}, {engine}"
                starts[title] = Start(case, path, folder / title, args, engine)
        works = {title: start.run for title, start in starts.items()}
        seconds = alternate(works, args.runs, args.warmup)
        rows = [start.row(title, seconds[title]) for title, start in starts.items()]
    report = {"machine": machine(), "device": args.device, "precision": args.precision}
    report["rows"] = rows
    if args.json:
        write_json(args.json, report)
    return report


def write_case(path: Path, seed: int) -> Path:
    """Write a challenge file: an abdomen, boxes of two organs, a click into the first organ."""
    rng = np.random.default_rng(seed)
    phantom = ct_phantom(rng)
    organs = np.unique(phantom.label)[1:3]
    label = np.where(np.isin(phantom.label, organs), phantom.label, 0)
    inside = np.argwhere(label == organs[0])
    click = inside[len(inside) // 2].tolist()
    np.savez_compressed(
        path,
        imgs=phantom.image,
        spacing=phantom.spacing_xyz,
        boxes=np.array(boxes_of(label, rng), dtype=object),
        clicks=np.array([{"fg": [click], "bg": []}, {"fg": [], "bg": []}], dtype=object),
    )
    return path


def save_random(path: Path, network: str, seed: int) -> Path:
    """Write a checkpoint of a network with random weights."""
    torch.manual_seed(seed)
    torch.save(checkpoint_payload(sam_model_registry3D[network]()), path)
    return path


class Start:
    """One command line of predict.py; holds the seconds by part and the mask of each run."""

    def __init__(
        self,
        case: Path,
        checkpoint: Path,
        output: Path,
        args: argparse.Namespace,
        engine: str | None,
    ) -> None:
        self._answer = output / case.name
        self._discard = args.warmup
        self._parts: list[dict[str, float]] = []
        self._masks: list[np.ndarray] = []
        self._command = [
            *(sys.executable, ROOT / "predict.py", "--timing"),
            *("--input", case, "--output", output, "--checkpoint", checkpoint.resolve()),
            *("--device", args.device, "--precision", args.precision),
            *(("--engine", engine) if engine else ()),
        ]

    def run(self) -> None:
        """Run the command once and keep its seconds and its mask."""
        self._answer.unlink(missing_ok=True)
        done = subprocess.run(self._command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{' '.join(map(str, self._command))} failed:\n{done.stderr}")
        told = done.stdout.rpartition("seconds: ")[2]
        self._parts.append({k: float(s) for k, s in re.findall(r"([a-z]+) ([\d.]+)[,;]", told)})
        with np.load(self._answer) as answer:
            self._masks.append(answer["segs"])

    def row(self, title: str, wall: Sequence[float]) -> dict[str, object]:
        """Return the row of the table; ``wall`` holds the seconds of whole processes."""
        parts = self._parts[self._discard :]
        medians = {name: summary([p[name] for p in parts])["median"] for name in PARTS}
        rest = [w - sum(p.values()) for w, p in zip(wall, parts, strict=True)]
        return {
            "start": title,
            "parts": medians | {REST: summary(rest)["median"]},
            "process": summary(wall),
            "seconds": list(wall),
            "voxels": int(np.count_nonzero(self._masks[0])),
            "same_masks": all(map(partial(np.array_equal, self._masks[0]), self._masks)),
        }


def report_table(report: dict) -> str:
    """Return the rows as Markdown, medians in seconds."""
    headers = [
        "network",
        REST,
        *PARTS,
        "whole process (p10 … p90)",
        "mask, voxels",
        "same each run",
    ]
    rows = []
    for row in report["rows"]:
        median, p10, p90 = (f"{row['process'][key]:.2f}" for key in ("median", "p10", "p90"))
        parts = [f"{row['parts'][part]:.2f}" for part in (REST, *PARTS)]
        same = "yes" if row["same_masks"] else "NO"
        rows.append([row["start"], *parts, f"{median} ({p10} … {p90})", row["voxels"], same])
    return table(headers, rows)


@exit_on_input_error
def main() -> int:
    args = parse_args()
    report = run(args)
    print(f"seconds, medians of {args.runs} starts in turns; {machine_line()}\n")
    print(report_table(report))
    return 0 if all(row["same_masks"] and row["voxels"] for row in report["rows"]) else 1


if __name__ == "__main__":
    main()
