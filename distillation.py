"""Step 4: distil the teacher's image encoder into the FastSAM3D student.

Reads   --teacher-dir   teacher.pt and the outputs that preparelabel.py stored; with --online only
                        teacher.pt, and the teacher runs on each batch of augmented crops
        --crops-dir     the crop cache of preparelabel.py
Writes  --out-dir       last.pt, student.pth (released layout), metrics.jsonl, loss.png, args.json,
                        run.log, TensorBoard's events; with --validate-every also best.pt,
                        validation.jsonl, validation.png

    python distillation.py
    python distillation.py --network tiny_fastsam3d --steps 800
    python distillation.py --online --augment basic
    python distillation.py --minutes 240                                    # ends in time
    python distillation.py --checkpoint fastsam3d.pth --network fastsam3d   # released weights

A stopped run resumes with --resume. ``student.pth`` holds the encoder in the layout of the released
fastsam3d.pth, and also the teacher's prompt encoder and decoder, so that it is a complete network.
"""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from segment_anything import (
    ConfigError,
    Sam3D,
    SamConfig,
    build_sam3D,
    fingerprint,
    load_checkpoint,
    network_configs,
    sam_model_registry3D,
    student_payload,
)
from utils.errors import InputError, exit_on_input_error
from utils.files.answers import require_distinct_files
from utils.run.checkpoint_flags import FROM_HUB, checkpoint_file, with_local_files
from utils.run.flags import non_negative_float, positive_int, share
from utils.run.folder import write_flags
from utils.run.network import open_network, save_payload, trained_on
from utils.run.ranks import joined, rank
from utils.run.start import owning, start_run
from utils.training.config import TIME_PARTS, add_training_arguments, fit_config
from utils.training.crop_cache import CropIndex, read_index
from utils.training.data_loader import CROP_FLAGS, CropDataset, add_crop_arguments, augmentation
from utils.training.definition import VALIDATION_CROPS, flag_of, followed_steps
from utils.training.distillation import (
    DistillationPlan,
    EncoderDistillation,
    OnlineDistillation,
    copy_teacher_blocks,
    matching_layers,
    require_stored_layers,
)
from utils.training.teacher_store import TEACHER, TeacherOutputs, open_store, require_teacher
from utils.training.trainer import WRITES, FitReport, fit
from utils.training.validation_crops import (
    add_crop_validation_arguments,
    build_validation_cache,
    open_validation,
)
from utils.volumes.geometry import CropRule

logger = logging.getLogger(__name__)

SCRIPT = "distillation.py"
STUDENT = "student.pth"


class StudentReport(NamedTuple):
    """What `run` returns."""

    fit: FitReport
    path: Path  # the student in released layout


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_files(parser)
    _add_network(parser)
    _add_stages(parser)
    _add_online(parser)
    add_crop_validation_arguments(parser)
    add_training_arguments(parser, steps=20_000, batch_size=4, lr=5e-4, lr_schedule="cosine")
    return parser.parse_args(argv)


