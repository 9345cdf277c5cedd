"""Validation during training: DSC after clicks on crops of other patients.

To be quick, the validation uses centred crops from a cache, the challenge's clicks, and DSC on the
grid of the crop. Ranks share the crops. After training, utils/validation/ scores whole volumes.
"""

import argparse
import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from segment_anything import Interaction, Sam3D, autocast, upsample
from utils.cases.choice import evenly_spaced
from utils.data_paths import val_datas
from utils.errors import InputError
from utils.prompts.click_method import challenge_click
from utils.results.metrics import dsc
from utils.run.device import pick_precision
from utils.run.flags import non_negative_int, share_below_one
from utils.run.ranks import mean_over_ranks, rank, world_size
from utils.run.start import owning
from utils.training.crop_cache import INDEX, CropIndex, build_cache, read_index
from utils.training.data_loader import CropDataset
from utils.training.definition import digest_of
from utils.volumes.geometry import CropRule

logger = logging.getLogger(__name__)

SCORED_CLICKS = (1, 3, 5)


class CropValidation:
    """Scores a network on held-out crops; a higher ``score`` is better.

    Args:
        index: the held-out crops.
        train: the training crops; their cases must differ from the held-out cases.
        rule: how crops are cut.
        most: largest number of crops to score, evenly spaced over the index; 0 = all.
        device, precision: device and dtype of the network's computation.

    Raises:
        InputError: a case is in ``train`` too.
    """

    def __init__(
        self,
        index: CropIndex,
        train: CropIndex,
        rule: CropRule,
        *,
        most: int,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        _require_other_cases(index, train)
        self.numbers = evenly_spaced(range(len(index.samples)), most or None)
        self.dataset = CropDataset(index, rule)
        self.device, self.precision = device, precision

    @property
    def digest(self) -> str:
        """A digest of the crops that are scored."""
        return digest_of([self.dataset.index.samples[number] for number in self.numbers])

    def __call__(self, model: Sam3D) -> dict[str, float]:
        """Return the mean DSC after 1, 3 and 5 clicks, and ``score``, the mean of the three."""
        was_training = model.training
        model.eval()
        mine = self.numbers[rank() :: world_size()]
        curves = [self._dsc_curve(model, number) for number in mine]
        model.train(was_training)
        sums = {f"dsc_{n}": sum(curve[n - 1] for curve in curves) for n in SCORED_CLICKS}
        sums = mean_over_ranks(sums | {"count": float(len(curves))}, self.device)
        count = sums.pop("count")
        means = {key: float(value / count) for key, value in sums.items()}
        return means | {"score": sum(means.values()) / len(means)}

    @torch.inference_mode()
    def _dsc_curve(self, model: Sam3D, number: int) -> list[float]:
        item = self.dataset[number]
        truth = item["label"][0].numpy()
        with autocast(self.device, self.precision):
            embedding = model.image_encoder(item["image"][None].to(self.device))
        interaction = Interaction(model, embedding)
        mask, curve = np.zeros_like(truth), []
        for _ in range(max(SCORED_CLICKS)):
            click = challenge_click(mask, truth)
            if click is not None:
                point = torch.tensor([click.zyx], dtype=torch.float32, device=self.device)
                label = torch.tensor([int(click.is_foreground)], device=self.device)
                with autocast(self.device, self.precision):
                    interaction.click(point, label)
                logits = upsample(interaction.low_res_masks, truth.shape[0])[0, 0]
                mask = (logits > model.mask_threshold).cpu().numpy()
            curve.append(dsc(truth, mask))
        return curve


def add_crop_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `open_validation`; ``--validate-every`` is the trainer's."""
    group = parser.add_argument_group("validation, where --validate-every is given")
    group.add_argument(
        "--val-datas",
        type=Path,
        nargs="+",
        default=val_datas,
        metavar="DIR",
        help="prepared <organ>/<data set> folders of other patients "
        "(default: val_datas of utils/data_paths.py)",
    )
    group.add_argument(
        "--val-share",
        type=share_below_one,
        default=0.0,
        help="instead of --val-datas, hold out this share of the patients in --crops-dir; use "
        "the same share for teacher and student (default: 0)",
    )
    group.add_argument(
        "--val-crops",
        type=non_negative_int,
        default=64,
        help="number of crops to score, evenly spaced over all; 0 = all (default: 64)",
    )


def build_validation_cache(args: argparse.Namespace, *, keep: bool) -> None:
    """Build the crop cache of ``--val-datas`` beside ``--crops-dir``; call it before ranks join.

    Args:
        keep: use an existing cache unchanged, without reading a NIfTI file.

    Raises:
        InputError: flags of the validation are given without ``--validate-every``.
    """
    if not args.validate_every and (args.val_share or args.patience):
        raise InputError(
            "--val-share, --patience: found without --validate-every, so that nothing is "
            "validated; expected --validate-every too. Give --validate-every N, the steps between "
            "validations."
        )
    if not args.validate_every or args.val_share or rank() > 0:
        return
    if keep and (_folder(args) / INDEX).exists():
        return
    with owning(_folder(args)):
        index = build_cache(args.val_datas, _folder(args), workers=max(1, args.workers))
    for failure in index.failures:
        logger.warning("left out of the validation: %s", failure)


def open_validation(
    args: argparse.Namespace, index: CropIndex, rule: CropRule, device: torch.device
) -> tuple[CropIndex, CropValidation | None]:
    """Return the crops to train on and, with ``--validate-every``, the validation."""
    if not args.validate_every:
        return index, None
    if args.val_share:
        index, held_out = split_by_patient(index, args.val_share)
    else:
        held_out = read_index(_folder(args))
    precision = pick_precision(args.precision, device)
    validation = CropValidation(
        held_out, index, rule, most=args.val_crops, device=device, precision=precision
    )
    return index, validation


def split_by_patient(index: CropIndex, share: float) -> tuple[CropIndex, CropIndex]:
    """Hold out about ``share`` of the patients; return the training and the held-out targets.

    A patient is identified by the case's name without the data set's name, so that all organs and
    modalities of a patient stay together. The split depends on this name alone; it is the same in
    every run and on every rank.

    Raises:
        InputError: no target is left to train on, or none to validate on.
    """

    def is_held_out(sample: dict) -> bool:
        patient = sample["case"].rsplit("/", 1)[-1].removeprefix(sample["dataset"])
        return zlib.crc32(patient.encode()) < share * 2**32

    kept = [s for s in index.samples if not is_held_out(s)]
    held_out = [s for s in index.samples if is_held_out(s)]
    if not kept or not held_out:
        raise InputError(
            f"--val-share {share}: {len(kept)} targets to train on and {len(held_out)} to validate "
            "on; expected at least one of each. Give another share, or --val-datas."
        )
    return replace(index, samples=kept), replace(index, samples=held_out)


def _folder(args: argparse.Namespace) -> Path:
    return args.crops_dir.with_name(f"{args.crops_dir.name}_val")


def _require_other_cases(index: CropIndex, train: CropIndex) -> None:
    """Raise an `InputError` if a case is in both indices, with the same or another organ."""

    def cases(samples: Sequence[dict]) -> set[tuple[str, str]]:
        return {(s["dataset"], s["case"].rsplit("/", 1)[-1]) for s in samples}

    both = sorted(cases(index.samples) & cases(train.samples))
    if both:
        raise InputError(
            f"{index.folder}: {len(both)} cases are in {train.folder} too, {both[0]} first. "
            "Expected cases that are not trained on: correct --img-datas or --val-datas."
        )
