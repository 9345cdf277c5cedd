"""Writing and resuming training checkpoints.

What a network is and how its weights are laid out belongs to segment_anything/checkpoint.py;
here they get the training state added, and appear on disk whole or not at all.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from segment_anything import (
    CheckpointError,
    ConfigError,
    Sam3D,
    build_from_checkpoint,
    load_checkpoint,
    open_checkpoint,
    read_checkpoint,
    require_decoder,
)
from segment_anything.onnx_encoder import OnnxError, use_onnx_encoder
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.volumes.geometry import CropRule

#: Entries of a checkpoint that `load_checkpoint` holds against the network.
CHECKED_BY_LOADING = {"model_state_dict", "decoder_state_dict", "config"}


def save_checkpoint(path: Path, payload: dict, step: int, state: dict) -> None:
    """Write weights and training state; the previous file stays until the new one is complete."""
    content = payload | {
        "step": step,
        "training_state": {name: part.state_dict() for name, part in state.items()},
    }
    save_payload(path, content)


def load_training_state(path: Path, model: Sam3D, state: dict, payload: dict) -> int:
    """Load weights into ``model`` and the optimizer's state; return the steps done.

    Args:
        payload: what the run would save now; all it says beside weights must be in the file too.

    Raises:
        InputError: the file is no training checkpoint, or of another network, crops or teacher.
    """
    with _checkpoint_errors():
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


def open_network(
    path: Path,
    network: str | None = None,
    decoder_checkpoint: Path | None = None,
    *,
    encoder: Path | None = None,
) -> tuple[Sam3D, CropRule]:
    """Rebuild the network of a checkpoint, and the crops it was trained on.

    Released files do not say what they are: ``network`` must name it, and their crops are 128³
    voxels of 1.5 mm. ``encoder`` is an ONNX file to be used in place of the image encoder.

    Raises:
        InputError: the file is not a checkpoint, of another network, without a decoder, or
            holds weights that are not finite; or the ONNX file is not its encoder.
    """
    with _checkpoint_errors():
        checkpoint = open_checkpoint(path)
        if decoder_checkpoint is None:
            require_decoder(checkpoint)
        model = build_from_checkpoint(checkpoint, network, decoder_checkpoint)
        stored = checkpoint.facts.get("crop_rule", {})
    broken = [name for name, p in model.state_dict().items() if not _is_finite(p)]
    if broken:
        raise InputError(
            f"{path}: {len(broken)} weights are not finite, {broken[0]} first; expected numbers.\n"
            "The training that wrote it had diverged: use an earlier checkpoint."
        )
    if encoder is not None:
        with _checkpoint_errors():
            use_onnx_encoder(model, encoder)
    try:
        return model, CropRule(**({"size": model.config.encoder.img_size} | stored))
    except TypeError as error:
        raise InputError(
            f"{path}: crop rule {stored} is not of this version ({error}).\n"
            "Use the version of this project that wrote it."
        ) from error


def _is_finite(tensor: torch.Tensor) -> bool:
    """Look at the sum first, ten times as fast: it is finite only where all numbers are."""
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def trained_on(path: Path) -> set[str] | None:
    """Return "organ/data set" of what a checkpoint's training had; None where it does not say."""
    with _checkpoint_errors():
        names = read_checkpoint(path).get("trained_on")
    return None if names is None else set(names)


@contextmanager
def _checkpoint_errors() -> Iterator[None]:
    """Turn what the model package raises about a file into what a script prints."""
    try:
        yield
    except (CheckpointError, ConfigError, OnnxError) as error:
        raise InputError(str(error)) from error


def save_payload(path: Path, payload: dict) -> None:
    """Write a checkpoint.

    Raises:
        WriteError: the disk is full, or the folder does not let us write; an older file stays.
    """
    # By way of memory: on a full disk torch.save raises a RuntimeError that says nothing of it.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def copy_teacher_blocks(teacher: Sam3D, student: Sam3D) -> list[str]:
    """Start the student's encoder from the teacher's; return the names of the copied tensors.

    Stem, position embedding and neck go over as they are; a student's block takes the teacher's at
    the same relative depth, of twelve every second one. Tensors that the student lacks, or has in
    another shape, stay out.
    """
    source = teacher.image_encoder.state_dict()
    target = student.image_encoder.state_dict()
    depths = (student.config.encoder.depth, teacher.config.encoder.depth)
    copied = []
    for name, tensor in target.items():
        teacher_name = name
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            same = max(1, round((int(number) + 1) * depths[1] / depths[0])) - 1
            teacher_name = f"blocks.{same}.{rest}"
        if teacher_name in source and source[teacher_name].shape == tensor.shape:
            tensor.copy_(source[teacher_name])
            copied.append(name)
    return copied
