"""Sam3D: the three parts of a promptable segmentation network and the threshold of its masks.

`Sam3D` has no ``forward``: an image is encoded once and then prompted many times, so the click loop
(segment_anything/decoding.py) calls the parts.
"""

from torch import nn

from segment_anything.config import SamConfig
from segment_anything.modeling.image_encoder3D import ImageEncoderViT3D
from segment_anything.modeling.mask_decoder3D import MaskDecoder3D
from segment_anything.modeling.prompt_encoder3D import PromptEncoder3D


class Sam3D(nn.Module):
    """An image encoder, a prompt encoder and a mask decoder that belong together.

    `segment_anything.build_sam3D` builds one from its config.
    """

    mask_threshold: float = 0.0  # on logits

    def __init__(
        self,
        config: SamConfig,
        *,
        image_encoder: ImageEncoderViT3D,
        prompt_encoder: PromptEncoder3D,
        mask_decoder: MaskDecoder3D,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
