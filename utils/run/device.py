"""Device, precision and engine of a network, and its peak memory."""

import resource

import torch

from segment_anything import EngineError, require_engine
from utils.errors import InputError


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device of this machine.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device {name}: found no CUDA device, expected one.\n"
            "Use --device cpu, or install a CUDA build of torch."
        )
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype ``name``; ``auto``: bfloat16 or float16 on a GPU, float32 on a CPU."""
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def pick_engine(name: str, device: torch.device) -> str:
    """Return ``name`` if this engine runs on ``device``.

    Raises:
        InputError: the engine does not run there.
    """
    try:
        require_engine(name, device)
    except EngineError as error:
        raise InputError(f"--engine {name}: {error}") from error
    return name


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: GPU allocations, or on a CPU the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
