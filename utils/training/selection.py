"""Which checkpoint of a training is the best by validation, and when the training stops."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

from utils.run.ranks import rank
from utils.training.checkpoint import save_payload
from utils.training.json_lines import append_row, resume_rows

BEST, LOG = "best.pt", "validation.jsonl"

logger = logging.getLogger(__name__)


class Selection:
    """Writes ``best.pt`` and ``validation.jsonl``; rank 0 alone writes.

    Args:
        out_dir: folder of the run.
        start: steps done before; rows of later steps are from a killed run and are removed.
        patience: the run has stalled after so many validations without a new best; 0 = never.
    """

    def __init__(self, out_dir: Path, start: int, patience: int) -> None:
        self.path, self._log = out_dir / BEST, out_dir / LOG
        self._patience = patience
        self.rows = resume_rows(self._log, start, "score")

    def add(self, step: int, scores: dict[str, float], payload: Callable[[], dict]) -> None:
        """Log a validation; save the network if its ``score`` is the highest so far.

        Args:
            step: steps done.
            scores: by name; networks are compared by ``score``.
            payload: returns the content of ``best.pt``.
        """
        best = max((row["score"] for row in self.rows), default=-math.inf)
        self.rows.append({"step": step} | scores)
        logger.info("validation %s", {key: round(value, 4) for key, value in scores.items()})
        if rank() == 0 and scores["score"] > best:
            save_payload(self.path, payload())
        append_row(self._log, self.rows[-1])

    @property
    def best(self) -> Path | None:
        """``best.pt``; None before the first validation."""
        return self.path if self.rows else None

    @property
    def has_stalled(self) -> bool:
        """Whether the last ``patience`` validations were no better than an earlier one."""
        scores = [row["score"] for row in self.rows]
        recent, earlier = scores[-self._patience :], scores[: -self._patience]
        return bool(self._patience and earlier and max(recent) <= max(earlier))
