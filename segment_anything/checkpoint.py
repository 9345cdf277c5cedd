"""Checkpoints: read released files and ours, and refuse a file that does not fit.

A file is a ``torch.save`` dictionary with weights under ``model_state_dict``. There are three
layouts:

* a whole network (SAM-Med3D, ours): ``image_encoder.*``, ``prompt_encoder.*``, ``mask_decoder.*``;
* an image encoder alone (FastSAM3D): the encoder's keys, with or without ``image_encoder.``;
* our students: the encoder alone as FastSAM3D releases it, and the other two parts under
  ``decoder_state_dict``, so that the file can be used on its own.

A bare state dict is accepted too, and so are other layouts and prefixes of training scripts
(segment_anything/checkpoint_keys.py). Our files carry ``config``, the `SamConfig` as a dictionary.
Files are read without running code from them (``weights_only``). Where ``NAME.sha256`` lies beside
a file, as for the weights that ship, the file's SHA-256 must be the one written there. Weights are
compared with the network's before they are loaded: segment_anything/checkpoint_fit.py.
"""

import argparse
import hashlib
import json
import pathlib
import re
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segment_anything.checkpoint_keys import (
    DECODER_PARTS,
    DECODER_WEIGHTS,
    WEIGHTS,
    KeysError,
    find_weights,
    is_state_dict,
    prefix_advice,
    shorten,
    whole_network,
)
from segment_anything.checkpoint_keys import (
    PARTS as PARTS,
)
from segment_anything.modeling import Sam3D

#: Of the file beside a checkpoint with its SHA-256, in the form of sha256sum.
HASH_SUFFIX = ".sha256"
_LFS_POINTER = b"version https://git-lfs.github.com/"

#: Fields that the config got later, and what networks without them had.
LATER_FIELDS = {
    "encoder": {"detail": "stem"},
    "prompt": {"click_diffusion": False, "click_likeness": False, "boxes": False},
    "decoder": {"form": "sam", "refine_strength": 0.0},
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the network to be loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, in the layout of a whole network; `open_checkpoint` makes it."""

    path: pathlib.Path
    weights: dict[str, Tensor]  # on the CPU; keys of `Sam3D.state_dict` unless the file is foreign
    config: Mapping[str, Any] | None  # `SamConfig.to_dict`; None in released files
    facts: Mapping[str, Any]  # the entries that are not weights, such as crop_rule and step
    notes: tuple[str, ...] = ()  # choices made in reading it, one sentence each

    def holds(self, part: str) -> bool:
        """Tell whether the file has weights of ``part``, one of `PARTS`."""
        return any(key.startswith(part + ".") for key in self.weights)


def read_checkpoint(path: str | pathlib.Path) -> dict[str, Any]:
    """Read everything in a checkpoint file, onto the CPU and without running code from it.

    Raises:
        CheckpointError: the file is missing, damaged, not a dictionary of plain data, or not the
            one whose SHA-256 lies beside it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file, expected a checkpoint written by torch.save.\n"
            "Check the path; relative ones start from the working directory."
        )
    _require_content(path)
    _require_hash(path)
    try:
        with torch.serialization.safe_globals(_plain_data_types()):
            mmap = zipfile.is_zipfile(path)  # older files cannot be mapped
            if mmap:
                _require_stored(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path}: not readable as a checkpoint ({_reason(error)}), {path.stat().st_size:,} "
            "bytes; expected a complete torch.save file that holds tensors and plain data only.\n"
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
    try:
        weights, notes = find_weights(content)
        weights, more = whole_network(weights)
        decoder = content.get(DECODER_WEIGHTS)
        if is_state_dict(decoder):
            decoder, _ = whole_network(decoder)
            weights = _joined(weights, decoder)
    except KeysError as error:
        raise CheckpointError(f"{path}: {error}") from error
    config = content.get("config")
    is_ours = isinstance(config, Mapping) and "network" in config
    facts = {k: v for k, v in content.items() if WEIGHTS in content and not is_state_dict(v)}
    notes = tuple(f"{path}: {note}" for note in (*notes, *more))
    return Checkpoint(path, weights, config if is_ours else None, facts, notes)


