"""Step 6: validate the student with simulated clicks.

Reads   --val-datas     prepared <organ>/<data set> folders (utils/data_paths.py: val_datas)
        --checkpoint    ours (student.pth), or the released fastsam3d.pth with --network and
                        --teacher; without it, work_dir/student/student.pth or else
                        weights/student.pth
        --teacher       the file whose prompt encoder and mask decoder the student uses
Writes  --out-dir       report.html, cases.csv, organs.csv, thickness.csv, summary.json, dsc.png,
                        nsd.png, and the folders cases, predictions and pictures; with
                        --image-check also image_check.csv

With --protocol challenge, whole volumes from prompts alone by the challenge's rules: reads
challenge NPZ, --images and --labels, and leaves report.html, challenge.csv, targets.csv,
groups.csv, and the folders cases and predictions.

A stopped run resumes: cases that are scored already are not scored again.

    python validation_student.py
    python validation_student.py --protocol challenge --images data/val --labels data/val_gts
    python validation_student.py --checkpoint fastsam3d.pth --network fastsam3d \\
        --teacher sam_med3d_turbo.pth
"""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import exit_on_input_error
from utils.run.checkpoint_flags import checkpoint_file
from utils.run.log import start_log
from utils.validation.arguments import show, validation_parser, with_out_dir
from utils.validation.protocol import Summary
from utils.validation.run import validate

OUT_DIR = Path("work_dir/validation_student")
OWN = Path("work_dir/student/student.pth")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = validation_parser(
        __doc__,
        checkpoint=f"{OWN} if it is there, else weights/student.pth",
        out_dir=OUT_DIR,
        released="fastsam3d for fastsam3d.pth",
    )
    parser.add_argument(
        "--teacher",
        type=checkpoint_file,
        help="take prompt encoder and mask decoder from this file (default: the student's file)",
    )
    return with_out_dir(parser.parse_args(argv), OUT_DIR)


def run(args: argparse.Namespace) -> Summary:
    """Validate the student as ``args`` say."""
    return validate(args, role="student", own=OWN)


@exit_on_input_error
def main() -> int:
    start_log()
    return show(run(parse_args()))


if __name__ == "__main__":
    main()
