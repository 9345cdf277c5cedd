"""How PyTorch's threads wait for each other: times on a quiet and on a busy machine.

    python benchmarks/waiting.py
    python benchmarks/waiting.py --rounds 3 --runs 5 --works training --json work_dir/waiting.json

PyTorch splits an operation among its threads, which then wait for the slowest. GNU OpenMP lets them
spin 300,000 times before they sleep, utils/run/threads.py fewer times, and OMP_WAIT_POLICY=PASSIVE
not at all. Three works are timed in each of these forms, and with one thread: a training step of
the demo's teacher (batch 2, three clicks), the full-size student's encoder, and predict.py as a
whole (small student). Each round starts a new process for every form, alone and beside one busy
process per core. The numbers that the works compute are compared.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cold_start, training
from benchmarks.measure import json_file, machine, machine_line, summary, table, write_json
from segment_anything import network_configs, sam_model_registry3D
from utils.errors import InputError, exit_on_input_error
from utils.files.strict_json import parse_json
from utils.run.flags import positive_int
from utils.run.threads import SPINS

FORMS = {
    "libgomp's spins": {"GOMP_SPINCOUNT": "300000"},
    "few spins (ours)": {"GOMP_SPINCOUNT": str(SPINS)},
    "sleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
FIRST, *_ = FORMS
SETTINGS = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
BUSY = "while True: pass"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--works", nargs="+", choices=WORKS, default=list(WORKS), help="(default: all)"
    )
    parser.add_argument("--rounds", type=positive_int, default=5, help="processes (default: 5)")
    parser.add_argument(
        "--runs", type=positive_int, default=5, help="timed runs in each process (default: 5)"
    )
    parser.add_argument(
        "--busy", type=positive_int, default=os.cpu_count(), help="(default: one per core)"
    )
    parser.add_argument("--json", type=json_file, help="also write the numbers to this file")
    parser.add_argument("--child", choices=WORKS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Time every work in every form; return a row for each, and the machine."""
    seconds: dict[tuple[str, int, str], list[float]] = {}
    results: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(args.rounds):
        for work in args.works:
            for busy in (0, args.busy):
                for form in FORMS:
                    taken, result = in_a_process(work, form, busy, args.runs)
                    seconds.setdefault((work, busy, form), []).extend(taken)
                    results[work, busy, form] = result
    rows = [
        {
            **{"work": work, "busy": busy, "form": form, "seconds": taken},
            "summary": summary(taken),
            "times_first": summary(taken)["median"] / summary(seconds[work, busy, FIRST])["median"],
            "same": results[work, busy, form] == results[work, 0, FIRST],
        }
        for (work, busy, form), taken in seconds.items()
    ]
    report = {"machine": machine(), "rounds": args.rounds, "runs": args.runs, "rows": rows}
    if args.json:
        write_json(args.json, report)
    return report


def in_a_process(work: str, form: str, busy: int, runs: int) -> tuple[list[float], list[float]]:
    """Time a work in a process of its own; return the seconds, and what it computed."""
    kept = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    command = [sys.executable, __file__, "--child", work, "--runs", str(runs)]
    with busy_processes(busy):
        done = subprocess.run(
            command, env=kept | FORMS[form], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed:\n{done.stderr}")
    return tuple(parse_json(done.stdout.splitlines()[-1]))


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` cores busy during the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def training_step(folder: Path) -> Callable[[], list[float]]:
    """Return the demo's training step; it returns loss and gradient norm."""
    config = network_configs["tiny"]
    settings = argparse.Namespace(num_clicks=3, loss_size=64, seed=0)
    step = training.STEPS["teacher"](training._teacher(config), settings)
    batch = training.made_up_batch(config.encoder.img_size, 2, seed=0)
    trainer = training.Trainer(step, batch, torch.device("cpu"), torch.float32)
    trainer.take("ours")  # allocates the optimizer's state
    return lambda: list(trainer.take("ours"))


def encoder(folder: Path) -> Callable[[], list[float]]:
    """Return the forward pass of the full-size student's encoder; it returns the output's sum."""
    network = sam_model_registry3D["fastsam3d"]().eval().image_encoder
    volume = torch.randn(1, 1, 128, 128, 128)

    @torch.inference_mode()
    def forward() -> list[float]:
        return [float(network(volume).double().sum())]

    forward()
    return forward


def prediction(folder: Path) -> Callable[[], list[float]]:
    """Return a run of predict.py on a made-up case; it returns the sum of the mask."""
    case = cold_start.write_case(folder / "CT_phantom.npz", seed=0)
    checkpoint = cold_start.save_random(folder / "small.pth", "tiny_fastsam3d", seed=0)
    settings = argparse.Namespace(warmup=0, device="cpu", precision="float32")
    start = cold_start.Start(case, checkpoint, folder / "out", settings, None)

    def predict() -> list[float]:
        start.run()
        return [float(start._masks[-1].sum())]

    return predict


WORKS = {"training": training_step, "encoder": encoder, "predict.py": prediction}


def child(work: str, runs: int) -> tuple[list[float], list[float]]:
    """Time a work in this process; return the seconds, and what its last run computed."""
    torch.manual_seed(0)
    taken, result = [], []
    with tempfile.TemporaryDirectory() as folder:
        call = WORKS[work](Path(folder))
        for _ in range(runs):
            start = time.perf_counter()
            result = call()
            taken.append(time.perf_counter() - start)
    return taken, result


def report_table(report: dict) -> str:
    """Return the rows as Markdown."""
    headers = [
        "work",
        "busy processes",
        "threads",
        "s (p10 … p90)",
        f"times {FIRST}",
        "same numbers",
    ]
    rows = []
    for row in report["rows"]:
        median, p10, p90 = (f"{row['summary'][key]:.2f}" for key in ("median", "p10", "p90"))
        cells = [row["work"], str(row["busy"]), row["form"], f"{median} ({p10} … {p90})"]
        rows.append([*cells, f"{row['times_first']:.2f}", "yes" if row["same"] else "no"])
    return table(headers, rows)


@exit_on_input_error
def main() -> None:
    args = parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.runs)))
        return
    report = run(args)
    print(f"{machine_line()}\n\n{report_table(report)}")


if __name__ == "__main__":
    main()
