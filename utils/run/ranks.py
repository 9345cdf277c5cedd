"""Several processes on one run: torchrun's ranks (PyTorch distributed).

`joined` is the only way in: where torchrun has started several processes it joins them (NCCL on
GPUs, gloo on CPUs), and where it has not there is one rank and nothing changes. Rank 0 alone writes
what there is one of.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.run.device import pick_device

PATIENCE = timedelta(days=1)  # rank 0 may cut crops for hours while the others wait


def rank() -> int:
    """Return this process's number among torchrun's; 0 where there is one process."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(device_name: str) -> Iterator[torch.device]:
    """Join the other ranks for the time of the block; yield this rank's device."""
    device = pick_device(device_name)
    if world_size() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Without it ranks on GPUs go on before rank 0, which may be laying down volumes, has come here.
    os.environ.setdefault("TORCH_DIST_INIT_BARRIER", "1")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    if world_size() > 1:
        dist.barrier()


def shared(task: nn.Module, device: torch.device) -> nn.Module:
    """Return ``task`` so that its gradients are the mean over all ranks."""
    if world_size() == 1:
        return task
    # A step may leave parameters out: of prompts that it did not give, of the IoU head.
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=ids, find_unused_parameters=True)


def mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return each value's mean over all ranks; the same keys on each."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / world_size()).tolist(), strict=True))
