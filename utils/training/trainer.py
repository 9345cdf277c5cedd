"""The one training loop: steps, accumulation, mixed precision, checkpoints, metrics.jsonl.

A run is a fixed number of optimizer steps. Everything random in step n follows from the seed and n,
so a resumed run continues with the batches, clicks and augmentations it would have had. Under
torchrun each rank has its share of every batch, and the gradient is the mean over the ranks: n
ranks of batch b take the steps of one rank of batch n * b. Rank 0 writes.
"""

import argparse
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from segment_anything import autocast
from utils.errors import InputError
from utils.results.curves import training_curve_figure, validation_curve_figure
from utils.results.figures import save
from utils.run.device import pick_precision
from utils.run.flags import add_run_arguments, non_negative_int, positive_int
from utils.run.ranks import mean_over_ranks, rank, shared, wait_for_all, world_size
from utils.training.checkpoint import load_training_state, save_checkpoint
from utils.training.data_loader import BalancedBatches, make_loader
from utils.training.json_lines import append_row, resume_rows
from utils.training.selection import Selection
from utils.training.tasks import Task

logger = logging.getLogger(__name__)


#: Learning rates as shares of ``--lr``, by the share of the steps that is done.
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "steps": lambda done: 1.0 if done < 0.6 else 0.1 if done < 0.9 else 0.01,
}


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
    lr_schedule: str
    warmup: float
    clip: float
    validate_every: int
    patience: int
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
    best: Path | None = None  # the best checkpoint by validation, where there was one


def add_training_arguments(
    parser: argparse.ArgumentParser, *, steps: int, batch_size: int, lr: float, lr_schedule: str
) -> None:
    """Add the flags behind `FitConfig`, and those of every run."""
    training = parser.add_argument_group("training")
    training.add_argument(
        "--steps", type=non_negative_int, default=steps, help=f"optimizer steps (default: {steps})"
    )
    training.add_argument(
        "--batch-size",
        type=positive_int,
        default=batch_size,
        help=f"crops a pass, of each rank (default: {batch_size})",
    )
    training.add_argument(
        "--accumulation", type=positive_int, default=1, help="passes an optimizer step (default: 1)"
    )
    training.add_argument("--lr", type=float, default=lr, help=f"AdamW's rate (default: {lr})")
    training.add_argument(
        "--lr-schedule",
        choices=sorted(LR_SCHEDULES),
        default=lr_schedule,
        help="cosine: down to 0; steps: a tenth after 60 %% of the steps, a hundredth after 90 %%, "
        f"as SAM-Med3D was trained (default: {lr_schedule})",
    )
    training.add_argument(
        "--warmup",
        type=float,
        default=0.05,
        help="share of the steps in which the rate rises from 0; 0 = none (default: 0.05)",
    )
    training.add_argument("--weight-decay", type=float, default=0.1, help="(default: 0.1)")
    training.add_argument(
        "--clip", type=float, default=1.0, help="largest gradient norm (default: 1)"
    )
    training.add_argument(
        "--validate-every",
        type=non_negative_int,
        default=0,
        help="steps between validations; best.pt is the best by them; 0 = none (default: 0)",
    )
    training.add_argument(
        "--patience",
        type=non_negative_int,
        default=0,
        help="stop after so many validations without a better one; 0 = never (default: 0)",
    )
    training.add_argument(
        "--save-minutes", type=float, default=10, help="minutes between saves (default: 10)"
    )
    training.add_argument(
        "--workers",
        type=non_negative_int,
        default=2,
        help="loader processes; 0 = none (default: 2)",
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
        lr_schedule=args.lr_schedule,
        warmup=args.warmup,
        clip=args.clip,
        validate_every=args.validate_every,
        patience=args.patience,
        save_minutes=args.save_minutes,
        workers=args.workers,
        seed=args.seed,
        precision=pick_precision(args.precision, device),
    )


