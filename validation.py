"""Step 5: validate the teacher with simulated clicks.

Reads   --val-datas     prepared <organ>/<data set> folders (utils/data_paths.py: val_datas)
        --checkpoint    ours (last.pt, teacher.pt), or a released file with --network; without it,
                        work_dir/teacher_outputs/teacher.pt or else weights/teacher.pth
Writes  --out-dir       report.html, cases.csv, organs.csv, thickness.csv, summary.json, dsc.png,
                        nsd.png, and the folders cases, predictions and pictures; with
                        --image-check also image_check.csv

With --protocol challenge, whole volumes from prompts alone by the challenge's rules: reads
challenge NPZ, --images and --labels, and leaves report.html, challenge.csv, targets.csv,
groups.csv, and the folders cases and predictions.

A stopped run resumes: cases that are scored already are not scored again.

    python validation.py
    python validation.py --protocol challenge --images data/val --labels data/val_gts
    python validation.py --checkpoint sam_med3d_turbo.pth --network vit_b_ori --num-clicks 10
"""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import exit_on_input_error
from utils.run.log import start_log
from utils.validation.arguments import show, validation_parser, with_out_dir
from utils.validation.protocol import Summary
from utils.validation.run import validate

OUT_DIR = Path("work_dir/validation_teacher")
OWN = Path("work_dir/teacher_outputs/teacher.pt")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = validation_parser(
        __doc__,
        checkpoint=f"{OWN} if it is there, else weights/teacher.pth",
        out_dir=OUT_DIR,
        released="vit_b_ori for sam_med3d_turbo.pth",
    )
    return with_out_dir(parser.parse_args(argv), OUT_DIR)


def run(args: argparse.Namespace) -> Summary:
    """Validate the teacher as ``args`` say."""
    return validate(args, role="teacher", own=OWN)


@exit_on_input_error
def main() -> int:
    start_log()
    return show(run(parse_args()))


if __name__ == "__main__":
    main()
