"""The flags of every script with a network (no torch, so that --help is quick)."""

import argparse
from pathlib import Path

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("eager", "compiled", "graph")


def add_device_arguments(parser: argparse._ActionsContainer) -> None:
    """Add where the network runs, and in which precision."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="auto: bfloat16 or float16 on a GPU, float32 on a CPU (default: auto)",
    )


def add_engine_arguments(parser: argparse._ActionsContainer) -> None:
    """Add how it runs where it is not trained."""
    parser.add_argument(
        "--engine",
        default="eager",
        choices=ENGINES,
        help="compiled, or graph on a GPU: quicker kernels that take a minute to build, for runs "
        "of hundreds of volumes (default: eager)",
    )
    parser.add_argument(
        "--encoder",
        type=Path,
        help="an ONNX file of the checkpoint's image encoder, to be used in its place, such as "
        "utils/training/quantise_encoder.py writes",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every script with a network has."""
    run = parser.add_argument_group("run")
    add_device_arguments(run)
    run.add_argument(
        "--seed", type=non_negative_int, default=0, help="seed of everything random (default: 0)"
    )


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
