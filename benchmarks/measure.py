"""Timing, memory and tables for the scripts of this folder.

Rivals run in turns in one process, so that other load on the machine affects all of them equally.
Reports have medians with their spread, the machine, and the difference of the outputs: a time means
nothing unless the outputs agree.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from utils.files.atomic import atomic_path
from utils.run.device import synchronise
from utils.run.flags import new_file

SAMPLED_EVERY_S = 0.002  # seconds between two readings of the resident set by `PeakMemory`
STATM = Path("/proc/self/statm")


def machine() -> dict[str, object]:
    """Return processor, cores, threads, GPU and versions of this machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": gpu,
        "cuda": torch.version.cuda,
    }


def machine_line() -> str:
    """Describe the machine in one line."""
    where = machine()
    gpu = f"{where['gpu']}, CUDA {where['cuda']}, " if where["gpu"] else ""
    return f"{gpu}{where['cpu']}, {where['threads']} threads, torch {where['torch']}"


def cpu_name() -> str:
    """Return the processor's name, from /proc/cpuinfo if there is one."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def synchroniser(device: torch.device) -> Callable[[], None] | None:
    """Return a call that waits for the device's work; None for a CPU, which needs no waiting."""
    return None if device.type == "cpu" else partial(synchronise, device)


def alternate(
    works: dict[str, Callable[[], object]],
    runs: int,
    warmup: int = 2,
    synchronise: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time several calls in turns; return the seconds of each call's runs.

    Args:
        works: The calls, by name.
        runs: Timed runs of each call.
        warmup: Earlier runs of each call that are not timed.
        synchronise: Called before each reading of the clock; see `synchroniser`.
    """
    wait = synchronise or (lambda: None)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    rounds = tqdm(range(-warmup, runs), desc="rounds", disable=None)
    for number in rounds:
        for name, work in works.items():
            rounds.set_postfix_str(name if number >= 0 else f"{name}, warming up")
            wait()
            start = time.perf_counter()
            work()
            wait()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, 10th and 90th percentile, and the number of runs."""
    ordered = torch.tensor(sorted(seconds), dtype=torch.float64)
    p10, p90 = torch.quantile(ordered, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    median = statistics.median(seconds)
    return {"median": median, "p10": p10, "p90": p90, "runs": len(seconds)}


class PeakMemory:
    """The peak memory of a block in bytes: ``with PeakMemory(device) as memory: ...``.

    On CUDA it is the memory of PyTorch's tensors. On a CPU it is the resident set of the whole
    process, libraries included. A thread reads it every few milliseconds and may miss shorter
    peaks. Without /proc the result is 0.

    Attributes:
        before: Memory at the start of the block.
        peak: The most memory within the block.
        growth: Their difference.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.peak = 0

    @property
    def growth(self) -> int:
        """Return how far the peak is above the start."""
        return self.peak - self.before

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        _return_free_memory()
        self.before = self.peak = resident_bytes()
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
            return
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY_S):
            self.peak = max(self.peak, resident_bytes())


def resident_bytes() -> int:
    """Return the memory that this process holds; 0 where there is no /proc."""
    if not STATM.exists():
        return 0
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _return_free_memory() -> None:
    """Return freed memory to the system; if the block reused it, its growth would be hidden."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).norm() / expected.norm()).item()


def json_file(text: str) -> Path:
    """Parse the value of ``--json``: a new file that ends in .json."""
    if not text.lower().endswith(".json"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a file that ends in .json")
    return new_file(text)


def write_json(path: Path, report: object) -> None:
    """Write a report atomically: the file is complete, or unchanged."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with aligned columns."""
    lines = [list(map(str, headers)), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(f'{cell:<{w}}' for cell, w in zip(line, widths, strict=True))} |"
        for line in lines
    )
