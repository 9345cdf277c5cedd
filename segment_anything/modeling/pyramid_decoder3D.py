"""A mask decoder that meets the prompts at every scale, within SAM's form (arXiv:2304.02643).

Prompt maps and cell features go down from the cells to the tokens, the two-way transformer lets
tokens, clicks and mask token attend to each other, and the way back up joins the features of each
scale. The mask token's perceptrons turn it into vectors over the channels of the two finest scales;
their dot products with each cell and each half cell are the mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything.config import IMAGE_CELLS
from segment_anything.modeling.common import (
    MLP,
    ChannelNorm3d,
    dense_last,
    unfold_cells,
    upsample,
    wide,
)
from segment_anything.modeling.conv3D import DetailConv3d, PatchConvTranspose3d
from segment_anything.modeling.pyramid3D import (
    CELL_CHANS,
    ResidualConv3d,
    detail_of,
    image_of,
    unfold_image,
)

HALF_CHANS = 64  # of 8^3 voxels, here less than in the encoder
FINE_CHANS = 8  # of 2^3 voxels


class PyramidMaskDecoder3D(nn.Module):
    """One mask for each set of prompts, on a grid of eight cells to a token along each axis."""

    def __init__(
        self,
        transformer: nn.Module,
        *,
        dim: int,
        detail_chans: int,
        prompt_chans: int,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dim = dim
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(1, dim)
        self.prompt_cells = DetailConv3d(prompt_chans, CELL_CHANS)
        self.detail_cells = nn.Conv3d(detail_chans, CELL_CHANS, kernel_size=1)
        self.prompt_cells_norm = ChannelNorm3d(CELL_CHANS)
        self.prompt_halves = nn.Conv3d(CELL_CHANS, HALF_CHANS, kernel_size=2, stride=2)
        self.prompt_halves_norm = ChannelNorm3d(HALF_CHANS)
        self.prompt_tokens = nn.Conv3d(HALF_CHANS, dim, kernel_size=2, stride=2)
        self.to_halves = PatchConvTranspose3d(dim, HALF_CHANS, 2)
        self.halves_norm = ChannelNorm3d(HALF_CHANS)
        self.halves_conv = DetailConv3d(HALF_CHANS, HALF_CHANS)
        self.to_cells = PatchConvTranspose3d(HALF_CHANS, CELL_CHANS, 2)
        self.cells_conv = ResidualConv3d(CELL_CHANS)
        self.cells_norm = ChannelNorm3d(CELL_CHANS)
        self.to_fine = PatchConvTranspose3d(CELL_CHANS, FINE_CHANS, 2)
        self.fine_prompt = nn.Conv3d(2, FINE_CHANS, kernel_size=1)
        self.fine_conv = DetailConv3d(FINE_CHANS, FINE_CHANS)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, chans, 3) for chans in (CELL_CHANS, FINE_CHANS)
        )
        self.iou_prediction_head = MLP(dim, dim, 1, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks. C = ``dim``; P and E are the channels of prompt maps and embedding.

        Args:
            image_embeddings: (B, E, g, g, g).
            image_pe: (1, C, g, g, g) from the prompt encoder's ``get_dense_pe``.
            sparse_prompt_embeddings: (B, T, C).
            dense_prompt_embeddings: (B, 64 P, g, g, g), of `PyramidPromptEncoder3D`.
            multimask_output: False; there is one mask token.

        Returns:
            Low-resolution logits (B, 1, 8g, 8g, 8g) and their predicted IoU (B, 1).

        Raises:
            ValueError: ``multimask_output`` is True.
        """
        if multimask_output:
            raise ValueError("mask decoder: multimask_output is True, expected False: one mask")
        tokens = image_embeddings[:, : self.dim]
        detail, image = detail_of(image_embeddings, self.dim), image_of(image_embeddings)
        maps = unfold_cells(dense_prompt_embeddings)
        # 1. Prompts and cells down to the tokens
        cells = self.prompt_cells(dense_last(maps.to(detail.dtype)))
        cells = cells + self.detail_cells(dense_last(detail))
        halves = self.prompt_halves(F.gelu(self.prompt_cells_norm(cells)))
        src = tokens + self.prompt_tokens(F.gelu(self.prompt_halves_norm(halves)))

        # 2. Tokens, clicks and output tokens attend to each other
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        output_tokens = output_tokens.expand(sparse_prompt_embeddings.shape[0], -1, -1)
        prompt_tokens = torch.cat([output_tokens, sparse_prompt_embeddings], dim=1)
        hs, keys = self.transformer(src, image_pe, prompt_tokens)
        iou_token_out, mask_token_out = hs[:, 0], hs[:, 1]

        # 3. Up to the cells
        src = keys.transpose(1, 2).unflatten(2, src.shape[2:])
        halves = F.gelu(self.halves_norm(self.to_halves(src) + halves))
        halves = halves + self.halves_conv(halves)
        cells = self.cells_conv(self.to_cells(F.gelu(halves)) + cells)
        cells = F.gelu(self.cells_norm(cells))

        # 4. Up to the half cells, with image and mask prompt
        mask = unfold_image(maps[:, -IMAGE_CELLS:].detach())
        fine = self.fine_prompt(dense_last(torch.cat([image.to(maps.dtype), mask], dim=1)))
        fine = F.relu(self.to_fine(cells) + fine, inplace=True)
        fine = F.relu(self.fine_conv(fine), inplace=True)

        # 5. Masks: the mask token against every cell and half cell
        coarse, finest = (
            _products(features, perceptron(mask_token_out))
            for features, perceptron in zip(
                (cells, fine), self.output_hypernetworks_mlps, strict=True
            )
        )
        return finest + upsample(coarse, finest.shape[-1]), self.iou_prediction_head(iou_token_out)


def _products(features: Tensor, vectors: Tensor) -> Tensor:
    """Return the products (B, 1, D, H, W) of features (B, c, D, H, W) and vectors (B, c)."""
    products = features.movedim(1, -1) @ vectors[:, None, None, :, None]
    return wide(products.movedim(-1, 1))
