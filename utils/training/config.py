"""How a training runs: `FitConfig`, the flags behind it, and the learning rate of each step."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from utils.errors import InputError, require_number
from utils.run.device import pick_precision
from utils.run.flags import (
    MAX_SEED,
    add_run_arguments,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    share,
)

#: Learning rate as a share of ``--lr``, given the share done of the steps after the warm-up.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "steps": lambda done: 1.0 if done < 0.6 else 0.1 if done < 0.9 else 0.01,
}
OPTIMIZERS = ("adamw", "muon")
#: Equal parts of a run with ``--minutes``, on which its schedule is defined. In a run with
#: ``--steps`` each step is a part.
TIME_PARTS = 1000


@dataclass(frozen=True)
class FitConfig:
    """How to train; the fields are the flags of preparelabel.py and distillation.py.

    Each field's meaning and unit is the help text of its flag.

    Raises:
        InputError: a field is out of its range, or not exactly one of steps and minutes is given.
    """

    steps: int | None  # None with minutes
    batch_size: int
    lr: float
    accumulation: int = 1
    weight_decay: float = 0.1
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 1.0
    validate_every: int = 0
    patience: int = 0
    save_minutes: float = 10
    workers: int = 2
    seed: int = 0
    precision: torch.dtype = torch.float32
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise InputError(
                f"--steps, --minutes: found {self.steps} and {self.minutes}, expected one of the "
                "two. Leave the other out."
            )
        if self.minutes is None:
            require_number("--steps", self.steps, 0, whole=True)
        else:
            require_number("--minutes", self.minutes, 0, above=True)
        require_number("--batch-size", self.batch_size, 1, whole=True)
        require_number("--accumulation", self.accumulation, 1, whole=True)
        require_number("--lr", self.lr, 0, above=True)
        require_number("--weight-decay", self.weight_decay, 0)
        require_number("--warmup", self.warmup, 0, 1)
        require_number("--clip", self.clip, 0, above=True)
        require_number("--validate-every", self.validate_every, 0, whole=True)
        require_number("--patience", self.patience, 0, whole=True)
        require_number("--save-minutes", self.save_minutes, 0)
        require_number("--workers", self.workers, 0, whole=True)
        require_number("--seed", self.seed, 0, MAX_SEED, whole=True)
        for name, choices in (("lr_schedule", LR_SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"--{name.replace('_', '-')}: found {getattr(self, name)!r}, expected one of "
                    f"{', '.join(choices)}."
                )

    @property
    def parts(self) -> int:
        """Equal parts of the run on which its schedule is defined: its steps, or `TIME_PARTS`."""
        return TIME_PARTS if self.steps is None else self.steps


def add_training_arguments(
    parser: argparse.ArgumentParser, *, steps: int, batch_size: int, lr: float, lr_schedule: str
) -> None:
    """Add the flags behind `FitConfig`, ``--resume``, and the flags of every run."""
    training = parser.add_argument_group("training")
    length = training.add_mutually_exclusive_group()
    length.add_argument(
        "--steps",
        type=non_negative_int,
        default=steps,
        help="optimizer steps (default: %(default)s)",
    )
    length.add_argument(
        "--minutes",
        type=positive_float,
        action=_InsteadOfSteps,
        help="minutes of the training, instead of --steps: learning rate and stages follow the "
        "time, and the run ends in time with everything saved (default: none)",
    )
    training.add_argument(
        "--batch-size",
        type=positive_int,
        default=batch_size,
        help="crops in a forward pass on each rank (default: %(default)s)",
    )
    training.add_argument(
        "--accumulation",
        type=positive_int,
        default=FitConfig.accumulation,
        help="forward passes in an optimizer step (default: %(default)s)",
    )
    _add_rate_arguments(training, lr, lr_schedule)
    _add_progress_arguments(training)
    add_run_arguments(parser)


class _InsteadOfSteps(argparse.Action):
    """Stores the minutes, and None in place of the default of ``--steps``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.minutes, namespace.steps = values, None


def _add_rate_arguments(training: argparse._ArgumentGroup, lr: float, lr_schedule: str) -> None:
    training.add_argument(
        "--lr",
        type=positive_float,
        default=lr,
        help="learning rate (default: %(default)s)",
    )
    training.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        default=FitConfig.optimizer,
        help="muon: Muon for the weights of linear layers and convolutions, AdamW for the rest; "
        "better for short trainings from scratch (default: %(default)s)",
    )
    training.add_argument(
        "--lr-schedule",
        choices=sorted(LR_SCHEDULES),
        default=lr_schedule,
        help="after the warm-up; constant: --lr; cosine: down to 0; steps: a tenth after 60 %% of "
        "the rest of the run, a hundredth after 90 %%, as SAM-Med3D was trained "
        "(default: %(default)s)",
    )
    training.add_argument(
        "--warmup",
        type=share,
        default=FitConfig.warmup,
        help="share of the run in which the rate rises linearly; 0 = none (default: %(default)s)",
    )
    training.add_argument(
        "--weight-decay",
        type=non_negative_float,
        default=FitConfig.weight_decay,
        help="weight decay (default: %(default)s)",
    )
    training.add_argument(
        "--clip",
        type=positive_float,
        default=FitConfig.clip,
        help="largest gradient norm (default: %(default)s)",
    )


def _add_progress_arguments(training: argparse._ArgumentGroup) -> None:
    training.add_argument(
        "--validate-every",
        type=non_negative_int,
        default=FitConfig.validate_every,
        help="steps between validations, which choose best.pt; 0 = none (default: %(default)s)",
    )
    training.add_argument(
        "--patience",
        type=non_negative_int,
        default=FitConfig.patience,
        help="stop after this many validations without a new best score; 0 = never "
        "(default: %(default)s)",
    )
    training.add_argument(
        "--save-minutes",
        type=non_negative_float,
        default=FitConfig.save_minutes,
        help="minutes between saves of last.pt (default: %(default)s)",
    )
    training.add_argument(
        "--workers",
        type=non_negative_int,
        default=FitConfig.workers,
        help="processes that load batches; 0 = none (default: %(default)s)",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="resume from OUT_DIR/last.pt if it exists",
    )


def fit_config(args: argparse.Namespace, device: torch.device) -> FitConfig:
    """Collect the flags of `add_training_arguments`; ``auto`` precision depends on ``device``."""
    values = {field.name: getattr(args, field.name) for field in fields(FitConfig)}
    return FitConfig(**values | {"precision": pick_precision(args.precision, device)})


def part_of(done: float, parts: int) -> float:
    """Return the place of ``done`` among equal parts of a run: ``done * parts``.

    The result is whole at the beginning of a part, without an error of rounding.
    """
    return round(done * parts, 6)


def lr_factor(done: float, parts: int, warmup: float, schedule: str) -> float:
    """Return the share of the full learning rate where the share ``done`` of a run is done.

    The rate rises linearly in the first ``warmup`` share of the run, then follows ``schedule``.

    Args:
        parts: `FitConfig.parts`. The rate of the warm-up is that at the end of a part, so that the
            first is not 0.

    >>> [round(lr_factor(step / 10, 10, 0.2, "cosine"), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    part, warm = part_of(done, parts), round(warmup * parts)
    if part < warm:
        return min(1.0, (part + 1) / warm)
    return LR_SCHEDULES[schedule]((part - warm) / max(1, parts - warm))
