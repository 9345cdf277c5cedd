"""The networks by name: every number that defines one is here.

    sam_model_registry3D["vit_b_ori"](checkpoint="sam_med3d_turbo.pth")
    sam_model_registry3D["fastsam3d"]("fastsam3d.pth", decoder_checkpoint="sam_med3d_turbo.pth")

| name             | what it is                                                              |
|------------------|-------------------------------------------------------------------------|
| vit_b_ori        | SAM-Med3D, the teacher (arXiv:2310.15161)                               |
| fastsam3d        | FastSAM3D's six-block encoder with the teacher's decoder (2403.09827)   |
| tiny             | a small network to train from scratch, on a CPU if need be              |
| tiny_fastsam3d   | the student form of ``tiny``                                            |
"""

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from torch import nn
from torch.overrides import TorchFunctionMode

from segment_anything.checkpoint import (
    DECODER_PARTS,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    open_checkpoint,
    student_num_heads,
)
from segment_anything.config import (
    ConfigError,
    DecoderConfig,
    EncoderConfig,
    PromptConfig,
    SamConfig,
)
from segment_anything.modeling import (
    ImageEncoderViT3D,
    MaskDecoder3D,
    PromptEncoder3D,
    Sam3D,
    TwoWayTransformer3D,
)

VIT_B_ORI = SamConfig(network="vit_b_ori")

FASTSAM3D = SamConfig(
    network="fastsam3d",
    encoder=EncoderConfig(
        depth=6,
        window_size=0,
        global_attn_indexes=(),
        attention_free_blocks=(0, 1),
        mlp_residual="normalised",
    ),
)

TINY = SamConfig(
    network="tiny",
    encoder=EncoderConfig(
        embed_dim=192,
        depth=6,
        num_heads=3,
        window_size=0,
        global_attn_indexes=(),
        attention_free_blocks=(0, 1),
        stem="conv",
        out_chans=192,
        neck_kernel=1,
        detail_chans=16,
    ),
    prompt=PromptConfig(dense_pe_axes=(0, 1, 2), click_stamp_sigma=1.0, click_memory="all"),
    decoder=DecoderConfig(mlp_dim=512),
)

TINY_FASTSAM3D = dataclasses.replace(
    TINY,
    network="tiny_fastsam3d",
    encoder=dataclasses.replace(
        TINY.encoder, depth=3, attention_free_blocks=(0,), mlp_residual="normalised"
    ),
)


def build_sam3D(config: SamConfig) -> Sam3D:
    """Build a network with fresh weights, in training mode."""
    encoder, decoder = config.encoder, config.decoder
    width = encoder.out_chans
    return Sam3D(
        config,
        image_encoder=ImageEncoderViT3D(encoder),
        prompt_encoder=PromptEncoder3D(
            config.prompt,
            embed_dim=width,
            img_size=encoder.img_size,
            grid_size=encoder.grid_size,
            detail_chans=encoder.detail_chans,
        ),
        mask_decoder=MaskDecoder3D(
            TwoWayTransformer3D(decoder.depth, width, decoder.num_heads, decoder.mlp_dim),
            dim=width,
            detail_chans=encoder.detail_chans,
        ),
    )


def build_from_checkpoint(
    path: str | Path | Checkpoint,
    network: str | None = None,
    decoder_checkpoint: str | Path | None = None,
) -> Sam3D:
    """Rebuild the network that a checkpoint belongs to, with its weights.

    Args:
        path: A file of ours, which says what it is, or a released one, which does not.
        network: Its name in the registry; must be given for released files.
        decoder_checkpoint: Where the prompt encoder and mask decoder come from, for files that
            hold an image encoder alone.

    Raises:
        CheckpointError: the file is unreadable, unnamed, or not of ``network``.
    """
    checkpoint = open_checkpoint(path)
    path, config = checkpoint.path, checkpoint.config
    if config is None:
        if network not in sam_model_registry3D:
            raise CheckpointError(
                f"{path}: does not say which network it holds, and '{network}' was named; expected "
                f"one of {', '.join(sam_model_registry3D)}.\nName it: nothing in its keys would "
                "tell a wrong guess from a right one."
            )
        return sam_model_registry3D[network](checkpoint, decoder_checkpoint=decoder_checkpoint)
    if network is not None and config["network"] != network:
        raise CheckpointError(
            f"{path}: holds the network '{config['network']}', expected '{network}'.\n"
            "Leave the name out, or point to the file you meant."
        )
    try:
        return _load(SamConfig.from_dict(config), checkpoint, decoder_checkpoint)
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: its config cannot be built ({error}), expected one of this version.\n"
            "Use the version of this project that wrote it."
        ) from error


def _build(
    config: SamConfig,
    checkpoint: str | Path | Checkpoint | None = None,
    decoder_checkpoint: str | Path | None = None,
) -> Sam3D:
    """Build a named network, with the weights of ``checkpoint`` if one is given.

    Args:
        config: Which network.
        checkpoint: A whole network, or an image encoder alone.
        decoder_checkpoint: Where the prompt encoder and mask decoder come from instead: the file
            of the teacher that a student was distilled from.
    """
    if checkpoint is None:
        model = build_sam3D(config)
        if decoder_checkpoint is not None:
            load_checkpoint(model, decoder_checkpoint, DECODER_PARTS)
        return model
    checkpoint = open_checkpoint(checkpoint)
    if config.network == FASTSAM3D.network:  # released students exist with 12 heads and with 6
        heads = student_num_heads(checkpoint.weights, str(checkpoint.path))
        encoder = dataclasses.replace(config.encoder, num_heads=heads)
        config = dataclasses.replace(config, encoder=encoder)
    return _load(config, checkpoint, decoder_checkpoint)


class _Undrawn(TorchFunctionMode):
    """Weights stay as memory is found: drawing what a file overwrites takes longer than reading it.

    Not the meta device, whose first use imports 800 modules.
    """

    draws = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.draws:
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _load(config: SamConfig, checkpoint: Checkpoint, decoder_path: str | Path | None) -> Sam3D:
    encoder_alone = not any(checkpoint.holds(part) for part in DECODER_PARTS)
    untrained = encoder_alone and decoder_path is None
    with nullcontext() if untrained else _Undrawn():
        model = build_sam3D(config)
    if encoder_alone or decoder_path is not None:
        load_checkpoint(model, checkpoint, ("image_encoder",))
    else:
        load_checkpoint(model, checkpoint)
    if decoder_path is not None:
        load_checkpoint(model, decoder_path, DECODER_PARTS)
    elif untrained:
        warnings.warn(
            f"{checkpoint.path} holds an image encoder alone: prompt encoder and mask decoder are "
            "untrained until decoder_checkpoint, the teacher's file, is given",
            stacklevel=3,
        )
    return model


network_configs: dict[str, SamConfig] = {
    config.network: config for config in (VIT_B_ORI, FASTSAM3D, TINY, TINY_FASTSAM3D)
}
sam_model_registry3D: dict[str, Callable[..., Sam3D]] = {
    name: partial(_build, config) for name, config in network_configs.items()
}
