"""Checkpoints: read released files and ours, and refuse a file that does not fit.

A file is a ``torch.save`` dictionary with weights under ``model_state_dict``. There are three
layouts:

* a whole network (SAM-Med3D, ours): ``image_encoder.*``, ``prompt_encoder.*``, ``mask_decoder.*``;
* an image encoder alone (FastSAM3D): the encoder's keys, with or without ``image_encoder.``;
* our students: the encoder alone as FastSAM3D releases it, and the other two parts under
  ``decoder_state_dict``, so that the file can be used on its own.

A bare state dict is accepted too. The ``module.`` prefixes of parallel training are dropped. Our
files carry ``config``, the `SamConfig` as a dictionary. Files are read without running code from
them (``weights_only``).
"""

import argparse
import hashlib
import json
import pathlib
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segment_anything.modeling import Sam3D

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
DECODER_PARTS = PARTS[1:]
WEIGHTS = "model_state_dict"
DECODER_WEIGHTS = "decoder_state_dict"
_WRAPPERS = ("module", "_orig_mod")  # parallel training, torch.compile
_NAMED_KEYS = 8  # how many keys of a kind an error message spells out


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the network to be loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, in the layout of a whole network; `open_checkpoint` makes it."""

    path: pathlib.Path
    weights: dict[str, Tensor]  # on the CPU; keys of `Sam3D.state_dict` unless the file is foreign
    config: Mapping[str, Any] | None  # `SamConfig.to_dict`; None in released files
    facts: Mapping[str, Any]  # the entries that are not weights, such as crop_rule and step

    def holds(self, part: str) -> bool:
        """Tell whether the file has weights of ``part``, one of `PARTS`."""
        return any(key.startswith(part + ".") for key in self.weights)


def read_checkpoint(path: str | pathlib.Path) -> dict[str, Any]:
    """Read everything in a checkpoint file, onto the CPU and without running code from it.

    Raises:
        CheckpointError: the file is missing, damaged, or not a dictionary of plain data.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file, expected a checkpoint written by torch.save.\n"
            "Check the path; relative ones start from the working directory."
        )
    try:
        with torch.serialization.safe_globals(_plain_data_types()):
            mmap = zipfile.is_zipfile(path)  # older files cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: not readable as a checkpoint ({reason}), {path.stat().st_size:,} bytes; "
            "expected a complete torch.save file that holds tensors and plain data only.\n"
            "Download or copy it again; if it holds other objects, save its weights alone as "
            f"{{'{WEIGHTS}': ...}}."
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary with '{WEIGHTS}'.\n"
            f"Save {{'{WEIGHTS}': model.state_dict()}} instead."
        )
    return dict(content)


