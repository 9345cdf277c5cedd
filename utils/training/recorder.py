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
        self._board = None
        if rank() == 0:
            from torch.utils.tensorboard import SummaryWriter  # takes a second

            self._board = SummaryWriter(path.parent, purge_step=start + 1)

    def add(self, scalars: Sequence[dict[str, float]], *, step: int, **more: float) -> dict:
        """Write the row of a step and return it.

        Args:
            scalars: a dict for each micro-batch of this rank, all with the same keys.
            step: steps done, counted from 1.
            more: further scalars, equal on all ranks.
        """
        means = {key: sum(s[key] for s in scalars) / len(scalars) for key in scalars[0]}
        row = {"step": step} | mean_over_ranks(means, self._device) | more
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
    def first_loss(self) -> float:
        """The loss of the run's first step; NaN before this step."""
        return self._losses[0] if self._losses else math.nan

    @property
    def recent_loss(self) -> float:
        """The mean loss of the last 20 steps; NaN before the first."""
        recent = self._losses[-20:]
        return sum(recent) / len(recent) if recent else math.nan
