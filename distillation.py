"""Step 4: distil the teacher's image encoder into the FastSAM3D student.

Reads   --teacher-dir   the teacher and its outputs, stored by preparelabel.py; with --online
                        teacher.pt alone: it runs beside the student, on crops augmented anew
        --crops-dir     the crops they were made of
Writes  --out-dir       last.pt, student.pth (released layout), metrics.jsonl, loss.png, args.json,
                        TensorBoard's events; with --validate-every best.pt, validation.jsonl

    python distillation.py
    python distillation.py --network tiny_fastsam3d --steps 800
    python distillation.py --online --augment basic
    python distillation.py --checkpoint fastsam3d.pth --network fastsam3d   # go on from released

A run that was stopped goes on with --resume. ``student.pth`` holds the encoder as the released
fastsam3d.pth does, and the teacher's prompt encoder and decoder beside it, so that it is complete.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from segment_anything import (
    Sam3D,
    build_sam3D,
    fingerprint,
    load_checkpoint,
    network_configs,
    sam_model_registry3D,
    student_payload,
)
from utils.checkpoint import copy_teacher_blocks, open_network, save_payload
from utils.crops import read_index
from utils.data_loader import AUGMENTATIONS, CropDataset
from utils.distributed import joined
from utils.errors import InputError, exit_on_input_error
from utils.runtime import positive_int, rank, start_run
from utils.tasks import EncoderDistillation, OnlineDistillation
from utils.teacher_store import TEACHER, TeacherOutputs, open_store
from utils.trainer import FitReport, add_training_arguments, fit, fit_config
from utils.validation_crops import (
    add_crop_validation_arguments,
    cut_validation_crops,
    open_validation,
)

STUDENT = "student.pth"


class Report(NamedTuple):
    """``path`` is the student in released layout."""

    fit: FitReport
    path: Path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    files = parser.add_argument_group("files")
    files.add_argument("--crops-dir", type=Path, default=Path("work_dir/crops"))
    files.add_argument("--teacher-dir", type=Path, default=Path("work_dir/teacher_outputs"))
    files.add_argument("--out-dir", type=Path, default=Path("work_dir/student"))

    network = parser.add_argument_group("network and loss")
    network.add_argument(
        "--network",
        choices=sorted(sam_model_registry3D),
        help="default: fastsam3d; with --checkpoint, what that file says it holds",
    )
    network.add_argument("--checkpoint", type=Path, help="start from this student's encoder")
    network.add_argument(
        "--init-from-teacher",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start from the teacher's stem, neck and evenly spaced blocks (default: on)",
    )
    network.add_argument(
        "--logit-weight",
        type=float,
        default=1.0,
        help="weight of the masks against the teacher's beside the embedding (default: 1)",
    )
    network.add_argument(
        "--truth-weight",
        type=float,
        default=0.0,
        help="weight of the masks against the truth; 0 = none (default: 0)",
    )
    online = parser.add_argument_group("online")
    online.add_argument(
        "--online", action="store_true", help="run the teacher instead of reading its outputs"
    )
    online.add_argument(
        "--num-clicks",
        type=positive_int,
        default=5,
        help="clicks a sample with --online; else as many as are stored (default: 5)",
    )
    online.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="basic",
        help="of the crops with --online, as in preparelabel.py (default: basic)",
    )
    add_crop_validation_arguments(parser)
    add_training_arguments(parser, steps=20_000, batch_size=4, lr=5e-4)
    return parser.parse_args(argv)


def build_student(args: argparse.Namespace, teacher: Sam3D) -> Sam3D:
    """Return the student to train: its encoder as ``args`` say, the rest the teacher's."""
    if args.checkpoint:
        given, _ = open_network(args.checkpoint, args.network, args.teacher_dir / TEACHER)
        config = given.config
    else:
        given, config = None, network_configs[args.network or "fastsam3d"]
    # The decoder is the teacher's, so whatever that was trained with holds for the student.
    student = build_sam3D(
        replace(config, prompt=teacher.config.prompt, decoder=teacher.config.decoder)
    )
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    if given is not None:
        student.image_encoder.load_state_dict(given.image_encoder.state_dict())
    elif args.init_from_teacher:
        copy_teacher_blocks(teacher, student)
    return student


def run(args: argparse.Namespace) -> Report:
    """Distil as ``args`` say; return what was learned and where it was saved."""
    start_run(args, args.out_dir)
    cut_validation_crops(args, read_index(args.crops_dir).rule)
    with joined(args.device) as device:
        return distil(args, device)


def distil(args: argparse.Namespace, device: torch.device) -> Report:
    """Distil on one rank of however many there are."""
    index = read_index(args.crops_dir)
    teacher, rule = open_network(args.teacher_dir / TEACHER)
    if index.rule != rule:
        raise InputError(
            f"{args.crops_dir}: the crops were cut by {index.rule}, the teacher was trained on "
            f"{rule}.\nRun preparelabel.py again on these crops, or name the right --crops-dir."
        )
    student = build_student(args, teacher)

    identity = fingerprint(teacher)

    def payload() -> dict:
        return student_payload(student, crop_rule=rule.to_dict(), teacher=identity)

    weights = {"logit_weight": args.logit_weight, "truth_weight": args.truth_weight}
    if args.online:
        online = {"num_clicks": args.num_clicks, "seed": args.seed}
        task = OnlineDistillation(student, teacher.to(device), **online, **weights)
        dataset = CropDataset(index, augment=args.augment, seed=args.seed)
    else:
        task = EncoderDistillation(student, **weights)
        dataset = TeacherOutputs(open_store(args.teacher_dir, index), index)
    report = fit(
        task,
        dataset,
        index.samples,
        fit_config(args, device),
        args.out_dir,
        device=device,
        payload=payload,
        resume=args.resume,
        validate=open_validation(args, index, device),
    )
    if report.best:
        load_checkpoint(student, report.best)
    path = args.out_dir / STUDENT
    if rank() == 0:
        save_payload(path, payload())
    return Report(report, path)


@exit_on_input_error
def main() -> None:
    report = run(parse_args())
    if rank() > 0:
        return
    print(
        f"loss {report.fit.first_loss:.3f} -> {report.fit.last_loss:.3f} "
        f"in {report.fit.minutes:.1f} min -> {report.path}"
    )


if __name__ == "__main__":
    main()
