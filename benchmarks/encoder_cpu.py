"""How long one volume takes in our teacher encoder and in MedIM's, on this machine's CPU.

Both have the same random weights and get the same 128^3 volume, in one process, in turns, so that
whatever else the machine does meets both alike. One warm-up each; then the median of the runs.

    python benchmarks/encoder_cpu.py
    python benchmarks/encoder_cpu.py --runs 9 --threads 1 --json work_dir/encoder_cpu.json

Needs the medim package (requirements-dev.txt).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import medim
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from segment_anything import sam_model_registry3D
from utils.atomic import atomic_path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = PyTorch's choice")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    return parser.parse_args(argv)


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, object]:
    """Time both encoders; return the medians in seconds and where they were measured."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ours = sam_model_registry3D["vit_b_ori"]().eval()
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name:  # zero in a fresh network; give the relative terms a say
            parameter.copy_(0.2 * torch.randn_like(parameter))
    theirs = medim.create_model("SAM-Med3D", pretrained=False).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    volume = torch.randn(1, 1, 128, 128, 128)

    found, expected = ours.image_encoder(volume), theirs.image_encoder(volume)  # warms up
    seconds: dict[str, list[float]] = {"ours": [], "medim": []}
    for _ in range(args.runs):
        seconds["ours"].append(_seconds(ours.image_encoder, volume))
        seconds["medim"].append(_seconds(theirs.image_encoder, volume))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    report = {
        "ours_s": medians["ours"],
        "medim_s": medians["medim"],
        "speedup": medians["medim"] / medians["ours"],
        "relative_difference": ((found - expected).norm() / expected.norm()).item(),
        "runs": args.runs,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "torch": torch.__version__,
    }
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(report | {"seconds": seconds}, indent=2) + "\n")
    return report


def _seconds(encoder: Callable[[Tensor], Tensor], volume: Tensor) -> float:
    start = time.perf_counter()
    encoder(volume)
    return time.perf_counter() - start


def _cpu_name() -> str:
    """Return the processor's name, from Linux where it says more than Python does."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure and print."""
    report = run(parse_args())
    print(
        f"teacher encoder, one 128^3 volume, median of {report['runs']}: "
        f"ours {report['ours_s']:.2f} s, MedIM {report['medim_s']:.2f} s, "
        f"{report['speedup']:.1f} times faster\n"
        f"relative difference of the embeddings {report['relative_difference']:.1e}\n"
        f"{report['cpu']}, {report['threads']} threads, torch {report['torch']}"
    )


if __name__ == "__main__":
    main()
