"""Device, precision, seed and the folder of a run."""

import argparse
import json
import logging
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch

from segment_anything import EngineError, require_engine
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.run.flags import add_device_arguments

#: What a random stream is for; seeds it beside the run's seed and the step, so that no two agree.
SAMPLING, AUGMENTING, CLICKING = range(3)


def rank() -> int:
    """Return this process's number among torchrun's; 0 where there is one process."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return how many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def positive_int(text: str) -> int:
    """Parse a flag that counts something and cannot be 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected 1 or more")
    return value


def non_negative_int(text: str) -> int:
    """Parse a flag that counts something and may be 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {value}, expected 0 or more")
    return value


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that exists."""
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
    """Turn ``auto`` into bfloat16 or float16 where the device computes in it, float32 elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def pick_engine(name: str, device: torch.device) -> str:
    """Return an engine that the machine can run.

    Raises:
        InputError: it cannot.
    """
    try:
        require_engine(name, device)
    except EngineError as error:
        raise InputError(f"--engine {name}: {error}") from error
    return name


def seed_everything(seed: int) -> None:
    """Seed every global generator; used once, for weight initialisation."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_folder(folder: Path) -> None:
    """Make a folder for outputs.

    Raises:
        WriteError: it cannot be made or written to.
    """
    if rank() > 0:
        return
    with atomic_path(folder / "probe") as temporary:
        temporary.touch()
    (folder / "probe").unlink()


def start_run(args: argparse.Namespace, out_dir: Path) -> None:
    """Make the run's folder, write down how it was called, and log into it; on rank 0.

    Raises:
        WriteError: the folder cannot be written to.
    """
    seed_everything(args.seed)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if rank() == 0:
        values = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
        with atomic_path(out_dir / "args.json") as temporary:
            temporary.write_text(json.dumps(values, indent=1, default=str))
        handlers.append(logging.FileHandler(out_dir / "run.log"))
    logging.basicConfig(
        level=logging.INFO if rank() == 0 else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every script with a network has."""
    run = parser.add_argument_group("run")
    add_device_arguments(run)
    run.add_argument(
        "--seed", type=non_negative_int, default=0, help="seed of everything random (default: 0)"
    )
