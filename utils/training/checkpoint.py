"""Training checkpoints: a network's file with the training state added, written atomically.

The network's part, its configuration and weights, is defined in segment_anything/checkpoint.py.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from segment_anything import Sam3D, load_checkpoint, read_checkpoint
from utils.errors import InputError
from utils.run.network import checkpoint_errors, save_payload
from utils.training.definition import require_same_facts, require_same_run
from utils.training.optimizer import Optimizer
from utils.training.progress import Progress

#: Entries of a checkpoint that `load_checkpoint` compares with the network.
CHECKED_BY_LOADING = {"model_state_dict", "decoder_state_dict", "config"}
RUN = "run"  # entry of a checkpoint: what defines its run

logger = logging.getLogger(__name__)


def save_checkpoint(
    path: Path, payload: dict, optimizer: Optimizer, progress: Progress, run: dict[str, object]
) -> None:
    """Write weights and training state; the previous file stays until the new one is complete.

    Args:
        payload: weights, configuration and other facts, as `checkpoint_payload` returns them.
        progress: steps done and minutes used.
        run: what defines the run (utils/training/definition.py).

    Raises:
        WriteError: the disk is full, or the folder cannot be written to.
    """
    state = {"training_state": optimizer.state_dict(), "progress": progress.state_dict()}
    save_payload(path, payload | {"step": progress.taken, **state, RUN: run})


def load_training_state(
    path: Path,
    model: Sam3D,
    optimizer: Optimizer,
    progress: Progress,
    payload: dict,
    run_at: Callable[[int], dict[str, object]],
) -> None:
    """Load weights into ``model``, the training state into ``optimizer`` and ``progress``.

    Args:
        payload: what this run would save. Every entry except weights and configuration must equal
            the file's; `load_checkpoint` compares those two.
        run_at: returns what defines this run, given the number of steps done.

    Raises:
        InputError: the file is no training checkpoint or is damaged, or it belongs to a run with
            another network, other crops, another teacher or other flags.
    """
    with checkpoint_errors():
        content = read_checkpoint(path)
    if "training_state" not in content:
        raise InputError(
            f"{path}: holds no training state, expected a last.pt of this script.\n"
            "To start from its weights use --checkpoint instead of --resume."
        )
    step = content.get("step")
    if type(step) is not int or step < 0:
        raise _damaged(path, f"its step is {str(step)[:60]}")
    # The plan of a distillation follows from the run's flags.
    compared = CHECKED_BY_LOADING | ({"plan"} if RUN in content else set())
    facts = {key: payload[key] for key in sorted(payload.keys() - compared)}
    require_same_facts(path, content, facts)
    if RUN in content:
        require_same_run(path, content[RUN], run_at(step), step)
    else:
        logger.warning(
            "%s: was written by an earlier version, which did not save its flags: they cannot be "
            "compared with the flags of this run",
            path,
        )
    with checkpoint_errors():
        load_checkpoint(model, path)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise _damaged(path, "weights are not finite")
    try:
        optimizer.load_state_dict(content["training_state"], step)
        progress.load_state_dict(content.get("progress"), step)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _damaged(path: Path, found: str) -> InputError:
    return InputError(
        f"{path}: its training state cannot be used ({found}), expected that of a stopped run.\n"
        "Start from its weights with --checkpoint, or train anew, in another --out-dir."
    )
