"""Time of predict.py for growing numbers of targets and growing volumes.

    python benchmarks/growth.py --json work_dir/growth.json
    python benchmarks/growth.py --checkpoint student.pth --engine graph --device cuda

Made-up challenge files with one click a target are read, segmented and written as by predict.py.
All runs share one process, so that imports and weights are loaded once, and the cases take turns.
The network has random weights unless a checkpoint is given. The table also has the number of
targets with voxels in the answer.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import predict
from benchmarks.measure import json_file, machine, machine_line, summary, table, write_json
from segment_anything import checkpoint_payload, network_configs, sam_model_registry3D
from utils.cases.prediction import read_input
from utils.errors import exit_on_input_error
from utils.files.npz import read_npz
from utils.prediction.predictor import Predictor, ready_predictor
from utils.run.flags import add_device_arguments, add_engine_arguments, positive_int
from utils.run.network import open_network

SPACING_XYZ = (0.8, 0.8, 1.5)
#: Parts of predict.py's time that are spent on each case.
PARTS = ("cases", "network", "writing")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="(default: random weights of --network)")
    add("--network", choices=sorted(network_configs), default="tiny_fastsam3d")
    add("--targets", type=positive_int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    add(
        "--shapes",
        nargs="+",
        type=_shape,
        default=[(64, 128, 128), (128, 256, 256), (256, 512, 512)],
        metavar="D,H,W",
        help="volumes with 4 targets each; --targets are placed in a volume of the second shape",
    )
    add("--runs", type=positive_int, default=3, help="(default: 3)")
    add("--json", type=json_file, help="also write the numbers to this file")
    add_device_arguments(parser)
    add_engine_arguments(parser)
    return parser.parse_args(argv)


def _shape(text: str) -> tuple[int, int, int]:
    depth, height, width = map(int, text.split(","))
    return depth, height, width


def run(args: argparse.Namespace) -> list[dict[str, object]]:
    """Segment every case ``args.runs`` times, in turns; return one row a case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = args.checkpoint or random_checkpoint(folder / "random.pth", args.network)
        model, rule = open_network(checkpoint, args.network, encoder=args.encoder)
        predictor = ready_predictor(
            model, rule, device=args.device, precision=args.precision, engine=args.engine
        )
        middle = args.shapes[min(1, len(args.shapes) - 1)]
        wanted = [(middle, count) for count in args.targets]
        wanted += [(shape, 4) for shape in args.shapes if (shape, 4) not in wanted]
        cases = {case: write_case(folder / "inputs", *case) for case in wanted}
        seconds: dict[tuple, list[dict[str, float]]] = {case: [] for case in cases}
        for _ in tqdm(range(args.runs + 1), desc="rounds", disable=None):
            for case, path in cases.items():
                seconds[case].append(answered(path, folder / "out", predictor))
        rows = []
        for (shape, targets), runs in seconds.items():
            answer = read_npz(folder / "out" / f"{_name(shape, targets)}.npz", ["segs"])["segs"]
            row = {"shape": shape, "targets": targets, "found": len(np.unique(answer[answer > 0]))}
            for part in PARTS:
                row[part] = summary([run[part] for run in runs[1:]])  # the first warms up
            rows.append(row)
    if args.json:
        write_json(args.json, {"machine": machine(), "rows": rows})
    return rows


def answered(path: Path, out: Path, predictor: Predictor) -> dict[str, float]:
    """Segment a case as predict.py does; return the seconds by part."""
    words = ["--input", path, "--output", out, "--checkpoint", "unused"]
    args, clock = predict.parse_args(list(map(str, words))), predict.Clock()
    with clock.part("cases"):
        case = read_input(path, args)
    with clock.part("network"):
        answer = predict.segment(predictor, case)
    with clock.part("writing"):
        case.write(out, answer)
    return clock


def random_checkpoint(path: Path, network: str) -> Path:
    """Write a checkpoint of a network with random weights."""
    torch.manual_seed(0)
    torch.save(checkpoint_payload(sam_model_registry3D[network]()), path)
    return path


def write_case(folder: Path, shape: tuple[int, int, int], targets: int) -> Path:
    """Write a volume with bright balls in noise, and a click in the middle of each ball."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(targets)
    image = rng.integers(40, 90, shape).astype(np.uint8)
    centres = rng.uniform(0.15, 0.85, (targets, 3)) * shape
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    for centre in centres:
        distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
        image[distance <= (0.06 * min(shape)) ** 2] = 200
    clicks = [{"fg": [centre.astype(int).tolist()], "bg": []} for centre in centres]
    path = folder / f"{_name(shape, targets)}.npz"
    np.savez(path, imgs=image, spacing=SPACING_XYZ, clicks=np.array(clicks, dtype=object))
    return path


def _name(shape: tuple[int, int, int], targets: int) -> str:
    return f"CT_made_up_{'x'.join(map(str, shape))}_{targets}"


def growth_table(rows: Sequence[dict]) -> str:
    """Return the rows as a table of medians in seconds."""
    headers = ["volume", "targets", "reading, s", "network, s", "writing, s", "a target, s"]
    cells = []
    for row in rows:
        reading, network, writing = (row[part]["median"] for part in PARTS)
        cells.append(
            ["x".join(map(str, row["shape"])), f"{row['found']} of {row['targets']}"]
            + [f"{value:.2f}" for value in (reading, network, writing, network / row["targets"])]
        )
    return table(headers, cells)


@exit_on_input_error
def main() -> None:
    args = parse_args()
    rows = run(args)
    print(f"{machine_line()}, median of {args.runs} runs\n\n{growth_table(rows)}")


if __name__ == "__main__":
    main()
