"""Step 3: train the SAM-Med3D teacher and store its outputs ("logits") for distillation.

Reads   --img-datas     prepared <organ>/<data set> folders (utils/data_paths.py)
Writes  --crops-dir     the crop cache; a case is read again only if its files or the instance
                        flags have changed
        --out-dir       last.pt, metrics.jsonl, loss.png, args.json, run.log, TensorBoard's events;
                        with --validate-every also best.pt, validation.jsonl, validation.png
        --teacher-dir   teacher.pt (the best network if there is a validation, else the last), and
                        the outputs of this network as safetensors with index.jsonl

    python preparelabel.py --checkpoint sam_med3d_turbo.pth --network vit_b_ori   # fine-tune
    python preparelabel.py                                                        # from scratch
    python preparelabel.py --network tiny --fit-spacing --steps 1500 --num-clicks 4 \\
        --loss-size 64 --decoder-lr-scale 1                                       # on a CPU
    python preparelabel.py --minutes 240                                          # ends in time
    python preparelabel.py --steps 0 --checkpoint work_dir/teacher/last.pt        # store only

A stopped run resumes with --resume.
"""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from segment_anything import (
    Sam3D,
    build_sam3D,
    checkpoint_payload,
    fingerprint,
    load_checkpoint,
    network_configs,
)
from utils.data_paths import img_datas
from utils.errors import InputError, exit_on_input_error
from utils.files.answers import require_distinct_files
from utils.files.atomic import make_folder
from utils.run.checkpoint_flags import with_local_files
from utils.run.device import pick_precision
from utils.run.folder import write_flags
from utils.run.network import open_network, save_payload, trained_on
from utils.run.network_flags import changed
from utils.run.ranks import joined, rank
from utils.run.start import owning, start_run
from utils.training.config import add_training_arguments, fit_config
from utils.training.crop_cache import CropIndex, build_cache, read_index
from utils.training.data_loader import CROP_FLAGS, CropDataset, augmentation
from utils.training.definition import VALIDATION_CROPS, flag_of, followed_steps
from utils.training.store_writer import (
    add_store_arguments,
    require_layers,
    store_config,
    store_outputs,
)
from utils.training.tasks import InteractiveTask
from utils.training.teacher_flags import add_teacher_arguments
from utils.training.teacher_store import TEACHER, TeacherStore, require_own_store
from utils.training.trainer import WRITES, FitReport, fit
from utils.training.validation_crops import (
    CropValidation,
    add_crop_validation_arguments,
    build_validation_cache,
    open_validation,
)
from utils.volumes.geometry import CropRule
from utils.volumes.labels import InstanceRule

SCRIPT = "preparelabel.py"

logger = logging.getLogger(__name__)

#: Flags that define a run, beside those of `FitConfig`, the network, the crop rule and the crops.
DEFINING = (
    *("num_clicks", "start_clicks", "mask_dropout", "box_share", "free_turns"),
    *(*CROP_FLAGS, "loss_size", "decoder_lr_scale"),
)


class TeacherReport(NamedTuple):
    """What `run` returns."""

    fit: FitReport | None  # None with --steps 0
    store: TeacherStore | None  # None with --no-store
    failures: list[str]  # a message for each case that could not be cached


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_teacher_arguments(parser)
    add_store_arguments(parser)
    add_crop_validation_arguments(parser)
    add_training_arguments(parser, steps=20_000, batch_size=4, lr=8e-4, lr_schedule="steps")
    args = parser.parse_args(argv)
    if not args.from_crops and args.img_datas is None:
        args.img_datas = [Path(folder) for folder in img_datas]
    return args


def build_teacher(args: argparse.Namespace) -> tuple[Sam3D, CropRule]:
    """Return the network to train and the crop rule; flags override the checkpoint's rule."""
    if args.checkpoint:
        if args.set:
            raise InputError(
                f"--set {args.set[0]}: the weights of {args.checkpoint} fit only its own fields; "
                "expected --set without --checkpoint. Leave one of the two out."
            )
        teacher, rule = open_network(args.checkpoint, args.network)
    else:
        config = changed(network_configs[args.network or "vit_b_ori"], args.set)
        teacher, rule = build_sam3D(config), CropRule()
    rule = CropRule(
        size=teacher.config.encoder.img_size,
        spacing_mm=rule.spacing_mm if args.spacing_mm is None else args.spacing_mm,
        fit=rule.fit if args.fit_spacing is None else args.fit_spacing,
    )
    if rule.size % args.loss_size:
        raise InputError(f"--loss-size {args.loss_size}: expected a divisor of {rule.size}.")
    return teacher, rule


def open_crops(args: argparse.Namespace) -> CropIndex:
    """Build or update the crop cache; with ``--from-crops`` open it unchanged."""
    if args.from_crops:
        if args.img_datas:
            raise InputError(
                f"--img-datas: found {len(args.img_datas)} folders beside --from-crops, which "
                "takes all targets of --crops-dir; expected one of the two.\nTo use some "
                "folders alone, leave out --from-crops and give them a --crops-dir of their own."
            )
        return read_index(args.crops_dir)
    # Only while the cache is written: trainings that read it may share it.
    with owning(args.crops_dir, owned_before=(args.out_dir, args.teacher_dir)):
        index = build_cache(
            args.img_datas,
            args.crops_dir,
            instances=InstanceRule(args.max_instances, args.min_instance_voxels),
            workers=max(1, args.workers),
        )
    for failure in index.failures:
        logger.warning("left out: %s", failure)
    return index


