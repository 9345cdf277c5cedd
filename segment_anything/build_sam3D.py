"""The networks by name, and what differs in each from the defaults of config.py.

    sam_model_registry3D["vit_b_ori"](checkpoint="sam_med3d_turbo.pth")
    sam_model_registry3D["fastsam3d"]("fastsam3d.pth", decoder_checkpoint="sam_med3d_turbo.pth")

| name             | network                                                               | E     |
|------------------|-----------------------------------------------------------------------|-------|
| vit_b_ori        | SAM-Med3D, the teacher (arXiv:2310.15161)                             | 384   |
| fastsam3d        | FastSAM3D's six-block encoder with the teacher's decoder (2403.09827) | 384   |
| tiny             | a small network to train from scratch, on a CPU if need be            | 2,240 |
| tiny_fastsam3d   | the student form of ``tiny``                                          | 2,240 |

All encode volumes (B, 1, 128, 128, 128) to image embeddings (B, E, 8, 8, 8). The first two decode
clicks to low-resolution logits (B, 1, 32, 32, 32), the small ones to (B, 1, 64, 64, 64):

>>> import torch
>>> from segment_anything import Interaction, sam_model_registry3D
>>> model = sam_model_registry3D["tiny"]().eval()  # random weights
>>> with torch.no_grad():
...     embedding = model.image_encoder(torch.randn(1, 1, 128, 128, 128))
...     click = torch.tensor([[40.0, 64.0, 70.0]]), torch.tensor([1])  # a voxel, foreground
...     logits, iou = Interaction(model, embedding).click(*click)
>>> embedding.shape, logits.shape, iou.shape
(torch.Size([1, 2240, 8, 8, 8]), torch.Size([1, 1, 64, 64, 64]), torch.Size([1, 1]))
"""

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segment_anything.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    student_num_heads,
)
from segment_anything.checkpoint_fit import config_of, load_checkpoint, require_fit
from segment_anything.checkpoint_keys import DECODER_PARTS, PARTS
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
    PyramidMaskDecoder3D,
    PyramidPromptEncoder3D,
    Sam3D,
    TwoWayTransformer3D,
)
from segment_anything.modeling.pyramid_prompt3D import prompt_chans

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
        detail_chans=24,
        detail="pyramid",
    ),
    prompt=PromptConfig(
        dense_pe_axes=(0, 1, 2),
        click_memory="all",
        click_diffusion=True,
        click_likeness=True,
        boxes=True,
    ),
    decoder=DecoderConfig(mlp_dim=512, form="pyramid", refine_strength=1.0, mask_bias=1.0),
)

TINY_FASTSAM3D = dataclasses.replace(
    TINY,
    network="tiny_fastsam3d",
    encoder=dataclasses.replace(
        TINY.encoder, depth=3, attention_free_blocks=(0,), mlp_residual="normalised"
    ),
)


def build_sam3D(config: SamConfig) -> Sam3D:
    """Build a network with random weights: on the CPU, float32, in training mode.

    Raises:
        ConfigError: only `refined` makes networks of this configuration.
    """
    config.require_buildable()
    encoder, decoder = config.encoder, config.decoder
    width, is_pyramid = encoder.out_chans, decoder.form == "pyramid"
    # Built in this order, since a seed's weights depend on it.
    image_encoder = ImageEncoderViT3D(encoder)
    prompt_encoder = (PyramidPromptEncoder3D if is_pyramid else PromptEncoder3D)(
        config.prompt,
        embed_dim=width,
        img_size=encoder.img_size,
        grid_size=encoder.grid_size,
        low_res_size=config.low_res_size,
        detail_chans=encoder.detail_chans,
    )
    transformer = TwoWayTransformer3D(decoder.depth, width, decoder.num_heads, decoder.mlp_dim)
    widths = {"dim": width, "detail_chans": encoder.detail_chans}
    if is_pyramid:
        maps = prompt_chans(config.prompt)
        mask_decoder = PyramidMaskDecoder3D(transformer, **widths, prompt_chans=maps)
    else:
        mask_decoder = MaskDecoder3D(transformer, **widths)
    return Sam3D(
        config,
        image_encoder=image_encoder,
        prompt_encoder=prompt_encoder,
        mask_decoder=mask_decoder,
    )


