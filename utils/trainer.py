"""The one training loop: steps, accumulation, mixed precision, checkpoints, metrics.jsonl.

A run is a fixed number of optimizer steps. Everything random in step n follows from the seed and n,
so a resumed run continues with the batches, clicks and augmentations it would have had.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.checkpoint import load_training_state, save_checkpoint
from utils.data_loader import BalancedBatches, make_loader
from utils.errors import InputError
from utils.pictures import draw_training_curve
from utils.runtime import add_run_arguments, autocast, pick_precision

logger = logging.getLogger(__name__)


class DivergedError(InputError):
    """The loss is not a finite number."""


@dataclass(frozen=True)
class FitConfig:
    """How to train; the fields are the flags of preparelabel.py and distillation.py."""

    steps: int
    batch_size: int
    accumulation: int
    lr: float
    weight_decay: float
    warmup: float
    clip: float
    save_minutes: float
    workers: int
    seed: int
    precision: torch.dtype


@dataclass(frozen=True)
class FitReport:
    """What was learned and where it lies."""

    path: Path
    steps: int
    first_loss: float
    last_loss: float
    minutes: float


def add_training_arguments(
    parser: argparse.ArgumentParser, *, steps: int, batch_size: int, lr: float
) -> None:
    """Add the flags behind `FitConfig`, and those of every run."""
    training = parser.add_argument_group("training")
    training.add_argument(
        "--steps", type=int, default=steps, help=f"optimizer steps (default: {steps})"
    )
    training.add_argument(
        "--batch-size", type=int, default=batch_size, help=f"crops a pass (default: {batch_size})"
    )
    training.add_argument(
        "--accumulation", type=int, default=1, help="passes an optimizer step (default: 1)"
    )
    training.add_argument("--lr", type=float, default=lr, help=f"AdamW's rate (default: {lr})")
    training.add_argument("--weight-decay", type=float, default=0.1, help="(default: 0.1)")
    training.add_argument(
        "--warmup", type=float, default=0.05, help="share of the steps; 0 = none (default: 0.05)"
    )
    training.add_argument(
        "--clip", type=float, default=1.0, help="largest gradient norm (default: 1)"
    )
    training.add_argument(
        "--save-minutes", type=float, default=10, help="minutes between saves (default: 10)"
    )
    training.add_argument(
        "--workers", type=int, default=2, help="loader processes; 0 = none (default: 2)"
    )
    training.add_argument(
        "--resume", action="store_true", help="go on from OUT_DIR/last.pt if it is there"
    )
    add_run_arguments(parser)


def fit_config(args: argparse.Namespace, device: torch.device) -> FitConfig:
    """Collect the flags of `add_training_arguments`."""
    return FitConfig(
        steps=args.steps,
        batch_size=args.batch_size,
        accumulation=args.accumulation,
        lr=args.lr,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        clip=args.clip,
        save_minutes=args.save_minutes,
        workers=args.workers,
        seed=args.seed,
        precision=pick_precision(args.precision, device),
    )


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` share of the steps, then a cosine down to 0."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def fit(
    task: nn.Module,
    dataset: Dataset,
    samples: list[dict],
    config: FitConfig,
    out_dir: Path,
    *,
    device: torch.device,
    payload: Callable[[], dict],
    resume: bool,
) -> FitReport:
    """Train ``task`` on ``dataset`` and leave ``last.pt``, ``metrics.jsonl`` and ``loss.png``.

    Args:
        samples: the dataset's index rows, which decide how often each is drawn.
        payload: returns what the checkpoint holds besides the training state (weights, config).
        resume: continue from ``out_dir/last.pt`` if it is there.

    Raises:
        DivergedError: the loss is not finite; names the step and the samples.
    """
    task.to(device).train()
    optimizer = torch.optim.AdamW(
        task.parameter_groups(config.lr), weight_decay=config.weight_decay, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, config.steps, config.warmup)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == torch.float16)
    state = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    last = out_dir / "last.pt"
    start = load_training_state(last, task.model, state) if resume and last.exists() else 0
    if start >= config.steps:
        raise InputError(f"{last}: has {start} steps already, --steps is {config.steps}.")

    micro = config.accumulation
    batches = BalancedBatches(
        samples, config.batch_size, config.steps * micro, config.seed, start * micro
    )
    loader = make_loader(dataset, batches, config.workers)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    recorder = _Recorder(out_dir / "metrics.jsonl", start)
    saved_at = began = time.monotonic()

    # tqdm writes to stderr; the log shares it, so the bar alone reports single steps.
    progress = tqdm(total=config.steps, initial=start, desc=out_dir.name, unit="step")
    for number, batch in enumerate(loader, start=start * micro):
        step, part = divmod(number, micro)
        with autocast(device, config.precision):
            report = task(_to_device(batch, device), number)
        if not torch.isfinite(report["loss"]):
            raise DivergedError(
                f"loss is {report['loss'].item()} at step {step}, samples {batch['id']}.\n"
                f"Expected a finite one: look at these crops, lower --lr or use float32; "
                f"{last} holds the last saved state."
            )
        scaler.scale(report["loss"] / micro).backward()
        recorder.add(report)
        if part + 1 < micro:
            continue

        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        lr = schedule.get_last_lr()[0]
        schedule.step()

        row = recorder.flush(step=step + 1, lr=lr, gradient_norm=float(norm))
        progress.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        progress.update()
        if time.monotonic() - saved_at > 60 * config.save_minutes:
            save_checkpoint(last, payload(), step + 1, state)
            saved_at = time.monotonic()
    progress.close()

    save_checkpoint(last, payload(), config.steps, state)
    draw_training_curve(out_dir / "loss.png", recorder.path)
    minutes = (time.monotonic() - began) / 60
    logger.info("%d steps in %.1f min -> %s", config.steps - start, minutes, last)
    return FitReport(last, config.steps, recorder.first_loss, recorder.recent_loss, minutes)


class _Recorder:
    """Collects one step's scalars over its micro-batches and appends a line to metrics.jsonl."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        kept = []
        if start and path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= start]
        path.write_text("".join(line + "\n" for line in kept))
        self._losses = [json.loads(line)["loss"] for line in kept]
        self._pending: list[dict[str, float]] = []

    def add(self, report: dict[str, Tensor]) -> None:
        self._pending.append({key: float(value.detach()) for key, value in report.items()})

    def flush(self, **more: float) -> dict:
        means = {
            key: sum(p[key] for p in self._pending) / len(self._pending) for key in self._pending[0]
        }
        self._pending = []
        row = {key: more[key] for key in ("step",)} | means | more
        self._losses.append(row["loss"])
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    @property
    def first_loss(self) -> float:
        return self._losses[0]

    @property
    def recent_loss(self) -> float:
        recent = self._losses[-20:]
        return sum(recent) / len(recent)


def _to_device(batch: dict, device: torch.device) -> dict:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
