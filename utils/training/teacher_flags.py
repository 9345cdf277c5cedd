"""Flags of preparelabel.py: files, network and crops, clicks and loss."""

import argparse
from pathlib import Path

from segment_anything import network_configs
from utils.run.checkpoint_flags import FROM_HUB, checkpoint_file
from utils.run.flags import (
    millimetres,
    non_negative_float,
    non_negative_int,
    positive_int,
    share,
)
from utils.training.data_loader import add_crop_arguments


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a teacher's training, beside those that other modules add."""
    _add_files(parser)
    _add_network(parser)
    _add_clicks(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--img-datas",
        type=Path,
        nargs="+",
        help="<organ>/<data set> folders; not with --from-crops (default: img_datas of "
        "utils/data_paths.py)",
    )
    files.add_argument(
        "--crops-dir",
        type=Path,
        default=Path("work_dir/crops"),
        help="crop cache (default: %(default)s)",
    )
    files.add_argument(
        "--from-crops",
        action="store_true",
        help="use all targets of --crops-dir without updating it; no NIfTI file is read",
    )
    files.add_argument(
        "--out-dir",
        type=Path,
        default=Path("work_dir/teacher"),
        help="folder of the training (default: %(default)s)",
    )
    files.add_argument(
        "--teacher-dir",
        type=Path,
        default=Path("work_dir/teacher_outputs"),
        help="folder of the teacher and its outputs (default: %(default)s)",
    )
    files.add_argument(
        "--no-store",
        action="store_true",
        help="write teacher.pt without stored outputs, for distillation.py --online",
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network and crops")
    network.add_argument(
        "--network",
        choices=sorted(network_configs),
        help="(default: the checkpoint's, else vit_b_ori)",
    )
    network.add_argument(
        "--checkpoint",
        type=checkpoint_file,
        help="start from these weights: a file of this project, or sam_med3d_turbo.pth with "
        f"--network vit_b_ori; a path, {FROM_HUB} (default: from scratch)",
    )
    network.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="PART.FIELD=VALUE",
        help="change fields of a network trained from scratch, such as "
        "encoder.relative_terms=textbook or prompt.dense_pe_axes=0,1,2 "
        "(segment_anything/config.py; default: none)",
    )
    network.add_argument(
        "--spacing-mm",
        type=millimetres,
        help="voxel size of the crops in mm (default: the checkpoint's, else 1.5)",
    )
    network.add_argument(
        "--fit-spacing",
        action=argparse.BooleanOptionalAction,
        help="use finer voxels where the whole volume fits in a smaller cube "
        "(default: the checkpoint's, else off as for released weights)",
    )
    network.add_argument(
        "--max-instances",
        type=non_negative_int,
        default=0,
        help="number of the largest instances of an instance label that become targets; 0 = all "
        "(default: 0)",
    )
    network.add_argument(
        "--min-instance-voxels",
        type=positive_int,
        default=64,
        help="smaller instances become no targets, except the largest of a label (default: 64)",
    )


def _add_clicks(parser: argparse.ArgumentParser) -> None:
    clicks = parser.add_argument_group("clicks, augmentation and loss")
    clicks.add_argument(
        "--num-clicks", type=positive_int, default=11, help="turns in a step (default: 11)"
    )
    clicks.add_argument(
        "--box-share",
        type=share,
        default=0.25,
        help="share of the samples that start from a box: its corners (without prompt.boxes a "
        "click in its middle) and a coarse mask; 0 = none (default: 0.25)",
    )
    clicks.add_argument(
        "--free-turns",
        type=non_negative_int,
        default=2,
        help="turns of a step without a new click; at most a quarter of --num-clicks (default: 2)",
    )
    clicks.add_argument(
        "--start-clicks",
        type=non_negative_int,
        default=0,
        help="turns in the first steps; their number is full after three quarters of the run. "
        "Steps with few turns cost less; 0 = the full number in every step (default: 0)",
    )
    clicks.add_argument(
        "--mask-dropout",
        type=share,
        default=0.0,
        help="share of the later turns in which the network gets no mask prompt, and must segment "
        "anew from all clicks and the image; 0 = none (default: 0)",
    )
    add_crop_arguments(clicks)
    clicks.add_argument(
        "--loss-size",
        type=positive_int,
        default=128,
        help="edge of the grid on which the loss is computed, a divisor of 128; expected at "
        "least the edge of the network's masks, 64 for tiny (default: 128)",
    )
    clicks.add_argument(
        "--decoder-lr-scale",
        type=non_negative_float,
        default=0.1,
        help="learning rate of prompt encoder and mask decoder, as a share of --lr (default: 0.1)",
    )
