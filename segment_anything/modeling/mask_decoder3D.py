"""The mask decoder of SAM (arXiv:2304.02643): image and prompts to low-resolution mask logits.

Each mask token has a perceptron of its own, which turns it into a vector over the channels of the
upscaled image. The dot product of that vector with every voxel is the mask.
"""

import torch
from torch import Tensor, nn

from segment_anything.modeling.common import MLP, ChannelNorm3d, unfold_cells
from segment_anything.modeling.conv3D import (
    DetailConv3d,
    PatchConvTranspose3d,
    assemble,
    split,
)


class MaskDecoder3D(nn.Module):
    """One mask for unambiguous prompts, or three alternatives, and a predicted IoU for each.

    With ``detail_chans``, embeddings carry features of the low-resolution cells after their first
    ``dim`` channels. These skip the transformer and are added to the upscaled image.
    """

    def __init__(
        self,
        transformer: nn.Module,
        *,
        dim: int,
        num_multimask_outputs: int = 3,
        detail_chans: int = 0,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.dim = dim
        self.num_mask_tokens = num_multimask_outputs + 1
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(self.num_mask_tokens, dim)
        self.output_upscaling = nn.Sequential(
            *(PatchConvTranspose3d(dim, dim // 4, 2), ChannelNorm3d(dim // 4)),
            nn.GELU(),
            *(PatchConvTranspose3d(dim // 4, dim // 8, 2), nn.GELU()),
        )
        if detail_chans:
            self.detail = nn.Sequential(
                *(ChannelNorm3d(detail_chans), nn.GELU()),
                DetailConv3d(detail_chans, detail_chans),
                *(nn.GELU(), nn.Conv3d(detail_chans, dim // 8, kernel_size=1)),
            )
        else:
            self.detail = None
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, 3) for _ in range(self.num_mask_tokens)
        )
        self.iou_prediction_head = MLP(dim, 256, self.num_mask_tokens, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks. C = ``dim``, and E = C + 64 ``detail_chans``.

        Args:
            image_embeddings: (B, E, g, g, g), or (1, E, g, g, g) shared by all prompts.
            image_pe: (1, C, g, g, g) from the prompt encoder's ``get_dense_pe``.
            sparse_prompt_embeddings: (B, T, C).
            dense_prompt_embeddings: (B, E, g, g, g).
            multimask_output: True for the three alternatives, False for the one mask.

        Returns:
            Low-resolution logits (B, 3 or 1, 4g, 4g, 4g) and their predicted IoU (B, 3 or 1).
        """
        wanted = slice(1, None) if multimask_output else slice(0, 1)
        # 1. Output tokens in front of the prompt tokens
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        batch = sparse_prompt_embeddings.shape[0]
        output_tokens = output_tokens.expand(batch, -1, -1)
        tokens = torch.cat([output_tokens, sparse_prompt_embeddings], dim=1)

        # 2. Tokens and image attend to each other
        src = image_embeddings + dense_prompt_embeddings
        src, cells = src[:, : self.dim], src[:, self.dim :]
        hs, keys = self.transformer(src, image_pe, tokens)
        iou_token_out = hs[:, 0]
        mask_tokens_out = hs[:, 1 : 1 + self.num_mask_tokens]

        # 3. Upscale the image by four
        src = keys.transpose(1, 2).unflatten(2, src.shape[2:])
        upscaled = self._upscaled(src, cells)

        # 4. Masks: each wanted token against every voxel
        hyper_in = torch.stack(
            [
                self.output_hypernetworks_mlps[index](mask_tokens_out[:, index])
                for index in range(self.num_mask_tokens)[wanted]
            ],
            dim=1,
        )
        masks = assemble((upscaled.flatten(1, 6) @ hyper_in.mT).unflatten(1, upscaled.shape[1:7]))

        # 5. Quality
        return masks, self.iou_prediction_head(iou_token_out)[:, wanted]

    def _upscaled(self, src: Tensor, cells: Tensor) -> Tensor:
        """Upscale the image tokens by four, and add the detail of their cells.

        Args:
            src: (B, C, g, g, g) image tokens from the transformer.
            cells: (B, 64 detail_chans, g, g, g); without detail it has no channels.

        Returns:
            (B, 2g, 2g, 2g, 2, 2, 2, C / 8): cubes of 2^3 cells, not yet side by side. Putting a
            few masks together is cheaper than putting all channels together.
        """
        *upscale, last, activation = self.output_upscaling
        for layer in upscale:
            src = layer(src)
        upscaled = last.cubes(src)
        if self.detail is not None:
            upscaled = upscaled + split(self.detail(unfold_cells(cells)), 2)
        return activation(upscaled)
