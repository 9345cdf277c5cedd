"""Network files: the network of one is rebuilt and checked, with its crop rule; one is written."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from segment_anything import (
    CheckpointError,
    ConfigError,
    NotFiniteError,
    Sam3D,
    build_from_checkpoint,
    is_finite,
    open_checkpoint,
    read_checkpoint,
    refined,
    require_decoder,
)
from segment_anything.onnx_encoder import OnnxError, use_onnx_encoder
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.volumes.geometry import CropRule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkFile:
    """The arguments of `open_network`; picklable, so that each worker can open the file itself."""

    path: Path
    network: str | None = None  # name in the registry, for files without a configuration
    decoder: Path | None = None  # file to take prompt encoder and mask decoder from
    encoder: Path | None = None  # ONNX file that replaces the image encoder
    refine: float | None = None  # strength of the masks' refinement; None: the network's own

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return [path for path in (self.path, self.decoder, self.encoder) if path is not None]

    def open(self) -> tuple[Sam3D, CropRule]:
        """Return the network, and size and spacing of its crops; see `open_network`."""
        return open_network(
            self.path, self.network, self.decoder, encoder=self.encoder, refine=self.refine
        )

    def trained_on(self) -> set[str] | None:
        """Return the "organ/data set" folders of the training; see `trained_on`."""
        return trained_on(self.path)


def open_network(
    path: Path,
    network: str | None = None,
    decoder_checkpoint: Path | None = None,
    *,
    encoder: Path | None = None,
    refine: float | None = None,
) -> tuple[Sam3D, CropRule]:
    """Rebuild the network of a checkpoint; return it with the crop rule of its training::

        model, rule = open_network(Path("sam_med3d_turbo.pth"), "vit_b_ori")

    Args:
        path: a file of this project, or released weights.
        network: a name in `sam_model_registry3D`. Released weights need it, since these files hold
            no configuration; their crops are 128³ voxels of 1.5 mm.
        decoder_checkpoint: take prompt encoder and mask decoder from this file, for released
            FastSAM3D weights, which lack them.
        encoder: ONNX file that replaces the image encoder, from segment_anything/export.py.
        refine: strength of the masks' refinement, as in `segment_anything.refined`; 0 is off, None
            the strength of the network's configuration.

    Returns:
        the network, on the CPU; and the size and spacing of its crops.

    Raises:
        InputError: the file is no checkpoint, is of another network, lacks a decoder, or holds
            weights that are not finite or a crop rule out of range; or the ONNX file is not of this
            network's encoder; or the strength is out of its range.
    """
    with checkpoint_errors():
        checkpoint = open_checkpoint(path)
        for note in checkpoint.notes:
            logger.warning("%s", note)
        if decoder_checkpoint is None:
            require_decoder(checkpoint)
        model = build_from_checkpoint(checkpoint, network, decoder_checkpoint)
        stored = checkpoint.facts.get("crop_rule")
    broken = [name for name, p in model.state_dict().items() if not is_finite(p)]
    if broken:
        raise InputError(
            f"{path}: {len(broken)} weights are not finite, {broken[0]} first; expected numbers.\n"
            "The training had diverged before this file was saved: use an earlier checkpoint."
        )
    if encoder is not None:
        with checkpoint_errors():
            use_onnx_encoder(model, encoder)
    if refine is not None:
        with checkpoint_errors():
            model = refined(model, refine)
    return model, CropRule.read(stored, model.config.encoder.img_size, path)


def trained_on(path: Path) -> set[str] | None:
    """Return the "organ/data set" folders a checkpoint was trained on; None where not recorded.

    Raises:
        InputError: the file is no checkpoint, or the entry is no list of names.
    """
    with checkpoint_errors():
        names = read_checkpoint(path).get("trained_on")
    if names is None:
        return None
    if not isinstance(names, (list, tuple, set)) or not all(isinstance(n, str) for n in names):
        raise InputError(
            f"{path}: its trained_on is a {type(names).__name__}, expected a list of folders' "
            "names.\nUse a file that this version of the project wrote."
        )
    return set(names)


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


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Turn errors of the package segment_anything into an `InputError`."""
    try:
        yield
    except (CheckpointError, ConfigError, OnnxError) as error:
        raise InputError(str(error)) from error


@contextmanager
def network_errors() -> Iterator[None]:
    """Turn the error of a network that computes NaN or infinity into an `InputError`."""
    try:
        yield
    except NotFiniteError as error:
        raise InputError(str(error)) from error
