"""Compare a file's weights with those that a network needs, then load them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segment_anything.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from segment_anything.checkpoint_keys import PARTS, prefix_advice, shorten
from segment_anything.config import ConfigError, SamConfig
from segment_anything.modeling import Sam3D

#: Weights take at most this many times the bytes that the file holds of them: 2 if all are tied.
MOST_SHARED = 2


def load_checkpoint(
    model: Sam3D,
    path: str | pathlib.Path | Checkpoint,
    parts: Sequence[str] = PARTS,
) -> None:
    """Load weights into ``parts`` of a network, all of them or none.

    Args:
        model: The network.
        path: A checkpoint file, or one already open.
        parts: The parts to load, from `PARTS`; the rest of the network stays unchanged.

    Raises:
        CheckpointError: the file cannot be read; a key is missing, unexpected or of another shape;
            or the file's config is that of another network. ``model`` is then unchanged.
    """
    own = model.state_dict()
    found = require_fit(model.config, own, open_checkpoint(path), parts)
    with torch.no_grad():
        for key, tensor in found.items():
            own[key].copy_(tensor)


def config_of(checkpoint: Checkpoint) -> SamConfig:
    """Return the configuration that a file of ours holds.

    Raises:
        CheckpointError: a field is unknown, of a wrong type, or out of its range.
    """
    try:
        return SamConfig.from_dict(checkpoint.config)
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint.path}: its config cannot be used ({error}), expected one of this "
            "version.\nUse the version of this project that wrote it."
        ) from error


def require_fit(
    config: SamConfig,
    needed: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    parts: Sequence[str] = PARTS,
) -> dict[str, Tensor]:
    """Return the weights in a file for ``parts`` of a network, by key.

    Args:
        config: The network's.
        needed: The network's whole state dict; only shapes and types are looked at.
        checkpoint: The file.
        parts: The parts to be loaded, from `PARTS`.

    Raises:
        CheckpointError: a key is missing or unexpected; a tensor is of another shape, or no plain
            array of floating-point numbers; or the file's config is that of another network.
    """
    _require_same_network(config, checkpoint, parts)
    prefixes = tuple(part + "." for part in parts)
    others = tuple(part + "." for part in PARTS if part not in parts)
    wanted = {key: tensor for key, tensor in needed.items() if key.startswith(prefixes)}
    found = {key: value for key, value in checkpoint.weights.items() if not key.startswith(others)}
    both = [key for key in wanted if key in found]
    faults = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "reshaped": [
            f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
            for key in both
            if found[key].shape != wanted[key].shape
        ],
        "not plain numbers": [
            f"{key} ({kind})" for key in both if (kind := _unusual(found[key], wanted[key]))
        ],
    }
    if any(faults.values()):
        lines = [f"{checkpoint.path}: the weights are not those of {config.network}."]
        lines += [f"  {name}: {shorten(keys)}" for name, keys in faults.items() if keys]
        lines.append(f"  expected: {len(wanted)} tensors of {', '.join(parts)}")
        raise CheckpointError("\n".join([*lines, _advice(config, checkpoint, parts)]))
    _require_bytes(checkpoint, [found[key] for key in wanted])
    return {key: found[key] for key in wanted}


def _require_bytes(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> None:
    """Refuse many tensors that share a few bytes: copied into a network they could fill memory."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if taken > MOST_SHARED * sum(held.values()):
        raise CheckpointError(
            f"{checkpoint.path}: its weights share {sum(held.values()):,} bytes and would take "
            f"{taken:,}; expected at most {MOST_SHARED} times the bytes in the file.\nThe file is "
            "damaged or harmful: download it again."
        )


def _unusual(tensor: Tensor, wanted: Tensor) -> str:
    """Return what keeps a tensor from being copied into a network, "" for nothing."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return f"{tensor.device.type}, {tensor.layout}, {tensor.dtype}"
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex():
        return f"{tensor.dtype} for {wanted.dtype}"
    # A tensor whose axes share memory takes a few bytes of the file and any number once copied.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{tensor.untyped_storage().nbytes():,} bytes for {tensor.numel():,} values"
    return ""


def _require_same_network(config: SamConfig, checkpoint: Checkpoint, parts: Sequence[str]) -> None:
    """Compare the configs, since different networks may have equal keys and shapes."""
    if checkpoint.config is None:
        return
    theirs, ours = _flat(config_of(checkpoint).to_dict()), _flat(config.to_dict())
    fields = {
        "image_encoder": "encoder.",
        "prompt_encoder": "prompt.dense_pe_axes",  # other fields do not change the weights' meaning
        "mask_decoder": "decoder.",
    }
    compared = tuple(fields[part] for part in parts)
    differing = [
        f"{name} is {theirs[name]}, expected {ours[name]}"
        for name in sorted(ours)
        if name.startswith(compared) and theirs[name] != ours[name]
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path}: the config of its network '{theirs['network']}' differs from "
            f"that of '{config.network}'.\n  {'; '.join(differing)}\n"
            "Build the network from the file with build_from_checkpoint."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _advice(config: SamConfig, checkpoint: Checkpoint, parts: Sequence[str]) -> str:
    """Return advice on weights that do not fit, as far as their keys show the reason."""
    if advice := prefix_advice(checkpoint.weights):
        return advice
    absent = [part for part in parts if not checkpoint.holds(part)]
    if absent:
        return (
            f"The file holds no weights of {' and '.join(absent)}: load these parts from another "
            "file (decoder_checkpoint)."
        )
    for block in range(config.encoder.depth):
        in_file = f"image_encoder.blocks.{block}.attn.qkv.weight" in checkpoint.weights
        attention_free = block in config.encoder.attention_free_blocks
        if "image_encoder" in parts and in_file == attention_free:
            has = ("attention", "none") if in_file else ("no attention", "some")
            return (
                f"Block {block} has {has[0]} in the file and {has[1]} in {config.network}: "
                "name the network that wrote the file (a teacher's file does not fit a student)."
            )
    return "Name the network that wrote the file, or save it without entries of other modules."