def _add_files(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--crops-dir",
        type=Path,
        default=Path("work_dir/crops"),
        help="crop cache of preparelabel.py (default: %(default)s)",
    )
    files.add_argument(
        "--teacher-dir",
        type=Path,
        default=Path("work_dir/teacher_outputs"),
        help="folder of the teacher and its outputs (default: %(default)s)",
    )
    files.add_argument(
        "--out-dir",
        type=Path,
        default=Path("work_dir/student"),
        help="folder of the training (default: %(default)s)",
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("network")
    network.add_argument(
        "--network",
        choices=sorted(sam_model_registry3D),
        help="(default: the checkpoint's, else fastsam3d)",
    )
    network.add_argument(
        "--checkpoint",
        type=checkpoint_file,
        help=f"start from the encoder of this student: a path, {FROM_HUB} (default: none)",
    )
    network.add_argument(
        "--init-from-teacher",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="start from the teacher's stem, neck and evenly spaced blocks (default: on)",
    )


def _add_online(parser: argparse.ArgumentParser) -> None:
    online = parser.add_argument_group("online")
    online.add_argument(
        "--online", action="store_true", help="run the teacher instead of reading stored outputs"
    )
    online.add_argument(
        "--num-clicks",
        type=positive_int,
        default=5,
        help="clicks for each sample; without --online as many as are stored (default: 5)",
    )
    add_crop_arguments(online)


def _add_stages(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_argument_group(
        "stages, in this order: layers, embedding, masks (the share that is left), decoder"
    )
    stages.add_argument(
        "--layer-share",
        type=share,
        help="share of the run in the stage layers; 0 = none "
        "(default: 0.2 if hidden states can be compared, with --online or as stored; else 0)",
    )
    stages.add_argument(
        "--embedding-share",
        type=share,
        default=0.2,
        help="share of the run on the embedding alone; 0 = none (default: 0.2)",
    )
    stages.add_argument(
        "--tune-decoder",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of the run, at the end, that trains the decoder too (default: 0)",
    )
    stages.add_argument(
        "--logit-weight",
        type=non_negative_float,
        default=1.0,
        help="weight of the loss against the teacher's masks; the embedding has 1; 0 = none "
        "(default: 1)",
    )
    stages.add_argument(
        "--truth-weight",
        type=non_negative_float,
        default=1.0,
        help="weight of the loss against the true masks; 0 = none (default: 1)",
    )


def make_plan(
    args: argparse.Namespace, student: Sam3D, teacher: Sam3D, stored: Sequence[int] | None
) -> DistillationPlan:
    """Return the stages that the flags define.

    Args:
        stored: the teacher's blocks whose hidden states are stored; None with --online.

    Raises:
        InputError: hidden states are missing, or the flags contradict each other.
    """
    layers = matching_layers(student.config, teacher.config)
    share = args.layer_share
    if share is None:
        share = 0.2 if layers and (stored is None or set(layers) <= set(stored)) else 0.0
        if not share:
            logger.info("no hidden states to compare: the stage layers is left out")
    elif share and not layers:
        raise InputError(
            f"--layer-share {share}: the student's tokens have another width than the teacher's; "
            "expected the same width. Give --layer-share 0."
        )
    if share and stored is not None:
        require_stored_layers(stored, layers, args.teacher_dir)
    return DistillationPlan(
        steps=TIME_PARTS if args.steps is None else args.steps,
        layers=layers,
        layer_share=share,
        embedding_share=args.embedding_share,
        tune_share=args.tune_decoder,
        logit_weight=args.logit_weight,
        truth_weight=args.truth_weight,
    )


def build_student(args: argparse.Namespace, teacher: Sam3D) -> Sam3D:
    """Return the student: an encoder by ``args``, with the teacher's prompt encoder and decoder."""
    if args.checkpoint:
        given, _ = open_network(args.checkpoint, args.network, args.teacher_dir / TEACHER)
        config = given.config
    else:
        given, config = None, network_configs[args.network or "fastsam3d"]
    student = build_sam3D(_beside(config, teacher.config, given is not None))
    student.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    student.mask_decoder.load_state_dict(teacher.mask_decoder.state_dict())
    if given is not None:
        student.image_encoder.load_state_dict(given.image_encoder.state_dict())
    elif args.init_from_teacher:
        copy_teacher_blocks(teacher, student)
    return student


def _beside(config: SamConfig, teacher: SamConfig, trained: bool) -> SamConfig:
    """Return ``config`` with the teacher's widths and prompts, which the shared decoder needs.

    Raises:
        InputError: no network can have these widths, or the encoder is ``trained`` with others.
    """
    widths = {
        key: getattr(teacher.encoder, key)
        for key in ("img_size", "patch_size", "out_chans", "detail_chans", "detail")
    }
    try:
        encoder = replace(config.encoder, **widths)
        if trained and encoder != config.encoder:
            raise ConfigError("the weights have other widths")
        return replace(config, encoder=encoder, prompt=teacher.prompt, decoder=teacher.decoder)
    except ConfigError as error:
        raise InputError(
            f"the student {config.network} cannot have {widths} of the teacher {teacher.network}: "
            f"{error}.\nGive a --network that fits the teacher: tiny_fastsam3d for tiny, fastsam3d "
            "for vit_b_ori."
        ) from error


def run(args: argparse.Namespace) -> StudentReport:
    """Distil with the flags ``args``; return the losses and the path of the student."""
    args = with_local_files(args)
    inputs = [args.teacher_dir / TEACHER, *([args.checkpoint] if args.checkpoint else [])]
    require_distinct_files([args.out_dir / name for name in (*WRITES, STUDENT)], inputs)
    with owning(args.out_dir):
        start_run(args, args.out_dir, script=SCRIPT, writes=(*WRITES, STUDENT))
        build_validation_cache(args, keep=True)
        with joined(args.device) as device:
            return distil(args, device)


def distil(args: argparse.Namespace, device: torch.device) -> StudentReport:
    """Distil; every rank calls this."""
    index = read_index(args.crops_dir)
    teacher, rule = open_network(args.teacher_dir / TEACHER)
    index, validation = open_validation(args, index, rule, device)
    student = build_student(args, teacher)

    store = None
    if not args.online:
        store = open_store(args.teacher_dir, index, rule)
        require_teacher(store, teacher)
    plan = make_plan(args, student, teacher, store.layers if store else None)
    origin = {"crop_rule": rule.to_dict(), "teacher": fingerprint(teacher), "plan": asdict(plan)}
    before = trained_on(args.teacher_dir / TEACHER) or set()
    origin["trained_on"] = sorted(index.folders | before)

    defines = {
        **_defining_flags(args, plan),
        **(followed_steps(args) if args.online else {}),
        "--checkpoint": fingerprint(student) if args.checkpoint else None,
        VALIDATION_CROPS: validation and validation.digest,
    }

    def payload() -> dict:
        return student_payload(student, **origin)

    if store is None:
        task, dataset = _online(args, student, plan, teacher.to(device), index, rule)
    else:
        task = EncoderDistillation(student, plan)
        stored = {"layered_until": plan.layered_until, "network": teacher.config}
        dataset = TeacherOutputs(store, index, rule, **stored)
    report = fit(
        task,
        dataset,
        index.samples,
        fit_config(args, device),
        args.out_dir,
        device=device,
        payload=payload,
        resume=args.resume,
        validate=validation,
        defines=defines,
        begun=partial(begin, args),
    )
    if report.best:
        load_checkpoint(student, report.best)
    path = args.out_dir / STUDENT
    if rank() == 0:
        save_payload(path, payload())
    return StudentReport(report, path)


def begin(args: argparse.Namespace) -> None:
    """Write the flags of a run that has passed its checks."""
    path = args.out_dir / STUDENT
    if not args.resume and path.exists():
        raise InputError(
            f"{path}: holds the student of an earlier run, expected no such file.\n"
            "Choose another --out-dir."
        )
    if rank() == 0:
        write_flags(args, args.out_dir, SCRIPT)


def _online(
    args: argparse.Namespace,
    student: Sam3D,
    plan: DistillationPlan,
    teacher: Sam3D,
    index: CropIndex,
    rule: CropRule,
) -> tuple[OnlineDistillation, CropDataset]:
    """Return task and crops of a distillation without stored outputs."""
    task = OnlineDistillation(student, plan, teacher, num_clicks=args.num_clicks, seed=args.seed)
    return task, CropDataset(index, rule, **augmentation(args))


def _defining_flags(args: argparse.Namespace, plan: DistillationPlan) -> dict[str, object]:
    """Return the flags that define a run, beside those of `FitConfig`, networks and crops."""
    own = ("online", "num_clicks", *CROP_FLAGS) if args.online else ("online",)
    own += () if args.checkpoint else ("init_from_teacher",)
    stages = ("layer_share", "embedding_share", "logit_weight", "truth_weight")
    return {
        **{flag_of(name): getattr(args, name) for name in own},
        **{flag_of(name): getattr(plan, name) for name in stages},
        "--tune-decoder": plan.tune_share,
    }


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
