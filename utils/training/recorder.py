"""The scalars of each training step: a row in metrics.jsonl and points in TensorBoard."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.run.ranks import mean_over_ranks, rank
from utils.training.json_lines import append_row, resume_rows


class Recorder:
    """Writes one step's scalars, as means over its micro-batches and all ranks; rank 0 writes.

    Args:
        path: metrics.jsonl; TensorBoard's events go to the same folder.
        start: steps done before; rows of later steps are from a killed run and are removed.
        device: of the training; ranks average the scalars there.
    """

    def __init__(self, path: Path, start: int, device: torch.device) -> None:
        self.path, self._device = path, device
        self._losses = [row["loss"] for row in resume_rows(path, start, "loss")]
        self._seconds: list[tuple[float, float]] = []  # of each step of this call: wait, whole step
        self._board = None
        if rank() == 0:
            from torch.utils.tensorboard import SummaryWriter  # takes a second

            self._board = SummaryWriter(path.parent, purge_step=start + 1)

    def add(
        self,
        scalars: Sequence[dict[str, float]],
        *,
        step: int,
        wait_seconds: float,
        step_seconds: float,
        **more: float,
    ) -> dict:
        """Write the row of a step and return it.

        Args:
            scalars: a dict for each micro-batch of this rank, all with the same keys.
            step: steps done, counted from 1.
            wait_seconds: for which the step waited for its batches; of rank 0.
            step_seconds: of the computation after this wait; of rank 0.
            more: further scalars, equal on all ranks.
        """
        seconds = {"wait_seconds": round(wait_seconds, 4), "step_seconds": round(step_seconds, 4)}
        self._seconds.append((wait_seconds, wait_seconds + step_seconds))
        means = {key: sum(s[key] for s in scalars) / len(scalars) for key in scalars[0]}
        row = {"step": step} | mean_over_ranks(means, self._device) | more | seconds
        self._losses.append(row["loss"])
        append_row(self.path, row)
        if self._board:
            for key, value in row.items():
                self._board.add_scalar(key, value, step)
        return row

    def close(self) -> None:
        """Write what TensorBoard has buffered."""
        if self._board:
            self._board.close()

    @property
    def waited(self) -> float:
        """Share of the steps' time in this call for which they waited for the loader.

        The first step, for which the workers start, does not count; NaN without further steps.
        """
        later = self._seconds[1:]
        whole = sum(seconds for _, seconds in later)
        return sum(wait for wait, _ in later) / whole if whole else math.nan

    @property
    def first_loss(self) -> float:
        """The loss of the run's first step; NaN before this step."""
        return self._losses[0] if self._losses else math.nan

    @property
    def recent_loss(self) -> float:
        """The mean loss of the last 20 steps; NaN before the first."""
        recent = self._losses[-20:]
        return sum(recent) / len(recent) if recent else math.nan
