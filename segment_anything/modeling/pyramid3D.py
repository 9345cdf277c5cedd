"""Features of the image at every scale, for networks that are trained from scratch on little data.

A convolutional stem leads from cells of 4^3 voxels over 8^3 to tokens of 16^3, and after the
transformer a feature pyramid (arXiv:1612.03144) leads back, so that each cell knows its
surroundings. The cells are stored folded into the channels of their tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything.config import IMAGE_CHANS
from segment_anything.modeling.common import ChannelNorm3d, fold_cells, unfold_cells
from segment_anything.modeling.conv3D import DetailConv3d, PatchConvTranspose3d, split

CELL_CHANS = 32  # of cells of 4^3 voxels
HALF_CHANS = 96  # of 8^3 voxels


class ResidualConv3d(nn.Module):
    """Norm, GELU and a 3^3 convolution, added to the input."""

    def __init__(self, chans: int) -> None:
        super().__init__()
        self.norm = ChannelNorm3d(chans)
        self.conv = DetailConv3d(chans, chans)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        return x + self.conv(F.gelu(self.norm(x)))


class PyramidStem3D(nn.Module):
    """Embed 16^3 patches by convolutions, and keep the features on the way."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.cells = nn.Conv3d(1, CELL_CHANS, kernel_size=4, stride=4)
        self.cells_norm = ChannelNorm3d(CELL_CHANS)
        self.cells_conv = DetailConv3d(CELL_CHANS, CELL_CHANS)
        self.halves_norm = ChannelNorm3d(CELL_CHANS)
        self.halves = nn.Conv3d(CELL_CHANS, HALF_CHANS, kernel_size=2, stride=2)
        self.halves_conv = ResidualConv3d(HALF_CHANS)
        self.tokens_norm = ChannelNorm3d(HALF_CHANS)
        self.tokens = nn.Conv3d(HALF_CHANS, embed_dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, 1, D, H, W) to (B, D/16, H/16, W/16, C)."""
        return self.levels(x)[2]

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of cells (B, 32, D/4, ...), of 8^3 voxels (B, 96, D/8, ...), and tokens.

        The tokens have their channels last, (B, D/16, H/16, W/16, C).
        """
        cells = self.cells(x).contiguous(memory_format=torch.channels_last_3d)
        cells = self.cells_conv(F.gelu(self.cells_norm(cells)))
        halves = self.halves_conv(self.halves(F.gelu(self.halves_norm(cells))))
        tokens = self.tokens(F.gelu(self.tokens_norm(halves)))
        return cells, halves, tokens.movedim(1, -1)


class PyramidDetail3D(nn.Module):
    """Features of the cells with their surroundings, and the image at half its size, folded."""

    def __init__(self, dim: int, detail_chans: int) -> None:
        super().__init__()
        self.to_halves = PatchConvTranspose3d(dim, HALF_CHANS, 2)
        self.halves_norm = ChannelNorm3d(HALF_CHANS)
        self.to_cells = PatchConvTranspose3d(HALF_CHANS, CELL_CHANS, 2)
        self.cells_norm = ChannelNorm3d(CELL_CHANS)
        self.detail = DetailConv3d(CELL_CHANS, detail_chans)
        self.detail_norm = ChannelNorm3d(detail_chans)

    def forward(self, image: Tensor, cells: Tensor, halves: Tensor, tokens: Tensor) -> Tensor:
        """Return the embedding's channels after the tokens' own.

        Args:
            image: (B, 1, 16g, 16g, 16g).
            cells: (B, 32, 4g, 4g, 4g) and halves: (B, 96, 2g, 2g, 2g), of the stem.
            tokens: (B, C, g, g, g), from the neck.

        Returns:
            (B, 64 (detail_chans + 8), g, g, g): for each cell its features, and the averages of the
            eight cubes of 2^3 voxels in it.
        """
        halves = F.gelu(self.halves_norm(self.to_halves(tokens) + halves))
        cells = F.gelu(self.cells_norm(self.to_cells(halves) + cells))
        detail = self.detail_norm(self.detail(cells))
        image = fold_image(F.avg_pool3d(image, 2)).to(detail.dtype)
        return fold_cells(torch.cat([detail, image], dim=1))


def fold_image(image: Tensor) -> Tensor:
    """Move each cube of 2^3 into channels: (B, c, 2s, 2s, 2s) to (B, 8 c, s, s, s)."""
    return split(image, 2).permute(0, 7, 4, 5, 6, 1, 2, 3).flatten(1, 4)


def unfold_image(cells: Tensor) -> Tensor:
    """Undo `fold_image`: (B, 8 c, s, s, s) to (B, c, 2s, 2s, 2s)."""
    cubes = cells.unflatten(1, (-1, 2, 2, 2))
    batch, chans, _, _, _, d, h, w = cubes.shape
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, chans, 2 * d, 2 * h, 2 * w)


def detail_of(image_embeddings: Tensor, dim: int) -> Tensor:
    """Return the cells' features in embeddings (B, E, g, g, g): (B, detail_chans, 4g, 4g, 4g).

    Args:
        dim: channels of the tokens, C.
    """
    return unfold_cells(image_embeddings[:, dim:-IMAGE_CHANS])


def image_of(image_embeddings: Tensor) -> Tensor:
    """Return the image in embeddings (B, E, g, g, g), at half its size: (B, 1, 8g, 8g, 8g)."""
    return unfold_image(unfold_cells(image_embeddings[:, -IMAGE_CHANS:]))