def open_checkpoint(path: str | pathlib.Path | Checkpoint) -> Checkpoint:
    """Read a file and give its weights the keys of a whole network.

    A `Checkpoint` is returned unchanged.

    Raises:
        CheckpointError: as `read_checkpoint`, or the file holds no weights.
    """
    if isinstance(path, Checkpoint):
        return path
    path = pathlib.Path(path)
    content = read_checkpoint(path)
    weights = content.get(WEIGHTS, content)
    if not _is_state_dict(weights):
        raise CheckpointError(
            f"{path}: found the entries {_shorten(map(str, content))}, expected weights under "
            f"'{WEIGHTS}' or a state dict.\nPoint to the file that training wrote, or save the "
            f"weights as {{'{WEIGHTS}': model.state_dict()}}."
        )
    weights = {_unwrapped(key): tensor for key, tensor in weights.items()}
    if not any(key.startswith(tuple(part + "." for part in PARTS)) for key in weights):
        weights = {f"image_encoder.{key}": tensor for key, tensor in weights.items()}
    decoder = content.get(DECODER_WEIGHTS)
    if _is_state_dict(decoder):
        weights |= {_unwrapped(key): tensor for key, tensor in decoder.items()}
    config = content.get("config")
    is_ours = isinstance(config, Mapping) and "network" in config
    facts = {k: v for k, v in content.items() if WEIGHTS in content and not _is_state_dict(v)}
    return Checkpoint(path, weights, config if is_ours else None, facts)


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
    checkpoint = open_checkpoint(path)
    _require_same_network(model, checkpoint, parts)
    prefixes = tuple(part + "." for part in parts)
    others = tuple(part + "." for part in PARTS if part not in parts)
    wanted = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    found = {key: value for key, value in checkpoint.weights.items() if not key.startswith(others)}
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [
        f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if missing or unexpected or reshaped:
        lines = [f"{checkpoint.path}: the weights are not those of {model.config.network}."]
        groups = {"missing": missing, "unexpected": unexpected, "reshaped": reshaped}
        lines += [f"  {name}: {_shorten(keys)}" for name, keys in groups.items() if keys]
        lines.append(f"  expected: {len(wanted)} tensors of {', '.join(parts)}")
        raise CheckpointError("\n".join([*lines, _advice(model, checkpoint, parts)]))
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(found[key])


def student_num_heads(state_dict: Mapping[str, Tensor], source: str = "the weights") -> int:
    """Return the head count of an encoder, from the width of its rel_pos tables.

    No other shape depends on the head count.

    Args:
        state_dict: Encoder weights, with or without the ``image_encoder.`` prefix.
        source: The name of the weights in an error message.

    Raises:
        CheckpointError: these are not the weights of an encoder with attention.
    """
    widths = {
        suffix: tensor.shape[-1]
        for key, tensor in state_dict.items()
        for suffix in ("pos_embed", "rel_pos_d")
        if key.endswith(suffix)
    }
    if len(widths) < 2:
        raise CheckpointError(
            f"{source}: found the keys {_shorten(state_dict)}, expected pos_embed and a "
            "rel_pos_d among them.\nGive the weights of an image encoder with attention."
        )
    return widths["pos_embed"] // widths["rel_pos_d"]


def checkpoint_payload(model: Sam3D, **extra: Any) -> dict[str, Any]:
    """Return the content of a file of ours: the whole network, its config, and ``extra``."""
    return {WEIGHTS: model.state_dict(), "config": model.config.to_dict(), **extra}


def student_payload(model: Sam3D, **extra: Any) -> dict[str, Any]:
    """Return the content of a student's file: the encoder alone, as students are released.

    The prompt encoder and mask decoder are a separate entry, so that the file can be used without
    the teacher's file.
    """
    decoder = {k: v for k, v in model.state_dict().items() if k.startswith(DECODER_PARTS)}
    return {
        WEIGHTS: model.image_encoder.state_dict(),
        DECODER_WEIGHTS: decoder,
        "config": model.config.to_dict(),
        **extra,
    }


def fingerprint(model: Sam3D) -> str:
    """Return 16 hexadecimal digits that change with the config and with any weight."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _plain_data_types() -> list[Any]:
    """Return the types beside tensors that training scripts save and that are safe to rebuild."""
    # This package imports only torch, so it gets NumPy's rebuilding functions from NumPy objects.
    # NumPy 1 saved them under another module name.
    array = torch.zeros(1).numpy()
    rebuild_array, rebuild_scalar = array.__reduce__()[0], array[0].__reduce__()[0]
    dtypes = [getattr(torch, name) for name in ("float64", "float32", "float16", "int64", "int32")]
    dtypes += [torch.int16, torch.int8, torch.uint8, torch.bool]
    numpy_dtypes = [type(torch.zeros(1, dtype=dtype).numpy().dtype) for dtype in dtypes]
    return [
        *(argparse.Namespace, OrderedDict, defaultdict, pathlib.PosixPath, pathlib.PurePosixPath),
        *(type(array), array.dtype.__reduce__()[0], *numpy_dtypes),
        *(rebuild_array, rebuild_scalar),
        (rebuild_array, "numpy.core.multiarray._reconstruct"),
        (rebuild_scalar, "numpy.core.multiarray.scalar"),
    ]


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(entry, Tensor) for entry in value.values())
    )


def _unwrapped(key: str) -> str:
    return ".".join(name for name in key.split(".") if name not in _WRAPPERS)


def _shorten(names: Any) -> str:
    names = list(names)
    more = f", and {len(names) - _NAMED_KEYS} more" if len(names) > _NAMED_KEYS else ""
    return ", ".join(names[:_NAMED_KEYS]) + more


def _require_same_network(model: Sam3D, checkpoint: Checkpoint, parts: Sequence[str]) -> None:
    """Compare the configs, since different networks may have equal keys and shapes."""
    if checkpoint.config is None:
        return
    theirs, ours = _flat(checkpoint.config), _flat(model.config.to_dict())
    fields = {
        "image_encoder": "encoder.",
        "prompt_encoder": "prompt.dense_pe_axes",  # other fields do not change the weights' meaning
        "mask_decoder": "decoder.",
    }
    compared = tuple(fields[part] for part in parts)
    differing = [
        f"{name} is {theirs.get(name)}, expected {ours.get(name)}"
        for name in sorted(theirs.keys() | ours.keys())
        if name.startswith(compared) and theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path}: the config of its network '{theirs.get('network')}' differs from "
            f"that of '{model.config.network}'.\n  {'; '.join(differing)}\n"
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


def _advice(model: Sam3D, checkpoint: Checkpoint, parts: Sequence[str]) -> str:
    """Return advice on weights that do not fit, as far as their keys show the reason."""
    absent = [part for part in parts if not checkpoint.holds(part)]
    if absent:
        return (
            f"The file holds no weights of {' and '.join(absent)}: load these parts from another "
            "file (decoder_checkpoint)."
        )
    attention_free = model.config.encoder.attention_free_blocks
    for block in range(model.config.encoder.depth):
        in_file = f"image_encoder.blocks.{block}.attn.qkv.weight" in checkpoint.weights
        if "image_encoder" in parts and in_file == (block in attention_free):
            has = ("attention", "none") if in_file else ("no attention", "some")
            return (
                f"Block {block} has {has[0]} in the file and {has[1]} in {model.config.network}: "
                "name the network that wrote the file (a teacher's file does not fit a student)."
            )
    return "Name the network that wrote the file."


def require_decoder(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for a file that holds an image encoder alone."""
    if not checkpoint.holds("mask_decoder"):
        raise CheckpointError(
            f"{checkpoint.path}: holds an image encoder alone, expected a mask decoder too.\n"
            "Give the file of the teacher that it was distilled from (--teacher FILE)."
        )
