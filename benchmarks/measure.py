"""How this folder's scripts take times and tell them.

Rivals take turns in one process, so that whatever else the machine does meets all alike. Medians
are told with their spread, with the machine, and with how far the outputs differ: a time without
that check says nothing.
"""

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

SAMPLED_EVERY_S = 0.002  # the resident set
STATM = Path("/proc/self/statm")


def machine() -> dict[str, object]:
    """Say where numbers were measured."""
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
    """Say the same in a line to print."""
    where = machine()
    gpu = f"{where['gpu']}, CUDA {where['cuda']}, " if where["gpu"] else ""
    return f"{gpu}{where['cpu']}, {where['threads']} threads, torch {where['torch']}"


def cpu_name() -> str:
    """Return the processor's name, from Linux where it says more than Python does."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def synchroniser(device: torch.device) -> Callable[[], None] | None:
    """Return what waits for a device's work; None where calls return when they are done."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else None


def alternate(
    works: dict[str, Callable[[], object]],
    runs: int,
    warmup: int = 2,
    synchronise: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time works in turns; return each one's seconds, run by run.

    Args:
        works: by name.
        runs: timed calls of each.
        warmup: calls of each before that are not timed.
        synchronise: called before each time is taken, such as `synchroniser` returns.
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
    """Return median, 10th and 90th percentile, and how many runs there were."""
    ordered = torch.tensor(sorted(seconds), dtype=torch.float64)
    p10, p90 = torch.quantile(ordered, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    median = statistics.median(seconds)
    return {"median": median, "p10": p10, "p90": p90, "runs": len(seconds)}


class PeakMemory:
    """What a block takes at most, in bytes: ``with PeakMemory(device) as memory: ...``.

    On CUDA what PyTorch's tensors take. On a CPU the process's resident set, which a thread reads
    every few milliseconds: all of the process, libraries included, and shorter peaks may be missed;
    0 where there is no /proc. ``growth`` is what the block needed beyond what was there before it,
    and ``peak`` all of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.peak = 0

    @property
    def growth(self) -> int:
        """Say how far the peak is above the start."""
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
    """Let glibc give back what it keeps after `free`, or a next block's growth would not show."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|, in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return ((found - expected).norm() / expected.norm()).item()


def write_json(path: Path, report: object) -> None:
    """Write a report, whole or not at all."""
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
