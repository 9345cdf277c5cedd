"""The networks that ship in ``weights/``, and the checkpoint of a run that names none."""

import logging
from pathlib import Path
from typing import Literal

from utils.errors import InputError

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"

logger = logging.getLogger(__name__)

Role = Literal["student", "teacher"]


def shipped(role: Role) -> Path:
    """Return the file of the student or the teacher that ships with this repository::

        predictor = Predictor(*open_network(shipped("student")))

    Raises:
        InputError: this copy of the repository does not have the file.
    """
    path = WEIGHTS / f"{role}.pth"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, expected the {role} that ships with this repository.\n"
            "Give a checkpoint (--checkpoint FILE); make demo trains a small one. "
            "weights/README.md says what ships."
        )
    return path


def checkpoint_or_default(named: Path | None, role: Role, *, own: Path | None = None) -> Path:
    """Return the checkpoint of a run; if none was named, log in one line which one is taken.

    Args:
        named: the value of ``--checkpoint``. It is always taken.
        role: which of the shipped networks is taken if there is no other.
        own: the file that a training of the user writes by default. If it is there, it is taken
            before the shipped one.

    Raises:
        InputError: no checkpoint was named, and there is no other.
    """
    if named is not None:
        return named
    if own is not None and own.is_file():
        logger.info("checkpoint: %s, of your own training, since no --checkpoint is given", own)
        return own
    path = shipped(role)
    logger.info("checkpoint: %s, which ships here, since no --checkpoint is given", path)
    return path
