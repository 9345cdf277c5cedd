"""The image encoder: a plain vision transformer over the patches of a cubic volume.

Teacher (SAM-Med3D, arXiv:2310.15161) and student (FastSAM3D, arXiv:2403.09827) are two
configurations of it. Volumes are (B, 1, S, S, S) with S = ``img_size``. Between stem and neck the
tokens stay on their grid with the channels last, (B, g, g, g, C).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from segment_anything.config import EncoderConfig
from segment_anything.modeling.attention3D import Attention3D
from segment_anything.modeling.common import ChannelNorm3d, MLPBlock, fold_cells
from segment_anything.modeling.conv3D import PatchConv3d
from segment_anything.modeling.pyramid3D import PyramidDetail3D, PyramidStem3D

STEM_CHANS = 32


class EncoderOutput(NamedTuple):
    """What `ImageEncoderViT3D.forward_features` returns."""

    image_embedding: Tensor | None  # (B, embedding_chans, g, g, g)
    hidden_states: list[Tensor]  # (B, g, g, g, C): the embedded patches, then after every block


class Detail3D(nn.Module):
    """Features of the low-resolution cells, folded into the channels of their tokens.

    One token covers 64 cells of the mask. A decoder that gets tokens alone needs much training data
    to place edges. SAM 2 also passes high-resolution features to its decoder (arXiv:2408.00714).
    """

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            *(nn.Conv3d(STEM_CHANS, STEM_CHANS, kernel_size=3, padding=1),),
            *(ChannelNorm3d(STEM_CHANS), nn.GELU()),
            *(nn.Conv3d(STEM_CHANS, chans, kernel_size=3, padding=1), ChannelNorm3d(chans)),
        )

    def forward(self, cells: Tensor) -> Tensor:
        """Turn the stem's (B, 32, 4g, 4g, 4g) into (B, 64 chans, g, g, g)."""
        return fold_cells(self.proj(cells))


class PatchEmbed3D(nn.Module):
    """Cut a volume into cubes of ``patch_size`` voxels and project each linearly."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = PatchConv3d(1, embed_dim, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, 1, D, H, W) to (B, D/p, H/p, W/p, C)."""
        return self.proj(x).movedim(1, -1)


class ConvStem3D(nn.Module):
    """Embed 16^3 patches by four small convolutions.

    For networks trained from scratch: one linear map of 4,096 voxels needs far more data than early
    convolutions do (arXiv:2106.14881).
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        chans = STEM_CHANS
        layers = [
            *(nn.Conv3d(1, chans, kernel_size=4, stride=4), ChannelNorm3d(chans), nn.GELU()),
            *(nn.Conv3d(chans, chans, kernel_size=3, padding=1), ChannelNorm3d(chans), nn.GELU()),
            *(nn.Conv3d(chans, 96, kernel_size=2, stride=2), ChannelNorm3d(96), nn.GELU()),
            nn.Conv3d(96, embed_dim, kernel_size=2, stride=2),
        ]
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, 1, D, H, W) to (B, D/16, H/16, W/16, C)."""
        return self.from_cells(self.cells(x))

    def cells(self, x: Tensor) -> Tensor:
        """Return the features of the low-resolution grid, (B, 32, D/4, H/4, W/4)."""
        return self.proj[:6](x)

    def from_cells(self, cells: Tensor) -> Tensor:
        """Embed the output of `cells`: (B, D/16, H/16, W/16, C)."""
        return self.proj[6:](cells).movedim(1, -1)


class Block3D(nn.Module):
    """A pre-norm transformer block; with ``attn`` None only its MLP half."""

    def __init__(
        self, dim: int, mlp_dim: int, *, attn: nn.Module | None, normalised_residual: bool
    ) -> None:
        super().__init__()
        if attn is not None:
            self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, mlp_dim)
        self.normalised_residual = normalised_residual

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens, then channels, on the same grid (B, g, g, g, C)."""
        if self.attn is not None:
            x = x + self.attn(self.norm1(x))
        y = self.norm2(x)
        # In FastSAM3D the MLP's residual starts from the normalised value; in the teacher it starts
        # from the input. Keys and shapes of both are equal, so only this flag distinguishes them.
        return (y if self.normalised_residual else x) + self.mlp(y)


class ImageEncoderViT3D(nn.Module):
    """Encode a volume to its image embedding: patches, transformer blocks, neck."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.img_size = config.img_size
        grid, dim = config.grid_size, config.embed_dim
        if config.detail == "pyramid":
            self.patch_embed = PyramidStem3D(dim)
        elif config.stem == "conv":
            self.patch_embed = ConvStem3D(dim)
        else:
            self.patch_embed = PatchEmbed3D(config.patch_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, dim))
        self.blocks = nn.ModuleList(_block(config, index) for index in range(config.depth))
        kernel, chans = config.neck_kernel, config.out_chans
        self.neck = nn.Sequential(
            nn.Conv3d(dim, chans, kernel_size=1, bias=False),
            ChannelNorm3d(chans),
            nn.Conv3d(chans, chans, kernel_size=kernel, padding=kernel // 2, bias=False),
            ChannelNorm3d(chans),
        )
        if config.detail == "pyramid":
            self.detail = PyramidDetail3D(chans, config.detail_chans)
        else:
            self.detail = Detail3D(config.detail_chans) if config.detail_chans else None
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Encode volumes.

        Args:
            x: (B, 1, S, S, S) crops, normalised by mean and deviation of their voxels > 0.

        Returns:
            The image embedding (B, embedding_chans, g, g, g).

        Raises:
            ValueError: the volume has another shape.
        """
        return self.forward_features(x).image_embedding

    def forward_features(self, x: Tensor, depth: int | None = None) -> EncoderOutput:
        """Encode volumes (B, 1, S, S, S), and keep the output of every block.

        Args:
            x: As for `forward`.
            depth: Stop after this many blocks, without an image embedding; None runs all.
        """
        if x.dim() != 5 or x.shape[1:] != (1, *[self.img_size] * 3):
            size = self.img_size
            raise ValueError(
                f"image encoder: got a volume of shape {tuple(x.shape)}, expected "
                f"(B, 1, {size}, {size}, {size}): crop or pad it first"
            )
        image, is_pyramid = x, isinstance(self.detail, PyramidDetail3D)
        if is_pyramid:
            cells, halves, x = self.patch_embed.levels(x)
        elif self.detail is not None:
            cells = self.patch_embed.cells(x)
            x = self.patch_embed.from_cells(cells)
        else:
            x = self.patch_embed(x)
        x = x + self.pos_embed
        hidden_states = [x]
        for block in self.blocks[:depth]:
            x = block(x)
            hidden_states.append(x)
        if depth is not None:
            return EncoderOutput(None, hidden_states)
        embedding = self.neck(x.movedim(-1, 1))
        if self.detail is not None:
            levels = (image, cells, halves, embedding) if is_pyramid else (cells,)
            embedding = torch.cat([embedding, self.detail(*levels).to(embedding.dtype)], dim=1)
        return EncoderOutput(embedding, hidden_states)

    def _initialise(self) -> None:
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def _block(config: EncoderConfig, index: int) -> Block3D:
    attn = None
    if index not in config.attention_free_blocks:
        attn = Attention3D(
            config.embed_dim,
            num_heads=config.num_heads,
            grid_size=config.grid_size,
            window_size=0 if index in config.global_attn_indexes else config.window_size,
            textbook=config.relative_terms == "textbook",
        )
    return Block3D(
        config.embed_dim,
        int(config.embed_dim * config.mlp_ratio),
        attn=attn,
        normalised_residual=config.mlp_residual == "normalised",
    )
