"""The one training loop, for teacher and student: steps, mixed precision, checkpoints, metrics.

A run has a fixed number of optimizer steps, or as many as fit into its minutes; with --patience
fewer. All random choices of step n follow from the seed and n alone. A resumed run therefore has
the same batches, clicks and augmentations as an uninterrupted run. Learning rate, stages and what
fades follow from the share of the run that is done (utils/training/progress.py). Under torchrun
each rank takes its share of every batch, and the gradient is the mean over the ranks: n ranks with
batch size b take the same steps as one rank with batch size n * b. Rank 0 alone writes files.
"""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.errors import InputError
from utils.results.curves import training_curve_figure, validation_curve_figure
from utils.results.figures import save
from utils.run.ranks import rank, shared, wait_for_all, world_size
from utils.training.checkpoint import load_training_state, save_checkpoint
from utils.training.config import FitConfig
from utils.training.data_loader import BalancedBatches, make_loader
from utils.training.definition import definition, stages_done
from utils.training.optimizer import Optimizer
from utils.training.progress import Clock, Progress
from utils.training.recorder import Recorder
from utils.training.selection import BEST, LOG, Selection
from utils.training.tasks import Task

logger = logging.getLogger(__name__)

#: The files that `fit` writes, beside TensorBoard's events, whose names are unique.
WRITES = ("last.pt", BEST, "metrics.jsonl", LOG, "loss.png", "validation.png")

SLOW_DISK = 100e6  # bytes per second
STARVED = 0.2  # share of the steps' time in which they wait for the loader that is too much

#: Returns a network's scores by name; of two networks the one with the higher ``score`` is better.
Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class FitReport:
    """What `fit` returns: losses, time, and the paths of the checkpoints."""

    path: Path  # last.pt
    steps: int  # optimizer steps done, including steps before a resumed start
    first_loss: float
    last_loss: float  # mean over the last 20 steps
    minutes: float  # of this call
    waited: float  # share of the steps' time in which they waited for the loader; NaN if unknown
    best: Path | None = None  # best.pt; None without a validation


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
    validate: Validate | None = None,
    defines: Mapping[str, object] | None = None,
    begun: Callable[[], None] = lambda: None,
    clock: Clock = time.monotonic,
) -> FitReport:
    """Train ``task.model`` in place, on draws from ``dataset``.

    Writes ``last.pt`` (weights and optimizer), ``metrics.jsonl``, ``loss.png`` and TensorBoard's
    events; with ``validate`` also ``best.pt``, ``validation.jsonl`` and ``validation.png``::

        index, model = read_index(Path("work_dir/crops")), sam_model_registry3D["tiny"]()
        fit(
            InteractiveTask(model, num_clicks=4, loss_size=64, seed=0),
            CropDataset(index, CropRule(), augment="basic"), index.samples,
            FitConfig(steps=1500, batch_size=4, lr=8e-4), Path("work_dir/teacher"),
            device=torch.device("cpu"), payload=lambda: checkpoint_payload(model), resume=False,
        )

    Args:
        dataset: indexed by `Draw`; items are dicts with ``id``, which `collate` joins to a batch.
        samples: the dataset's rows; `BalancedBatches` weights them by ``organ`` and ``dataset``.
        out_dir: an existing folder.
        payload: returns a checkpoint's content without the training state: weights, config.
        resume: resume from ``out_dir/last.pt`` if it exists.
        validate: called every ``config.validate_every`` steps and after the last.
        defines: further values that define the run, by flag: a run with others is not resumed.
        begun: called once the run may start: ``out_dir`` is free, or is resumed with its flags.
        clock: the time in seconds, by which the minutes are counted.

    Raises:
        DivergedError: loss or gradient is not finite; the message names step and samples.
        InputError: a sample cannot be read, or ``last.pt`` is damaged or belongs to another run.
        WriteError: the disk is full, or ``out_dir`` cannot be written to.
    """
    defined = definition(config, samples, defines or {})
    measures = {"save_seconds": _save_seconds(task), "clock": clock}
    progress = Progress(config, validates=validate is not None, device=device, **measures)
    run = _Run(task, config, out_dir, progress, device, payload, resume, defined)
    wait_for_all()  # every rank has read last.pt before rank 0 replaces it
    begun()
    with closing(_batches(dataset, samples, config, progress)) as loaded:
        run.train(loaded, validate)
    run.finish()
    return run.report(validate is not None)


