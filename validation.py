"""Step 5: validate the teacher with simulated clicks.

Reads   --val-datas     prepared <organ>/<data set> folders (utils/data_paths.py: val_datas)
        --checkpoint    ours (last.pt, teacher.pt), or a released file with --network
Writes  --out-dir       cases.csv, organs.csv, summary.json, dsc.png, nsd.png, and the folders
                        predictions and pictures

With --protocol challenge, whole volumes from prompts alone by the challenge's rules
(utils/validation/run_challenge.py): reads challenge NPZ, --images and --labels, and leaves
challenge.csv, targets.csv, groups.csv, report.html, and the folders cases and predictions.

    python validation.py
    python validation.py --protocol challenge --images data/val --labels data/val_gts
    python validation.py --checkpoint sam_med3d_turbo.pth --network vit_b_ori --num-clicks 10
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
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("work_dir/teacher_outputs/teacher.pt")
    )
    parser.add_argument(
        "--network",
        choices=sorted(sam_model_registry3D),
        help="what a file without our configuration holds; vit_b_ori for sam_med3d_turbo.pth",
    )
    add_validation_arguments(parser, Path("work_dir/validation_teacher"))
    add_challenge_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary | ChallengeSummary:
    """Validate the teacher as ``args`` say."""
    checkpoint = NetworkFile(args.checkpoint, args.network, encoder=args.encoder)
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
