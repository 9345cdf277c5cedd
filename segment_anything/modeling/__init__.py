"""The parts of a network, one box of the SAM paper's figure per file."""

from segment_anything.modeling.image_encoder3D import EncoderOutput, ImageEncoderViT3D
from segment_anything.modeling.mask_decoder3D import MaskDecoder3D
from segment_anything.modeling.prompt_encoder3D import PromptEncoder3D
from segment_anything.modeling.pyramid_decoder3D import PyramidMaskDecoder3D
from segment_anything.modeling.pyramid_prompt3D import PyramidPromptEncoder3D
from segment_anything.modeling.sam3D import Sam3D
from segment_anything.modeling.transformer3D import TwoWayTransformer3D

__all__ = [
    "EncoderOutput",
    "ImageEncoderViT3D",
    "MaskDecoder3D",
    "PromptEncoder3D",
    "PyramidMaskDecoder3D",
    "PyramidPromptEncoder3D",
    "Sam3D",
    "TwoWayTransformer3D",
]
