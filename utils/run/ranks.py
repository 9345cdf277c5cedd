"""Several processes in one run: the ranks of torchrun (PyTorch distributed).

`joined` connects the processes that torchrun has started, with NCCL on GPUs and gloo on CPUs.
Without torchrun there is one rank, and `joined` only picks the device. Rank 0 writes all files of
the run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import InputError
from utils.run.device import pick_device

PATIENCE = timedelta(days=1)  # rank 0 may build the crop cache for hours while the others wait


def rank() -> int:
    """Return the number of this process among torchrun's; 0 where there is one process."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(device_name: str) -> Iterator[torch.device]:
    """Connect to the other ranks within the block; yield this rank's device."""
    device = pick_device(device_name)
    if world_size() == 1:
        yield device
        return
    if device.type == "mps":
        raise InputError(
            "--device mps: found several processes of torchrun. Expected one, since they cannot "
            "share an Apple GPU: start the script without torchrun, or use --device cpu."
        )
    if device.type == "cuda":
        device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    # Without this barrier GPU ranks would continue while rank 0 is still building the crop cache.
    os.environ.setdefault("TORCH_DIST_INIT_BARRIER", "1")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until all ranks have called this."""
    if world_size() > 1:
        dist.barrier()


def shared(task: nn.Module, device: torch.device) -> nn.Module:
    """Wrap ``task`` so that its gradients are means over all ranks; one rank gets ``task``."""
    if world_size() == 1:
        return task
    # Not every step uses every parameter (absent prompt kinds, the IoU head).
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(task, device_ids=ids, find_unused_parameters=True)


def from_rank_0(value: float, device: torch.device) -> float:
    """Return rank 0's ``value`` on every rank; each rank must call this."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(tensor, 0)
    return tensor.item()


def mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the mean of each value over all ranks, which must have the same keys."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / world_size()).tolist(), strict=True))