def lr_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Linear warm-up over the first ``warmup`` share of the steps, then down by ``schedule``."""
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return LR_SCHEDULES[schedule]((step - warm) / max(1, steps - warm))


def fit(
    task: Task,
    dataset: Dataset,
    samples: list[dict],
    config: FitConfig,
    out_dir: Path,
    *,
    device: torch.device,
    payload: Callable[[], dict],
    resume: bool,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> FitReport:
    """Train ``task`` on ``dataset`` and leave ``last.pt``, ``metrics.jsonl`` and ``loss.png``.

    With ``validate``, also ``best.pt``, ``validation.jsonl`` and ``validation.png``. Scalars go to
    TensorBoard too.

    Args:
        samples: the dataset's index rows, which decide how often each is drawn.
        payload: returns what the checkpoint holds besides the training state (weights, config).
        resume: continue from ``out_dir/last.pt`` if it is there.
        validate: scores the network; the higher its ``score``, the better.

    Raises:
        DivergedError: loss or gradient is not finite; names the step and the samples.
        InputError: a sample cannot be read, or ``last.pt`` is not of this run.
    """
    task.to(device).train()
    state = _optimizer(task, config, device)
    last = out_dir / "last.pt"
    start = _restore(last, task.model, state, payload(), config.steps) if resume else 0
    if last.exists() and not resume:
        raise InputError(
            f"{last}: holds the network of an earlier run, expected no such file.\n"
            "Go on with it by --resume, choose another --out-dir, or move it away."
        )
    recorder = _Recorder(out_dir / "metrics.jsonl", start, device)
    selection = Selection(out_dir, start, config.patience)
    wait_for_all()  # all have read last.pt before rank 0 writes another
    began = saved_at = time.monotonic()
    progress = tqdm(
        total=config.steps, initial=start, desc=out_dir.name, unit="step", disable=rank() > 0
    )
    parallel, stage, done = None, None, start
    for step, batches in _steps(dataset, samples, config, start):
        if selection.has_stalled:
            logger.info("no better validation %d times: stopped at step %d", config.patience, done)
            break
        if parallel is None or task.stage(step) != stage:
            stage, parallel = task.stage(step), None
            gc.collect()  # the old one lets go of its parameters
            task.begin(stage)
            parallel = shared(task, device)
        lr = state["schedule"].get_last_lr()[0]
        norm = _optimize(parallel, batches, step, state, config, device, recorder)
        row = recorder.flush(step=step + 1, lr=lr, gradient_norm=norm)
        progress.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        progress.update()
        done = step + 1
        is_due = config.validate_every and done % config.validate_every == 0
        if validate and (is_due or done == config.steps) and task.is_scored(stage):
            selection.add(done, validate(task.model), payload)
        if rank() == 0 and time.monotonic() - saved_at > 60 * config.save_minutes:
            save_checkpoint(last, payload(), done, state)
            saved_at = time.monotonic()
    progress.close()
    if start < done and rank() == 0:
        save_checkpoint(last, payload(), done, state)
        save(training_curve_figure(recorder.path), out_dir / "loss.png")
        if selection.rows:
            save(validation_curve_figure(selection.rows), out_dir / "validation.png")
    recorder.close()
    wait_for_all()
    minutes = (time.monotonic() - began) / 60
    logger.info("%d steps in %.1f min -> %s", done - start, minutes, last)
    best = selection.best if validate else None
    return FitReport(last, done, recorder.first_loss, recorder.recent_loss, minutes, best)


def _restore(last: Path, model: nn.Module, state: dict, payload: dict, steps: int) -> int:
    """Go back to where ``last`` was saved, if it is there; return the steps done."""
    if not last.exists():
        return 0
    start = load_training_state(last, model, state, payload)
    if start > steps:
        raise InputError(
            f"{last}: has {start} steps already, expected at most --steps {steps}.\n"
            "Give the --steps of the stopped run, or train anew in another --out-dir."
        )
    return start


def _optimizer(task: Task, config: FitConfig, device: torch.device) -> dict:
    """Return what has state between steps: optimizer, schedule and loss scaler."""
    optimizer = torch.optim.AdamW(
        task.parameter_groups(config.lr), weight_decay=config.weight_decay, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, config.steps, config.warmup, config.lr_schedule)
    )
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == torch.float16)
    return {"optimizer": optimizer, "schedule": schedule, "scaler": scaler}


def _steps(
    dataset: Dataset, samples: list[dict], config: FitConfig, start: int
) -> Iterator[tuple[int, list[dict]]]:
    """Yield each step's number and its micro-batches, from step ``start`` on."""
    batches = BalancedBatches(
        samples,
        config.batch_size,
        config.steps,
        config.seed,
        start,
        passes=config.accumulation,
        rank=rank(),
        world=world_size(),
    )
    loader = iter(make_loader(dataset, batches, config.workers))
    for step in range(start, config.steps):
        yield step, [next(loader) for _ in range(config.accumulation)]


