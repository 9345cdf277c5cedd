"""The command line of both validation scripts, and what they print."""

import argparse
import sys
from pathlib import Path

from segment_anything import sam_model_registry3D
from utils.data_paths import val_datas
from utils.errors import printable
from utils.run.checkpoint_flags import FROM_HUB, checkpoint_file
from utils.run.flags import (
    add_engine_arguments,
    add_run_arguments,
    non_negative_int,
    positive_int,
)
from utils.run.log import as_entry
from utils.validation.protocol import Summary
from utils.validation.run import PROTOCOLS


def validation_parser(
    manual: str, *, checkpoint: str, out_dir: Path, released: str
) -> argparse.ArgumentParser:
    """Return the parser of a validation script.

    Args:
        manual: the script's docstring.
        checkpoint: the file that is taken without ``--checkpoint``, in words.
        out_dir: default of ``--out-dir`` in protocol "clicks"; see `with_out_dir`.
        released: which ``--network`` the released file holds.
    """
    parser = argparse.ArgumentParser(
        description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(teacher=None)
    files = parser.add_argument_group("files")
    files.add_argument(
        "--checkpoint",
        type=checkpoint_file,
        help=f"file of the network, {FROM_HUB} (default: {checkpoint})",
    )
    files.add_argument(
        "--network",
        choices=sorted(sam_model_registry3D),
        help=f"name of the network, for files that do not store it; {released}",
    )
    files.add_argument(
        "--out-dir",
        type=Path,
        help=f"(default: {out_dir}, with --protocol challenge {challenge_dir(out_dir)})",
    )
    add_protocol_arguments(parser)
    add_engine_arguments(parser)
    add_run_arguments(parser)
    return parser


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--protocol``, the flags of both protocols, and those of the output."""
    _add_protocol(parser)
    _add_clicks(parser)
    _add_challenge(parser)


def with_out_dir(args: argparse.Namespace, out_dir: Path) -> argparse.Namespace:
    """Fill in the default of ``--out-dir``, a folder of its own for each protocol."""
    if args.out_dir is None:
        args.out_dir = out_dir if args.protocol == "clicks" else challenge_dir(out_dir)
    return args


def challenge_dir(out_dir: Path) -> Path:
    """Return the default folder of protocol "challenge"."""
    return out_dir.with_name(f"{out_dir.name}_challenge")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    protocol = parser.add_argument_group("protocol and output")
    protocol.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="clicks",
        help="clicks: each target of --val-datas alone, in a crop around it. challenge: whole "
        "volumes of --images from prompts alone, all classes at once (default: clicks)",
    )
    protocol.add_argument(
        "--num-clicks", type=positive_int, default=5, help="clicks on each target (default: 5)"
    )
    protocol.add_argument(
        "--cases",
        type=positive_int,
        help="score this many cases, evenly spaced in their order, the first and the last among "
        "them (default: all)",
    )
    protocol.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        help="processes, each with a network of its own; scores do not depend on it (default: 1)",
    )
    protocol.add_argument(
        "--pictures",
        type=non_negative_int,
        default=12,
        help="number of cases to draw: the worst in the report and, with protocol clicks, evenly "
        "spaced ones in pictures/; 0 = none (default: 12)",
    )
    protocol.add_argument(
        "--trained-on",
        type=Path,
        nargs="+",
        help="<organ>/<data set> folders of the training data, to separate seen from unseen "
        "lesions in the tables (default: those stored in the checkpoint)",
    )


def _add_clicks(parser: argparse.ArgumentParser) -> None:
    clicks = parser.add_argument_group("protocol clicks")
    clicks.add_argument(
        "--val-datas",
        type=Path,
        nargs="+",
        default=[Path(folder) for folder in val_datas],
        help="<organ>/<data set> folders (default: val_datas of utils/data_paths.py)",
    )
    clicks.add_argument(
        "--max-instances",
        type=positive_int,
        default=8,
        help="score at most this many instances of an instance label, largest first (default: 8)",
    )
    clicks.add_argument(
        "--predictions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write predictions as NIfTI on the input's grid; the report draws its cases from "
        "them (default: on)",
    )
    clicks.add_argument(
        "--image-check",
        action="store_true",
        help="replay the clicks of each target unchanged on wrong images (another case, noise, the "
        "own image smoothed, its voxels shuffled): does the network look at the image? Costs 4 "
        "more encodings and 5 times as many more clicks on each target",
    )
    clicks.add_argument(
        "--ceiling",
        action="store_true",
        help="also score the best mask that the network's low-resolution grid can give for each "
        "target, to tell what the grid loses from what the network loses; up to a second a target",
    )


def _add_challenge(parser: argparse.ArgumentParser) -> None:
    challenge = parser.add_argument_group("protocol challenge")
    challenge.add_argument("--images", type=Path, help="folder of challenge NPZ")
    challenge.add_argument(
        "--labels", type=Path, help="folder of NPZ with gts (default: those of --images)"
    )
    challenge.add_argument(
        "--json",
        type=Path,
        default=Path("CVPR25.json"),
        help="class file (default: CVPR25.json)",
    )
    challenge.add_argument(
        "--boxes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin with the boxes of cases that have them (default: on)",
    )


def show(summary: Summary) -> int:
    """Print a summary, and the failures to stderr; return the script's exit code."""
    print(printable(str(summary)))
    for line in summary.failure_lines:
        print(as_entry(line), file=sys.stderr)
    return 1 if summary.failure_lines else 0