def run(args: argparse.Namespace) -> TeacherReport:
    """Train with the flags ``args``, then store the trained teacher's outputs for every target."""
    if args.resume and args.steps == 0:
        raise InputError(
            "--resume: nothing to resume where --steps is 0; expected --checkpoint with the "
            "network whose outputs are to be stored. Leave --resume out."
        )
    args = with_local_files(args)
    outputs = [args.out_dir / name for name in WRITES if args.steps != 0]
    outputs.append(args.teacher_dir / TEACHER)
    require_distinct_files(outputs, [args.checkpoint] if args.checkpoint else [])
    with owning(args.out_dir, args.teacher_dir):
        start_run(args, args.out_dir, script=SCRIPT, writes=WRITES)
        return build_and_train(args)


def build_and_train(args: argparse.Namespace) -> TeacherReport:
    """Open the network and the crops, then train and store."""
    make_folder(args.teacher_dir)  # reports a folder without write permission before the training
    require_own_store(args.teacher_dir)
    teacher, rule = build_teacher(args)
    require_layers(teacher, store_config(args))
    build_validation_cache(args, keep=args.from_crops)
    index = open_crops(args) if rank() == 0 else None  # the other ranks wait
    with joined(args.device) as device:
        return train_and_store(args, teacher, rule, index or read_index(args.crops_dir), device)


def train_and_store(
    args: argparse.Namespace,
    teacher: Sam3D,
    rule: CropRule,
    index: CropIndex,
    device: torch.device,
) -> TeacherReport:
    """Train on the crops, then store the outputs; every rank calls this."""
    known = (trained_on(args.checkpoint) if args.checkpoint else None) or set()
    facts = {"crop_rule": rule.to_dict(), "trained_on": sorted(known) or None}
    report = None
    if args.steps != 0:
        train_index, validation = open_validation(args, index, rule, device)
        facts["trained_on"] = sorted(known | train_index.folders) or None
        report = train(args, teacher, rule, train_index, device, facts, validation)
        if report.best:
            load_checkpoint(teacher, report.best)
    if rank() == 0:  # before the outputs: distillation.py compares them with this file
        save_payload(args.teacher_dir / TEACHER, checkpoint_payload(teacher, **facts))
    store = None
    if not args.no_store:
        store = store_outputs(
            teacher,
            index,  # held-out patients too: another run may hold out other patients
            args.teacher_dir,
            rule=rule,
            config=store_config(args),
            device=device,
            precision=pick_precision(args.precision, device),
            batch_size=args.batch_size,
            workers=args.workers,
        )
    return TeacherReport(report, store, index.failures)


def train(
    args: argparse.Namespace,
    teacher: Sam3D,
    rule: CropRule,
    index: CropIndex,
    device: torch.device,
    facts: dict,
    validation: CropValidation | None,
) -> FitReport:
    """Train the teacher on the crops of ``index``; save ``facts`` in its checkpoints."""
    task = InteractiveTask(
        teacher,
        num_clicks=args.num_clicks,
        loss_size=args.loss_size,
        seed=args.seed,
        decoder_lr_scale=args.decoder_lr_scale,
        box_share=args.box_share,
        free_turns=min(args.free_turns, args.num_clicks // 4),
        start_clicks=args.start_clicks,
        mask_dropout=args.mask_dropout,
    )
    dataset = CropDataset(index, rule, **augmentation(args))
    return fit(
        task,
        dataset,
        index.samples,
        fit_config(args, device),
        args.out_dir,
        device=device,
        payload=lambda: checkpoint_payload(teacher, **facts),
        resume=args.resume,
        validate=validation,
        defines={
            **{flag_of(name): getattr(args, name) for name in DEFINING},
            **followed_steps(args),
            "--checkpoint": fingerprint(teacher) if args.checkpoint else None,
            VALIDATION_CROPS: validation and validation.digest,
        },
        begun=partial(begin, args),
    )


def begin(args: argparse.Namespace) -> None:
    """Write the flags of a run that has passed its checks."""
    if rank() == 0:
        write_flags(args, args.out_dir, SCRIPT)


@exit_on_input_error
def main() -> int:
    report = run(parse_args())
    if rank() > 0:
        return 0
    if report.fit:
        print(
            f"loss {report.fit.first_loss:.3f} -> {report.fit.last_loss:.3f} "
            f"in {report.fit.minutes:.1f} min -> {report.fit.path}"
        )
    if report.store:
        print(
            f"outputs of {len(report.store.samples)} samples -> {report.store.folder} "
            f"(teacher {report.store.fingerprint}); {len(report.failures)} failed"
        )
    return 1 if report.failures else 0


if __name__ == "__main__":
    main()