def build_from_checkpoint(
    path: str | Path | Checkpoint,
    network: str | None = None,
    decoder_checkpoint: str | Path | None = None,
) -> Sam3D:
    """Build the network that a checkpoint file holds, with its weights.

    Args:
        path: The file, or one already open. Files of ours carry their config; released files do
            not.
        network: The network's name in `sam_model_registry3D`. Released files need the name; for
            our files it is only checked.
        decoder_checkpoint: The file that prompt encoder and mask decoder come from. Needed for
            files that hold an image encoder alone; replaces both parts of a whole network's file.

    Returns:
        The network: on the CPU, float32, in training mode. An image encoder alone, without
        ``decoder_checkpoint``, comes with a warning and random weights in the other parts.

    Raises:
        CheckpointError: a file cannot be read, does not fit the network, or is of another version;
            or the network's name is missing or wrong.
    """
    checkpoint = open_checkpoint(path)
    path, config = checkpoint.path, checkpoint.config
    if config is None:
        if network not in sam_model_registry3D:
            raise CheckpointError(
                f"{path}: has no network name, and the name given is {network!r}; "
                f"expected one of {', '.join(sam_model_registry3D)}.\nGive the name of the network "
                "that wrote it (--network NAME): keys and shapes are not enough to tell."
            )
        return sam_model_registry3D[network](checkpoint, decoder_checkpoint=decoder_checkpoint)
    if network is not None and config["network"] != network:
        raise CheckpointError(
            f"{path}: holds the network '{config['network']}', expected '{network}'.\n"
            "Leave the name out, or give the file that you meant."
        )
    return _load(config_of(checkpoint), checkpoint, decoder_checkpoint)


def _build(
    config: SamConfig,
    checkpoint: str | Path | Checkpoint | None = None,
    decoder_checkpoint: str | Path | None = None,
) -> Sam3D:
    """Build a network of the registry; see `sam_model_registry3D`."""
    if checkpoint is None:
        model = build_sam3D(config)
        if decoder_checkpoint is not None:
            load_checkpoint(model, decoder_checkpoint, DECODER_PARTS)
        return model
    checkpoint = open_checkpoint(checkpoint)
    if config.network == FASTSAM3D.network:  # released students exist with 12 heads and with 6
        heads = student_num_heads(checkpoint.weights, str(checkpoint.path))
        try:
            encoder = dataclasses.replace(config.encoder, num_heads=heads)
        except ConfigError as error:
            raise CheckpointError(
                f"{checkpoint.path}: holds an encoder with {heads} heads by its shapes ({error}), "
                "expected a released student's 12 or 6.\nName the network that wrote the file."
            ) from error
        config = dataclasses.replace(config, encoder=encoder)
    return _load(config, checkpoint, decoder_checkpoint)


class _SkipInitialisation(TorchFunctionMode):
    """Skip random initialisation: it takes longer than reading the file that overwrites it.

    PyTorch's meta device would do the same, but its first use imports 800 modules.
    """

    draws = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.draws:
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class _Skeleton(TorchFunctionMode):
    """Build modules whose parameters have their shapes and take no memory; they hold no values.

    PyTorch's meta device would do the same, but its first use imports 800 modules.
    """

    creates = (torch.empty, torch.zeros, torch.ones, torch.randn)
    fills = (*_SkipInitialisation.draws, Tensor.fill_, Tensor.zero_, Tensor.copy_, torch.empty_like)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.creates:
            size = args[0] if isinstance(args[0], (tuple, list)) else args
            return torch.empty(()).expand(size)
        if function in self.fills:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def _load(config: SamConfig, checkpoint: Checkpoint, decoder_path: str | Path | None) -> Sam3D:
    encoder_alone = not any(checkpoint.holds(part) for part in DECODER_PARTS)
    untrained = encoder_alone and decoder_path is None
    parts = ("image_encoder",) if encoder_alone or decoder_path is not None else PARTS
    files = [(checkpoint, parts)]
    if decoder_path is not None:
        files.append((open_checkpoint(decoder_path), DECODER_PARTS))
    with _Skeleton():
        needed = build_sam3D(config).state_dict()
    for file, held in files:  # before the network is built, which might take all memory
        require_fit(config, needed, file, held)
    with nullcontext() if untrained else _SkipInitialisation():
        model = build_sam3D(config)
    for file, held in files:
        load_checkpoint(model, file, held)
    if untrained:
        warnings.warn(
            f"{checkpoint.path}: holds an image encoder alone; prompt encoder and mask decoder are "
            "untrained until decoder_checkpoint, the teacher's file, is given",
            stacklevel=3,
        )
    return model


#: The configuration of each network, by its name.
network_configs: dict[str, SamConfig] = {
    config.network: config for config in (VIT_B_ORI, FASTSAM3D, TINY, TINY_FASTSAM3D)
}
#: ``sam_model_registry3D[name](checkpoint=None, decoder_checkpoint=None)`` builds a network.
#:
#: Args:
#:     checkpoint: A file with the whole network or its image encoder, or a `Checkpoint` already
#:         open; None gives random weights.
#:     decoder_checkpoint: The file that prompt encoder and mask decoder come from instead: for a
#:         student, that of the teacher it was distilled from.
#:
#: Returns:
#:     The `Sam3D`: on the CPU, float32, in training mode; call ``.eval()`` to use it. For
#:     ``fastsam3d`` the number of heads is read from the file. An image encoder alone, without
#:     ``decoder_checkpoint``, comes with a warning and random weights in the other parts.
#:
#: Raises:
#:     KeyError: there is no network of this name.
#:     CheckpointError: a file cannot be read, or holds another network.
sam_model_registry3D: dict[str, Callable[..., Sam3D]] = {
    name: partial(_build, config) for name, config in network_configs.items()
}