def _optimize(
    task: nn.Module,
    batches: list[dict],
    step: int,
    state: dict,
    config: FitConfig,
    device: torch.device,
    recorder: "_Recorder",
) -> float:
    """Take one optimizer step over the micro-batches; return the gradient's norm."""
    optimizer, scaler = state["optimizer"], state["scaler"]
    for part, batch in enumerate(batches):
        if "error" in batch:
            raise InputError(batch["error"])
        # Ranks add up their gradients once a step, at the last pass.
        waiting = world_size() > 1 and part + 1 < len(batches)
        with task.no_sync() if waiting else nullcontext():
            with autocast(device, config.precision):
                report = task(_to_device(batch, device))
            _require_finite("loss", float(report["loss"].detach()), step, batch["id"])
            scaler.scale(report["loss"] / len(batches)).backward()
        recorder.add(report)
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, config.clip))
    if not scaler.is_enabled():  # a scaler skips such steps by itself
        _require_finite("gradient", norm, step, [i for batch in batches for i in batch["id"]])
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    state["schedule"].step()
    return norm


def _require_finite(what: str, value: float, step: int, sample_ids: list[str]) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            f"{what} is {value} at step {step}, samples {sample_ids}.\n"
            "Expected a finite one: look at these crops, lower --lr, or use --precision float32; "
            "the checkpoint saved before holds finite weights."
        )


class _Recorder:
    """Collects one step's scalars over micro-batches and ranks; rank 0 adds to metrics.jsonl."""

    def __init__(self, path: Path, start: int, device: torch.device) -> None:
        self.path, self._device = path, device
        self._losses = [row["loss"] for row in resume_rows(path, start)]
        self._pending: list[dict[str, float]] = []
        self._board = None
        if rank() == 0:
            from torch.utils.tensorboard import SummaryWriter  # takes a second

            self._board = SummaryWriter(path.parent, purge_step=start + 1)

    def close(self) -> None:
        """Write out what TensorBoard still holds back."""
        if self._board:
            self._board.close()

    def add(self, report: dict[str, Tensor]) -> None:
        self._pending.append({key: float(value.detach()) for key, value in report.items()})

    def flush(self, *, step: int, **more: float) -> dict:
        means = {
            key: sum(p[key] for p in self._pending) / len(self._pending) for key in self._pending[0]
        }
        self._pending = []
        row = {"step": step} | mean_over_ranks(means, self._device) | more
        self._losses.append(row["loss"])
        append_row(self.path, row)
        if self._board:
            for key, value in row.items():
                self._board.add_scalar(key, value, step)
        return row

    @property
    def first_loss(self) -> float:
        return self._losses[0] if self._losses else math.nan

    @property
    def recent_loss(self) -> float:
        recent = self._losses[-20:]
        return sum(recent) / len(recent) if recent else math.nan


def _to_device(batch: dict, device: torch.device) -> dict:
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
