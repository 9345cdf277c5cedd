"""Refine the masks of any network by guided diffusion along the image's edges.

    sharper = refined(model, 0.3)
    predictor = CropPredictor(sharper, torch.device("cpu"))

`decode_points` does the refinement (`guided_mask` of modeling/diffusion3D.py). It needs the crop's
image, on the grid of the refined masks: eight cells to a token along each axis, half of the voxels
where tokens have 16. Networks of the form pyramid have masks on this grid, and the image in their
embedding. Networks of the form sam, such as the released ones, have neither. For these
`encode_image` appends the image to the embedding, and `decode_points` grows the masks to the grid.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling import Sam3D
from segment_anything.modeling.common import fold_cells
from segment_anything.modeling.pyramid3D import fold_image


def refined(model: Sam3D, strength: float) -> Sam3D:
    """Return the network with its masks refined: same weights, another configuration.

    Both networks share their parts. ``model`` is not changed. An image encoder from an ONNX file
    (`use_onnx_encoder`) must be in ``model`` before.

    >>> from segment_anything import build_sam3D, network_configs, refined
    >>> model = build_sam3D(network_configs["fastsam3d"])  # random weights
    >>> model.config.low_res_size, refined(model, 0.3).config.low_res_size
    (32, 64)

    Args:
        model: The network, of any form.
        strength: Weight of the network's own mask against the image's edges, 0 to 1000: the lower,
            the more a mask follows the edges. 0 turns the refinement off.

    Raises:
        ConfigError: the strength is no number, or out of its range.
    """
    decoder = dataclasses.replace(model.config.decoder, refine_strength=strength)
    network = Sam3D(
        dataclasses.replace(model.config, decoder=decoder),
        image_encoder=model.image_encoder,
        prompt_encoder=model.prompt_encoder,
        mask_decoder=model.mask_decoder,
    )
    network.training = model.training
    return network


def encode_image(model: Sam3D, images: Tensor) -> Tensor:
    """Return image embeddings (B, E, g, g, g) of crops (B, 1, S, S, S), as `decode_points` wants.

    E is ``SamConfig.embedding_chans``: the channels of the image encoder, and where
    ``SamConfig.appends_image`` is true those of the image, folded.
    """
    embeddings = model.image_encoder(images)
    if not model.config.appends_image:
        return embeddings
    image = F.adaptive_avg_pool3d(images, model.config.low_res_size)
    return torch.cat([embeddings, fold_cells(fold_image(image)).to(embeddings)], dim=1)