class _Run:
    """One call of `fit`: its network, optimizer, log, validations and checkpoint."""

    def __init__(
        self,
        task: Task,
        config: FitConfig,
        out_dir: Path,
        progress: Progress,
        device: torch.device,
        payload: Callable[[], dict],
        resume: bool,
        defined: dict[str, object],
    ) -> None:
        self.task, self.progress = task.to(device).train(), progress
        self.config, self.out_dir, self.device, self.payload = config, out_dir, device, payload
        self.last = out_dir / "last.pt"
        self.optimizer, self._defined = Optimizer(task, config, device), defined
        self._restore() if resume else self._require_new()
        self.start = progress.taken
        self.recorder = Recorder(out_dir / "metrics.jsonl", self.start, device)
        self.selection = Selection(out_dir, self.start, config.patience)
        self.stage, self._wrapped = None, None
        self.saved_at = progress.clock()

    def train(self, loaded: Iterator[list[dict]], validate: Validate | None) -> None:
        """Take the steps; validate and save where they are due."""
        config, progress = self.config, self.progress
        bar = _bar(config, self.out_dir.name, self.start)
        progress.start()
        while not self._has_stalled() and progress.begin_step():
            row = self._take_step(loaded)
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            counted = progress.taken if config.minutes is None else row["minutes"]
            bar.update(counted - bar.n)
            if config.validate_every and progress.taken % config.validate_every == 0:
                self._validate(validate)
            if rank() == 0 and progress.clock() - self.saved_at > 60 * config.save_minutes:
                self._save()
        bar.close()
        self._validate(validate)

    def finish(self) -> None:
        """Save, draw the curves, close the logs."""
        if self.start < self.progress.taken and rank() == 0:
            self._save()
            save(training_curve_figure(self.recorder.path), self.out_dir / "loss.png")
            if self.selection.rows:
                figure = validation_curve_figure(self.selection.rows)
                save(figure, self.out_dir / "validation.png")
        self.recorder.close()
        wait_for_all()

    def report(self, was_validated: bool) -> FitReport:
        """Return the report of the run."""
        taken, minutes = self.progress.taken, self.progress.minutes_of_call
        logger.info("%d steps in %.1f min -> %s", taken - self.start, minutes, self.last)
        waited = self.recorder.waited
        if not math.isnan(waited):
            logger.info("the steps waited for the loader %.0f %% of their time", 100 * waited)
        if waited > STARVED:
            logger.warning(
                "the steps waited for the loader %.0f %% of their time; expected at most %.0f %%. "
                "Give more --workers than %d, if there are cores for them",
                *(100 * waited, 100 * STARVED, self.config.workers),
            )
        losses = self.recorder.first_loss, self.recorder.recent_loss
        best = self.selection.best if was_validated else None
        return FitReport(self.last, taken, *losses, minutes, waited, best)

    def _has_stalled(self) -> bool:
        if self.selection.has_stalled:
            logger.info(
                "stopped at step %d: the last %d validations did not exceed an earlier one",
                self.progress.taken,
                self.config.patience,
            )
        return self.selection.has_stalled

    def _take_step(self, loaded: Iterator[list[dict]]) -> dict:
        """Take one optimizer step; return its row in metrics.jsonl."""
        progress, clock = self.progress, self.progress.clock
        began = clock()
        batches = next(loaded)
        ready = clock()
        task = self._task_of_stage()
        self.task.advance(progress.done)
        lr = self.optimizer.set_rate(progress.done)
        scalars, norm = self.optimizer.take_step(task, progress.taken, batches)
        ended = clock()
        progress.end_step(ended - began)
        return self.recorder.add(
            scalars,
            step=progress.taken,
            lr=lr,
            gradient_norm=norm,
            done=progress.done,
            minutes=round(progress.minutes, 4),
            wait_seconds=ready - began,
            step_seconds=ended - ready,
        )

    def _task_of_stage(self) -> nn.Module:
        """Return the task prepared for the stage of this step; several ranks get it in DDP."""
        stage = self.task.stage(self.progress.done)
        if self._wrapped is None or stage != self.stage:
            self.stage, self._wrapped = stage, None
            gc.collect()  # frees the old DDP wrapper and its hooks
            self.task.begin(stage)
            self._wrapped = shared(self.task, self.device)
        return self._wrapped

    def _validate(self, validate: Validate | None) -> None:
        """Validate, unless this step or this stage needs none."""
        step, rows = self.progress.taken, self.selection.rows
        if not validate or not step or (rows and rows[-1]["step"] == step):
            return
        stage = self.stage if step > self.start else self.task.stage(self.progress.done)
        if self.task.is_scored(stage):
            with self.progress.validating():
                self.selection.add(step, validate(self.task.model), self.payload)

    def _save(self) -> None:
        with self.progress.saving():
            run = self._definition_at(self.progress.taken)
            save_checkpoint(self.last, self.payload(), self.optimizer, self.progress, run)
        self.saved_at = self.progress.clock()

    def _definition_at(self, taken: int) -> dict[str, object]:
        """Return what defines the run, with the stages of the steps taken."""
        self._require_steps_within(taken)
        return self._defined | {"stages": stages_done(self.task, taken, self.config.steps)}

    def _restore(self) -> None:
        """Load ``last.pt`` if it exists."""
        if self.last.exists():
            state = self.optimizer, self.progress
            payload, run_at = self.payload(), self._definition_at
            load_training_state(self.last, self.task.model, *state, payload, run_at)
            self._require_steps_within(self.progress.taken)

    def _require_steps_within(self, taken: int) -> None:
        if self.config.steps is not None and taken > self.config.steps:
            raise InputError(
                f"{self.last}: holds {taken} steps, expected at most --steps "
                f"{self.config.steps}.\n"
                "Give the --steps of the stopped run, or train anew in another --out-dir."
            )

    def _require_new(self) -> None:
        """Raise an `InputError` if a network exists."""
        for path in (self.last, self.out_dir / BEST):
            if path.exists():
                raise InputError(
                    f"{path}: holds the network of an earlier run, expected no such file.\n"
                    "Resume that run with --resume, or choose another --out-dir."
                )


