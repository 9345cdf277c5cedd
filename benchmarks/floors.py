"""Lower bounds for the time of a volume and of a click on this machine, and the slowest kernels.

    python benchmarks/floors.py
    python benchmarks/floors.py --network vit_b_ori --precision bfloat16 --device cuda --kernels 12

Each part of the network has two floors. The first is the time of its multiplications and additions
at the rate of this device's fastest matrix product. The second is the time to read and write its
weights, inputs and outputs once, at the rate of a large copy. No program with these operations, on
data that is not in a cache, is faster than the larger floor. The table also has the eager engine's
time. The slowest kernels follow the table.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import (
    alternate,
    json_file,
    machine,
    machine_line,
    synchroniser,
    table,
    write_json,
)
from benchmarks.rivals import SIZE, Prompts, fitted, network, prompts_for
from segment_anything import InferenceEngine, sam_model_registry3D
from utils.errors import exit_on_input_error
from utils.run.device import pick_device
from utils.run.flags import PRECISIONS, non_negative_int, positive_int


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", choices=sorted(sam_model_registry3D), default="fastsam3d")
    add("--precision", choices=PRECISIONS[1:], default="float32")
    add("--batch-size", type=positive_int, default=1)
    add("--runs", type=positive_int, default=20, help="timed runs of each part (default: 20)")
    add("--kernels", type=non_negative_int, default=8, help="kernels a part to list (default: 8)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--json", type=json_file, help="also write the numbers to this file")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Part:
    """A part of the network: a call that runs it, and its smallest amount of work."""

    name: str
    run: Callable[[], object]
    flops: int  # multiplications and additions
    bytes: int  # of weights, inputs and outputs
    dtype: torch.dtype  # of its arithmetic


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure the device's two rates and the parts' times; return rows and kernels."""
    device, dtype = pick_device(args.device), getattr(torch, args.precision)
    flops_per_s = {kind: peak_flops(device, kind) for kind in {dtype, torch.float32}}
    bytes_per_s = peak_bandwidth(device)
    engine = InferenceEngine(network(args.network), device, dtype)
    parts = parts_of(engine, prompts_for(args.batch_size))
    works = {part.name: part.run for part in parts}
    seconds = alternate(works, args.runs, synchronise=synchroniser(device))
    rows = []
    for part in parts:
        by_flops, by_bytes = part.flops / flops_per_s[part.dtype], part.bytes / bytes_per_s
        measured = statistics.median(seconds[part.name])
        row = {"part": part.name, "flops": part.flops, "bytes": part.bytes}
        row |= {"flops_floor_s": by_flops, "bytes_floor_s": by_bytes, "measured_s": measured}
        rows.append(row | {"times_the_floor": measured / max(by_flops, by_bytes)})
    report = {"machine": machine(), "network": args.network, "precision": args.precision}
    report |= {"flops_per_s": flops_per_s[dtype], "bytes_per_s": bytes_per_s, "rows": rows}
    if args.kernels:
        report["kernels"] = {part.name: kernels(part.run, device, args.kernels) for part in parts}
    if args.json:
        write_json(args.json, report)
    return report


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second, of the fastest of a few matrix products."""
    sizes = [(512, 768, 3072), (2048, 2048, 2048)]
    if device.type == "cuda":
        sizes = [(8192, 8192, 8192)]
    best = 0.0
    for rows, inner, columns in sizes:
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(columns, inner, device=device, dtype=dtype)
        works = {"product": lambda a=a, b=b: a @ b.T}
        seconds = alternate(works, 20, synchronise=synchroniser(device))["product"]
        best = max(best, 2 * rows * inner * columns / min(seconds))
    return best


def peak_bandwidth(device: torch.device) -> float:
    """Return bytes per second, read and written together, of a copy of 256 MiB."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    works = {"copy": lambda: target.copy_(source)}
    seconds = alternate(works, 20, synchronise=synchroniser(device))["copy"]
    return 2 * source.nbytes / min(seconds)


def parts_of(engine: InferenceEngine, prompts: Prompts) -> list[Part]:
    """Return encoder, decoder (with the prompt encoder) and upsampling."""
    images = prompts.images.to(engine.device)
    embedding = engine.encode(images)
    points = prompts.coords, prompts.labels, fitted(prompts.low_res_masks, engine.model)
    low_res, _ = engine.decode(embedding, *points)

    def decode() -> Tensor:
        return engine.decode(embedding, *points)[0]

    def upsample() -> Tensor:
        return engine.upsample(low_res, SIZE)

    model, full = engine.model, upsample()
    decoder = weight_bytes(model.prompt_encoder) + weight_bytes(model.mask_decoder)
    return [
        Part(
            "encoder",
            lambda: engine.encode(images),
            flops_of(lambda: engine.encode(images)),
            weight_bytes(model.image_encoder) + images.nbytes + embedding.nbytes,
            engine.precision,
        ),
        Part(
            "decoder",
            decode,
            flops_of(decode),
            decoder + embedding.nbytes + 2 * low_res.nbytes,
            engine.precision,
        ),
        Part(
            "upsampling", upsample, flops_of(upsample), low_res.nbytes + full.nbytes, torch.float32
        ),
    ]


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's weights."""
    return sum(parameter.nbytes for parameter in module.parameters())


def flops_of(function: Callable[[], object]) -> int:
    """Count multiplications and additions of matrix products, convolutions and attention."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # some devices do not count fused attention
        function()
    return counter.get_total_flops()


def kernels(function: Callable[[], object], device: torch.device, count: int) -> list[dict]:
    """Return the slowest kernels of one run: name, shapes, calls and seconds."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        function()
        if cuda:
            torch.cuda.synchronize(device)
    events = profiler.key_averages(group_by_input_shape=True)
    if cuda:  # kernels, without the operations that launched them
        events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]

    def microseconds(event) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    longest = sorted(events, key=microseconds, reverse=True)[:count]
    return [
        {
            "kernel": event.key,
            "shapes": str([shape for shape in event.input_shapes if shape]),
            "calls": event.count,
            "seconds": microseconds(event) / 1e6,
        }
        for event in longest
    ]


def floors_table(report: dict) -> str:
    """Return floors and measured times as a Markdown table."""
    headers = ["part", "GFLOP", "MiB", "floor by operations, ms", "by bytes, ms"]
    headers += ["eager, ms", "times the floor"]
    cells = [
        [
            *(row["part"], f"{row['flops'] / 1e9:.2f}", f"{row['bytes'] / 2**20:.0f}"),
            *(f"{1e3 * row['flops_floor_s']:.2f}", f"{1e3 * row['bytes_floor_s']:.2f}"),
            *(f"{1e3 * row['measured_s']:.1f}", f"{row['times_the_floor']:.1f}"),
        ]
        for row in report["rows"]
    ]
    return table(headers, cells)


@exit_on_input_error
def main() -> None:
    report = run(parse_args())
    print(f"{machine_line()}\n{report['network']}, {report['precision']}:", end=" ")
    print(f"{report['flops_per_s'] / 1e9:.0f} GFLOP/s, {report['bytes_per_s'] / 1e9:.0f} GB/s\n")
    print(floors_table(report))
    for part, found in report.get("kernels", {}).items():
        rows = [[k["kernel"], k["calls"], f"{1e3 * k['seconds']:.2f}", k["shapes"]] for k in found]
        print(f"\n{part}\n\n{table(['kernel', 'calls', 'ms', 'shapes'], rows)}")


if __name__ == "__main__":
    main()
