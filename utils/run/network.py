"""A network file in use: opened, checked, and rebuilt with the crops it was trained on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from segment_anything import (
    CheckpointError,
    ConfigError,
    Sam3D,
    build_from_checkpoint,
    open_checkpoint,
    read_checkpoint,
    require_decoder,
)
from segment_anything.onnx_encoder import OnnxError, use_onnx_encoder
from utils.errors import InputError
from utils.volumes.geometry import CropRule


@dataclass(frozen=True)
class NetworkFile:
    """What opens a network; picklable, so that each worker process can open its own."""

    path: Path
    network: str | None = None  # the registry's name, for files that do not say it
    decoder: Path | None = None  # prompt encoder and mask decoder come from this file
    encoder: Path | None = None  # an ONNX file in place of the image encoder

    def open(self) -> tuple[Sam3D, CropRule]:
        """Return the network and the crops it was trained on; see `open_network`."""
        return open_network(self.path, self.network, self.decoder, encoder=self.encoder)


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
    with checkpoint_errors():
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
        with checkpoint_errors():
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
    with checkpoint_errors():
        names = read_checkpoint(path).get("trained_on")
    return None if names is None else set(names)


@contextmanager
def checkpoint_errors() -> Iterator[None]:
    """Turn what the model package raises about a file into what a script prints."""
    try:
        yield
    except (CheckpointError, ConfigError, OnnxError) as error:
        raise InputError(str(error)) from error
