"""Step 6: validate the student with simulated clicks.

Reads   --val-datas     prepared <organ>/<data set> folders (utils/data_paths.py: val_datas)
        --checkpoint    ours (student.pth), or the released fastsam3d.pth with --network and
        --teacher       the file whose prompt encoder and mask decoder the student uses
Writes  --out-dir       cases.csv, organs.csv, summary.json, dsc.png, nsd.png, and the folders
                        predictions and pictures

    python validation_student.py
    python validation_student.py --checkpoint fastsam3d.pth --network fastsam3d \\
        --teacher sam_med3d_turbo.pth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from segment_anything import sam_model_registry3D
from utils.checkpoint import open_network
from utils.errors import exit_on_input_error
from utils.report import Summary, add_validation_arguments, print_summary, run_validation


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("work_dir/student/student.pth"))
    parser.add_argument(
        "--network",
        choices=sorted(sam_model_registry3D),
        help="what a file without our configuration holds; fastsam3d for fastsam3d.pth",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        help="take prompt encoder and mask decoder from this file (default: the student's file)",
    )
    add_validation_arguments(parser, Path("work_dir/validation_student"))
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary:
    """Validate the student as ``args`` say."""
    student, rule = open_network(args.checkpoint, args.network, args.teacher)
    return run_validation(student, rule, args)


@exit_on_input_error
def main() -> int:
    return print_summary(run(parse_args()))


if __name__ == "__main__":
    main()
