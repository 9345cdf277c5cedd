"""Step 6: validate the student with simulated clicks.

Reads   --val-datas     prepared <organ>/<data set> folders (utils/data_paths.py: val_datas)
        --checkpoint    ours (student.pth), or the released fastsam3d.pth with --network and
        --teacher       the file whose prompt encoder and mask decoder the student uses
Writes  --out-dir       cases.csv, organs.csv, summary.json, dsc.png, nsd.png, and the folders
                        predictions and pictures

With --protocol challenge, whole volumes from prompts alone by the challenge's rules
(utils/validation/run_challenge.py): reads challenge NPZ, --images and --labels, and leaves
challenge.csv, targets.csv, groups.csv, report.html, and the folders cases and predictions.

    python validation_student.py
    python validation_student.py --protocol challenge --images data/val --labels data/val_gts
    python validation_student.py --checkpoint fastsam3d.pth --network fastsam3d \\
        --teacher sam_med3d_turbo.pth
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from segment_anything import sam_model_registry3D
from utils.errors import exit_on_input_error
from utils.run.network import NetworkFile
from utils.validation.run_challenge import (
    ChallengeSummary,
    add_challenge_arguments,
    print_challenge,
    run_challenge,
)
from utils.validation.summary import (
    Summary,
    add_validation_arguments,
    print_summary,
    run_validation,
)


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
    add_challenge_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary | ChallengeSummary:
    """Validate the student as ``args`` say."""
    checkpoint = NetworkFile(args.checkpoint, args.network, args.teacher, args.encoder)
    if args.protocol == "challenge":
        return run_challenge(checkpoint, args)
    return run_validation(*checkpoint.open(), args)


@exit_on_input_error
def main() -> int:
    summary = run(parse_args())
    challenge = isinstance(summary, ChallengeSummary)
    return print_challenge(summary) if challenge else print_summary(summary)


if __name__ == "__main__":
    main()
