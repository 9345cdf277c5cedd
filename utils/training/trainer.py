"""The one training loop, for teacher and student: steps, mixed precision, checkpoints, metrics.

A run has a fixed number of optimizer steps, or fewer with --patience. All random choices of step n
follow from the seed and n alone. A resumed run therefore has the same batches, clicks and
augmentations as an uninterrupted run. Under torchrun each rank takes its share of every batch, and
the gradient is the mean over the ranks: n ranks with batch size b take the same steps as one rank
with batch size n * b. Rank 0 alone writes files.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from utils.training.recorder import Recorder
from utils.training.selection import BEST, LOG, Selection
from utils.training.tasks import Task

logger = logging.getLogger(__name__)

#: The files that `fit` writes, beside TensorBoard's events, whose names are unique.
WRITES = ("last.pt", BEST, "metrics.jsonl", LOG, "loss.png", "validation.png")

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
) -> FitReport:
    """Train ``task.model`` in place, on draws from ``dataset``.

    Writes ``last.pt`` (weights and optimizer), ``metrics.jsonl``, ``loss.png`` and TensorBoard's
    events; with ``validate`` also ``best.pt``, ``validation.jsonl`` and ``validation.png``::

        index, model = read_index(Path("work_dir/crops")), sam_model_registry3D["tiny"]()
        fit(
            InteractiveTask(model, num_clicks=4, loss_size=32, seed=0),
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

    Raises:
        DivergedError: loss or gradient is not finite; the message names step and samples.
        InputError: a sample cannot be read, or ``last.pt`` is damaged or belongs to another run.
        WriteError: the disk is full, or ``out_dir`` cannot be written to.
    """
    defined = definition(config, samples, defines or {})
    run = _Run(task, config, out_dir, device, payload, resume, defined)
    wait_for_all()  # every rank has read last.pt before rank 0 replaces it
    begun()
    with closing(_steps(dataset, samples, config, run.done)) as steps:
        run.train(steps, validate)
    run.finish()
    return run.report(validate is not None)


class _Run:
    """One call of `fit`: its network, optimizer, log, validations and checkpoint."""

    def __init__(
        self,
        task: Task,
        config: FitConfig,
        out_dir: Path,
        device: torch.device,
        payload: Callable[[], dict],
        resume: bool,
        defined: dict[str, object],
    ) -> None:
        self.task = task.to(device).train()
        self.config, self.out_dir, self.device, self.payload = config, out_dir, device, payload
        self.last = out_dir / "last.pt"
        self.optimizer, self._defined = Optimizer(task, config, device), defined
        self.start = self.done = self._restore() if resume else self._require_new()
        self.recorder = Recorder(out_dir / "metrics.jsonl", self.start, device)
        self.selection = Selection(out_dir, self.start, config.patience)
        self.stage, self._wrapped = None, None
        self.began = self.saved_at = time.monotonic()

    def train(self, steps: Iterable[tuple[int, list[dict]]], validate: Validate | None) -> None:
        """Take the steps; validate and save where they are due."""
        config = self.config
        progress = tqdm(
            total=config.steps,
            initial=self.start,
            desc=self.out_dir.name,
            unit="step",
            disable=rank() > 0,
        )
        for step, batches in steps:
            if self.selection.has_stalled:
                logger.info(
                    "stopped at step %d: the last %d validations did not exceed an earlier one",
                    self.done,
                    config.patience,
                )
                break
            row = self._take_step(step, batches)
            progress.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            progress.update()
            self.done = step + 1
            is_due = config.validate_every and self.done % config.validate_every == 0
            is_due = is_due or self.done == config.steps
            if validate and is_due and self.task.is_scored(self.stage):
                self.selection.add(self.done, validate(self.task.model), self.payload)
            if rank() == 0 and time.monotonic() - self.saved_at > 60 * config.save_minutes:
                self._save()
        progress.close()

    def finish(self) -> None:
        """Save, draw the curves, close the logs."""
        if self.start < self.done and rank() == 0:
            self._save()
            save(training_curve_figure(self.recorder.path), self.out_dir / "loss.png")
            if self.selection.rows:
                figure = validation_curve_figure(self.selection.rows)
                save(figure, self.out_dir / "validation.png")
        self.recorder.close()
        wait_for_all()

    def report(self, was_validated: bool) -> FitReport:
        """Return the report of the run."""
        minutes = (time.monotonic() - self.began) / 60
        logger.info("%d steps in %.1f min -> %s", self.done - self.start, minutes, self.last)
        losses = self.recorder.first_loss, self.recorder.recent_loss
        best = self.selection.best if was_validated else None
        return FitReport(self.last, self.done, *losses, minutes, best)

    def _take_step(self, step: int, batches: list[dict]) -> dict:
        """Take one optimizer step; return its row in metrics.jsonl."""
        task, lr = self._task_of_stage(step), self.optimizer.lr
        scalars, norm = self.optimizer.take_step(task, step, batches)
        return self.recorder.add(scalars, step=step + 1, lr=lr, gradient_norm=norm)

    def _task_of_stage(self, step: int) -> nn.Module:
        """Return the task prepared for the stage of ``step``; several ranks get it in DDP."""
        stage = self.task.stage(step)
        if self._wrapped is None or stage != self.stage:
            self.stage, self._wrapped = stage, None
            gc.collect()  # frees the old DDP wrapper and its hooks
            self.task.begin(stage)
            self._wrapped = shared(self.task, self.device)
        return self._wrapped

    def _save(self) -> None:
        run = self._definition_at(self.done)
        save_checkpoint(self.last, self.payload(), self.done, self.optimizer, run)
        self.saved_at = time.monotonic()

    def _definition_at(self, done: int) -> dict[str, object]:
        """Return what defines the run, with the stages of the steps done."""
        self._require_steps_within(done)
        return self._defined | {"stages": stages_done(self.task, done)}

    def _restore(self) -> int:
        """Load ``last.pt`` if it exists; return the steps done."""
        if not self.last.exists():
            return 0
        start = load_training_state(
            self.last, self.task.model, self.optimizer, self.payload(), self._definition_at
        )
        self._require_steps_within(start)
        return start

    def _require_steps_within(self, done: int) -> None:
        if done > self.config.steps:
            raise InputError(
                f"{self.last}: holds {done} steps, expected at most --steps "
                f"{self.config.steps}.\n"
                "Give the --steps of the stopped run, or train anew in another --out-dir."
            )

    def _require_new(self) -> int:
        """Raise an `InputError` if a network exists; return the steps done, 0."""
        for path in (self.last, self.out_dir / BEST):
            if path.exists():
                raise InputError(
                    f"{path}: holds the network of an earlier run, expected no such file.\n"
                    "Resume that run with --resume, or choose another --out-dir."
                )
        return 0


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
    with closing(iter(make_loader(dataset, batches, config.workers))) as loaded:
        for step in range(start, config.steps):
            yield step, [next(loaded) for _ in range(config.accumulation)]