def _save_seconds(task: Task) -> float:
    """Return an estimate for a save: weights and two moments in float32, to a slow disk."""
    return sum(12 * p.numel() for p in task.model.parameters()) / SLOW_DISK


def _bar(config: FitConfig, name: str, start: int) -> tqdm:
    """Return the progress bar of a run, which counts its steps or its minutes; of rank 0 alone."""
    if config.minutes is None:
        form = {"total": config.steps, "initial": start, "unit": "step"}
    else:
        shape = "{l_bar}{bar}| {n:.1f}/{total:g} min [{elapsed}{postfix}]"
        form = {"total": config.minutes, "bar_format": shape}
    return tqdm(desc=name, disable=rank() > 0, **form)


def _batches(
    dataset: Dataset, samples: list[dict], config: FitConfig, progress: Progress
) -> Iterator[list[dict]]:
    """Yield the micro-batches of each step, from the first that is not taken on."""
    batches = BalancedBatches(
        samples,
        config.batch_size,
        config.steps,
        config.seed,
        progress.taken,
        passes=config.accumulation,
        rank=rank(),
        world=world_size(),
        done_of=progress.done_of_draw,
    )
    with closing(iter(make_loader(dataset, batches, config.workers))) as loaded:
        while True:
            yield [next(loaded) for _ in range(config.accumulation)]