def sha256_of(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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
        if key.endswith(suffix) and tensor.dim() and tensor.numel()
    }
    if len(widths) < 2:
        raise CheckpointError(
            f"{source}: found the keys {shorten(state_dict)}, expected pos_embed and a "
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
    """Return 16 hexadecimal digits that change with the config and with any weight.

    Fields in `LATER_FIELDS` count only where they differ from what networks had before them, so
    that older networks keep their fingerprints.
    """
    config = model.config.to_dict()
    for part, fields in LATER_FIELDS.items():
        for name, before in fields.items():
            if config[part][name] == before:
                del config[part][name]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
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
        # Windows paths, which other systems can hold but not use.
        (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
        pathlib.PureWindowsPath,
        *(type(array), array.dtype.__reduce__()[0], *numpy_dtypes),
        *(rebuild_array, rebuild_scalar),
        (rebuild_array, "numpy.core.multiarray._reconstruct"),
        (rebuild_scalar, "numpy.core.multiarray.scalar"),
    ]


def _joined(weights: dict[str, Tensor], decoder: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a student's encoder together with its decoder, which must not hold the same keys."""
    twice = [key for key in decoder if key in weights]
    if twice:
        raise KeysError(
            f"holds {shorten(twice)} both under '{WEIGHTS}' and under '{DECODER_WEIGHTS}', "
            "expected each once.\nSave the weights under one of them."
        )
    return weights | decoder


def _require_content(path: pathlib.Path) -> None:
    """Refuse the few lines that Git LFS puts in the place of a file it has not downloaded."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) != _LFS_POINTER:
            return
    raise CheckpointError(
        f"{path}: is a pointer of Git LFS of {path.stat().st_size} bytes, expected the checkpoint "
        "itself.\nDownload it: git lfs pull."
    )


def _require_hash(path: pathlib.Path) -> None:
    """Compare a file with the SHA-256 in the file beside it, where there is one."""
    beside = path.with_name(path.name + HASH_SUFFIX)
    if not beside.is_file():
        return
    with beside.open("rb") as file:
        words = file.read(1024).decode("ascii", "replace").split()
    expected = words[0].lower() if words else ""
    if not re.fullmatch("[0-9a-f]{64}", expected):
        raise CheckpointError(
            f"{beside}: begins with {expected[:80]!r}, expected the 64 hexadecimal digits of the "
            f"SHA-256 of {path.name}.\nTake both files from their source again, or remove this one."
        )
    found = sha256_of(path)
    if found != expected:
        raise CheckpointError(
            f"{path}: {path.stat().st_size:,} bytes with the SHA-256 {found}, expected {expected}, "
            f"which {beside.name} holds.\nThe file is damaged or was replaced: take both files "
            f"from their source again (git checkout), or remove {beside.name} if you replaced it."
        )


def _reason(error: Exception) -> str:
    """Return the line of PyTorch's message that says what is wrong, without its advice."""
    text = str(error).strip() or type(error).__name__
    of_reader = re.search(r"WeightsUnpickler error: (.+)", text)
    if text.startswith("Weights only load failed") and not of_reader:
        return "it holds more than plain data"
    line = of_reader[1] if of_reader else text.splitlines()[0]
    return line.split(" Please ")[0].strip(" .:")[:300]


def _require_stored(path: pathlib.Path) -> None:
    """Raise ValueError for a zip archive that would grow when it is read."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    held, size = sum(member.file_size for member in members), path.stat().st_size
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or held > size:
        raise ValueError(f"a compressed archive of {held:,} bytes, expected an uncompressed one")


def require_decoder(checkpoint: Checkpoint) -> None:
    """Raise `CheckpointError` for a file that holds an image encoder alone."""
    if not checkpoint.holds("mask_decoder"):
        advice = prefix_advice(checkpoint.weights)
        found = "no weights of a mask decoder by their keys" if advice else "an image encoder alone"
        raise CheckpointError(
            f"{checkpoint.path}: holds {found}, expected a mask decoder too.\n"
            + (
                advice
                or "Give the file of the teacher that it was distilled from (--teacher FILE)."
            )
        )
