"""Flags of all scripts with a network. This module does not import torch: --help stays quick."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# A copy of segment_anything.ENGINES, whose import loads torch; test_engine.py compares the two.
ENGINES = ("eager", "compiled", "graph")
REFINE_STRENGTH = 0.3  # of --refine without a value: that of the network tiny
MAX_SEED = 2**32 - 1  # the largest of NumPy's global generator
MAX_INT = 2**63 - 1  # larger numbers fit no tensor, file or clock


def add_device_arguments(parser: argparse._ActionsContainer) -> None:
    """Add ``--device`` and ``--precision``."""
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:N or mps; auto: cuda if there is a GPU, else cpu (default: auto)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="auto: bfloat16 or float16 on CUDA, float32 on a CPU or on MPS (default: auto)",
    )


def add_engine_arguments(parser: argparse._ActionsContainer) -> None:
    """Add ``--engine``, ``--encoder`` and ``--refine``, for scripts that do not train."""
    parser.add_argument(
        "--engine",
        default="eager",
        choices=ENGINES,
        help="compiled, or graph on a GPU: faster kernels that take a minute to build, for runs "
        "on hundreds of volumes (default: eager)",
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        help="ONNX file that replaces the checkpoint's image encoder, for example from "
        "utils/training/quantise_encoder.py (default: none)",
    )
    parser.add_argument(
        "--refine",
        type=refine_strength,
        nargs="?",
        const=REFINE_STRENGTH,
        metavar="STRENGTH",
        help="refine masks by diffusion along the image's edges. STRENGTH is the weight of the "
        "network's own mask: the lower, the more masks follow the edges; 0 = off. Without a value: "
        f"{REFINE_STRENGTH} (default: the strength in the network's configuration; released "
        "networks: off)",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--precision`` and ``--seed``."""
    run = parser.add_argument_group("run")
    add_device_arguments(run)
    run.add_argument("--seed", type=seed, default=0, help="seed of all random choices (default: 0)")


def new_file(text: str) -> Path:
    """Parse the value of a flag: a file to write, which is not there yet."""
    if os.path.lexists(text):
        raise argparse.ArgumentTypeError(
            f"found {text}, which is there already; expected a new file: name another, or move it"
        )
    return Path(text)


def positive_int(text: str) -> int:
    """Parse the value of a flag: an integer of 1 or more."""
    return _number(text, int, "1 or more", lambda value: 1 <= value <= MAX_INT)


def non_negative_int(text: str) -> int:
    """Parse the value of a flag: an integer of 0 or more."""
    return _number(text, int, "0 or more", lambda value: 0 <= value <= MAX_INT)


def positive_float(text: str) -> float:
    """Parse the value of a flag: a finite number above 0."""
    return _number(text, float, "a number above 0", lambda value: value > 0)


def non_negative_float(text: str) -> float:
    """Parse the value of a flag: a finite number of 0 or more."""
    return _number(text, float, "a number of 0 or more", lambda value: value >= 0)


def finite_float(text: str) -> float:
    """Parse the value of a flag: a finite number."""
    return _number(text, float, "a finite number", lambda value: True)


def refine_strength(text: str) -> float:
    """Parse the value of ``--refine``, in the range of ``DecoderConfig.refine_strength``."""
    return _number(text, float, "0 to 1000", lambda value: 0 <= value <= 1e3)


def share(text: str) -> float:
    """Parse the value of a flag: a share from 0 to 1, both included."""
    return _number(text, float, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def share_below_one(text: str) -> float:
    """Parse the value of a flag: a share from 0 to 1, without 1."""
    return _number(text, float, "a share from 0 to below 1", lambda value: 0 <= value < 1)


def millimetres(text: str) -> float:
    """Parse the value of a flag: a voxel size in mm, from 0.001 to 1000."""
    return _number(text, float, "0.001 to 1000 mm", lambda value: 1e-3 <= value <= 1e3)


def seed(text: str) -> int:
    """Parse the value of a flag: a seed that NumPy and torch accept."""
    return _number(text, int, f"0 to {MAX_SEED}", lambda value: 0 <= value <= MAX_SEED)


def _number(
    text: str, kind: type[int | float], expected: str, allowed: Callable[[float], bool]
) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not allowed(value) or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
    return value
