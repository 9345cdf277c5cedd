"""Device, precision and engine of a network, and its peak memory."""

import re
import resource
import sys

import torch

from segment_anything import EngineError, require_engine
from utils.errors import InputError


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device of this machine.

    ``auto`` is a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: there is no such device, or it is of another kind.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in available_devices():
        what = f"--device {name}" if name else "--device with an empty name"
        kind = re.match(r"(cuda|mps)(:|$)", name)
        reason = {"cuda": "found no such CUDA GPU", "mps": "found no Apple GPU (MPS)"}
        hint = " For a GPU install a build of PyTorch for it." if kind else ""
        raise InputError(
            f"{what}: {reason[kind[1]] if kind else 'is no device that networks run on here'}. "
            f"Expected one of {', '.join(['auto', *available_devices()])}: name one of them.{hint}"
        )
    return torch.device(name)


def available_devices() -> list[str]:
    """Return the names of the devices that networks can run on, on this machine."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that times can be taken."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype ``name``; ``auto``: bfloat16 or float16 on CUDA, float32 elsewhere."""
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
    """Return the peak memory so far in MiB: CUDA's allocations, elsewhere the resident set.

    On MPS the resident set holds the network too, since GPU and CPU share their memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of one unit of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
