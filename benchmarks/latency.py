"""Time of a volume and of a click: our networks in each engine and precision, beside MedIM's.

    python benchmarks/latency.py --json work_dir/latency.json
    python benchmarks/latency.py --device cuda --engines eager compiled graph \\
        --medim-batch-sizes 1 4 16 --medim-precisions float32 bfloat16
    python benchmarks/latency.py --networks tiny_fastsam3d --no-medim --runs 5

Three parts are timed. Crops start in CPU memory; logits end on the device.

    encoder        crop → image embedding
    first click    crop → embedding → one click → low-resolution logits → 128^3 logits
    further click  embedding, one click and the mask so far → 128^3 logits

The rivals of a part run in turns in one process, after a warm-up and with synchronisation. MedIM's
SAM-Med3D runs eagerly, as it is shipped. The table also has the peak memory beyond the weights, and
the difference to a reference: for the teacher MedIM's output with the same weights, for other
networks (and with --no-medim) the same network's output in float64. For batches the table has the
larger of two differences: of the first sample to the reference, and of the last sample to its
output at batch 1. Weights are random; volumes are waves and noise.

benchmarks/growth.py then times predict.py on files, unless --no-growth is given. MedIM needs the
medim package (requirements-dev.txt); --no-medim leaves MedIM out.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import growth
from benchmarks.measure import (
    PeakMemory,
    alternate,
    json_file,
    machine,
    machine_line,
    relative_difference,
    summary,
    synchroniser,
    table,
    write_json,
)
from benchmarks.rivals import (
    PARTS,
    Prompts,
    Rival,
    medim_rival,
    our_rivals,
    prompts_for,
    reference_outputs,
)
from segment_anything import ENGINES, sam_model_registry3D
from utils.errors import exit_on_input_error
from utils.run.device import pick_device
from utils.run.flags import PRECISIONS, non_negative_int, positive_int


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=["vit_b_ori", "fastsam3d"], choices=sam_model_registry3D)
    add("--engines", nargs="+", default=["eager"], choices=ENGINES)
    add("--precisions", nargs="+", default=["float32", "bfloat16"], choices=PRECISIONS[1:])
    add("--parts", nargs="+", default=PARTS, choices=PARTS)
    add("--batch-sizes", type=positive_int, nargs="+", default=[1, 4, 16])
    add(
        "--medim-batch-sizes",
        type=positive_int,
        nargs="*",
        default=[1],
        help="batch sizes of MedIM's network; on a CPU it takes 10 s a volume (default: 1)",
    )
    add("--medim-precisions", nargs="+", default=["float32"], choices=PRECISIONS[1:])
    add("--medim", action=argparse.BooleanOptionalAction, default=True)
    add("--runs", type=positive_int, default=20, help="timed runs at batch 1 (default: 20)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add(
        "--threads",
        type=non_negative_int,
        default=0,
        help="CPU threads; 0 = PyTorch's choice (default: 0)",
    )
    add("--growth", action=argparse.BooleanOptionalAction, default=True, help="time predict.py too")
    add("--json", type=json_file, help="also write the numbers to this file")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure all parts, batch sizes and rivals; return the rows of both tables."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    report = {"machine": machine(), "rows": []}
    references = {name: reference_outputs(name, args.parts, args.medim) for name in args.networks}
    for batch in args.batch_sizes:
        rivals = []
        gc.collect()  # the previous batch's networks: compiled blocks hold reference cycles
        if args.medim and batch in args.medim_batch_sizes:
            rivals += [medim_rival(device, precision) for precision in args.medim_precisions]
        for network in args.networks:
            rivals += our_rivals(network, device, args.precisions, args.engines)
        # Larger batches need fewer runs for an equally reliable median.
        runs = args.runs if device.type == "cuda" else max(5, args.runs // batch)
        for part in args.parts:
            report["rows"] += measured(rivals, part, batch, runs, device, references)
    if args.growth:
        words = ["--network", args.networks[-1], "--runs", "3", "--device", args.device]
        words += ["--precision", args.precisions[0], "--engine", args.engines[-1]]
        report["growth"] = growth.run(growth.parse_args(words))
    if args.json:
        write_json(args.json, report)
    return report


def measured(
    rivals: Sequence[Rival],
    part: str,
    batch: int,
    runs: int,
    device: torch.device,
    references: dict[str, dict[str, Tensor]],
) -> list[dict[str, object]]:
    """Time one part of all rivals in turns; return one row for each rival."""
    prompts = prompts_for(batch)
    works = {rival.name: rival.work(part, prompts) for rival in rivals}
    checked = {}
    for rival in tqdm(rivals, desc=f"{part}, batch {batch}: outputs, memory", disable=None):
        works[rival.name]()  # compiles
        with PeakMemory(device) as memory:
            output = works[rival.name]()
        difference = relative_difference(output[:1].cpu(), references[rival.network][part])
        if batch > 1:  # the last sample needs the same output as at batch 1
            alone = rival.work(part, Prompts(*(tensor[-1:] for tensor in prompts)))()
            difference = max(difference, relative_difference(output[-1:], alone))
        # A replayed graph uses memory that was allocated during its capture.
        replayed = device.type == "cuda" and rival.name.endswith("graph")
        checked[rival.name] = difference, None if replayed else memory.growth
    seconds = alternate(works, runs, synchronise=synchroniser(device))
    medim = {
        rival.precision: summary(seconds[rival.name])["median"]
        for rival in rivals
        if rival.is_medim
    }
    rows = []
    for rival in rivals:
        times = summary(seconds[rival.name])
        difference, peak = checked[rival.name]
        row = {"part": part, "batch": batch, "rival": rival.name, "network": rival.network}
        row |= {"seconds": times, "difference": difference, "peak_bytes": peak}
        # MedIM in the same precision if measured, else in float32, its default.
        rival_s = medim.get(rival.precision, medim.get("float32"))
        rows.append(row | {"faster_than_medim": rival_s and rival_s / times["median"]})
    return rows


def latency_table(rows: Sequence[dict]) -> str:
    """Return the rows as a Markdown table."""
    headers = ["part", "batch", "network, precision, engine", "median, ms", "10 … 90 %"]
    headers += ["times MedIM", "difference", "memory beyond weights, MiB"]
    cells = []
    for row in rows:
        times, faster, peak = row["seconds"], row["faster_than_medim"], row["peak_bytes"]
        spread = f"{1e3 * times['p10']:.1f} … {1e3 * times['p90']:.1f}"
        cells.append(
            [
                *(row["part"], row["batch"], row["rival"]),
                *(f"{1e3 * times['median']:.1f}", spread, f"{faster:.1f}" if faster else ""),
                *(f"{row['difference']:.1e}", f"{peak / 2**20:.0f}" if peak is not None else ""),
            ]
        )
    return table(headers, cells)


@exit_on_input_error
def main() -> None:
    args = parse_args()
    report = run(args)
    print(f"{machine_line()}, median of {args.runs} runs at batch 1\n")
    print(latency_table(report["rows"]))
    if "growth" in report:
        print(f"\n{growth.growth_table(report['growth'])}")


if __name__ == "__main__":
    main()
