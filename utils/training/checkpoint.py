"""Training checkpoints: a network's file with the training state added, written atomically.

The network's part, its configuration and weights, is defined in segment_anything/checkpoint.py.
"""

import io
from pathlib import Path

import torch

from segment_anything import Sam3D, load_checkpoint, read_checkpoint
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.run.network import checkpoint_errors

#: Entries of a checkpoint that `load_checkpoint` compares with the network.
CHECKED_BY_LOADING = {"model_state_dict", "decoder_state_dict", "config"}


def save_checkpoint(path: Path, payload: dict, step: int, state: dict) -> None:
    """Write weights and training state; the previous file stays until the new one is complete.

    Args:
        payload: weights, configuration and other facts, as `checkpoint_payload` returns them.
        step: optimizer steps done.
        state: objects with a ``state_dict``, by name: optimizer, schedule, loss scaler.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to.
    """
    content = payload | {
        "step": step,
        "training_state": {name: part.state_dict() for name, part in state.items()},
    }
    save_payload(path, content)


def load_training_state(path: Path, model: Sam3D, state: dict, payload: dict) -> int:
    """Load weights into ``model`` and the training state into ``state``; return the steps done.

    Args:
        payload: what this run would save. Every entry except weights and configuration must equal
            the file's; `load_checkpoint` compares those two.

    Raises:
        InputError: the file is no training checkpoint, or it belongs to another network, crop rule
            or teacher.
    """
    with checkpoint_errors():
        content = read_checkpoint(path)
        if "training_state" not in content:
            raise InputError(
                f"{path}: holds no training state, expected a last.pt of this script.\n"
                "To start from its weights use --checkpoint instead of --resume."
            )
        load_checkpoint(model, path)
    for key in payload.keys() - CHECKED_BY_LOADING:
        if content.get(key) != payload[key]:
            raise InputError(
                f"{path}: its {key} is {content.get(key)}, expected {payload[key]}.\n"
                "Give --resume with the flags and files of the stopped run, or another --out-dir."
            )
    for name, part in state.items():
        part.load_state_dict(content["training_state"][name])
    return content["step"]


def save_payload(path: Path, payload: dict) -> None:
    """Write a checkpoint.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to; an older file stays.
    """
    # Serialise in memory: on a full disk torch.save raises a RuntimeError without the reason.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
