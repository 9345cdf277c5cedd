"""Layers that several parts share: channel norms, perceptrons, folded cells, upsampled masks.

Volumes are (B, C, D, H, W) here; token grids are (B, D, H, W, C).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything.config import CELLS_PER_TOKEN


def fold_cells(cells: Tensor) -> Tensor:
    """Move the 64 low-resolution cells of each token into its channels.

    (B, c, 4g, 4g, 4g) to (B, 64 c, g, g, g).
    """
    batch, chans, size, _, _ = cells.shape
    n = CELLS_PER_TOKEN
    split = cells.view(batch, chans, *[size // n, n] * 3).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return split.reshape(batch, chans * n**3, *[size // n] * 3)


def unfold_cells(tokens: Tensor) -> Tensor:
    """Undo `fold_cells`: (B, 64 c, g, g, g) to (B, c, 4g, 4g, 4g)."""
    batch, chans, grid, _, _ = tokens.shape
    n = CELLS_PER_TOKEN
    split = tokens.view(batch, chans // n**3, n, n, n, *[grid] * 3).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return split.reshape(batch, chans // n**3, *[grid * n] * 3)


def wide(x: Tensor) -> Tensor:
    """Return a tensor in float32, or unchanged if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dense_last(volume: Tensor) -> Tensor:
    """Order a volume with its channels last in memory, which convolutions are fastest on."""
    return volume.contiguous(memory_format=torch.channels_last_3d)


def upsample(low_res_masks: Tensor, size: int) -> Tensor:
    """Return logits (B, 1, size, size, size): trilinear, align_corners False, as released.

    One matrix product along each axis computes the logits. `F.interpolate` gives the same result
    and is slower: it reads eight values for each value that it writes.

    Args:
        low_res_masks: (B, 1, m, m, m) logits.
        size: Voxels along each axis of the result.
    """
    if low_res_masks.shape[-1] == size:
        return low_res_masks
    with torch.autocast(low_res_masks.device.type, enabled=False):
        cells = torch.eye(
            low_res_masks.shape[-1], device=low_res_masks.device, dtype=low_res_masks.dtype
        )
        weights = F.interpolate(cells[None], size, mode="linear", align_corners=False)[0]
        grown = (weights.mT @ low_res_masks.flatten(3)).unflatten(3, low_res_masks.shape[3:])
        return weights.mT @ grown @ weights


class LayerNorm3d(nn.Module):
    """LayerNorm over the channels of (B, C, D, H, W), eps 1e-6, computed in float32 or wider.

    The order of operations is the released one. `F.layer_norm` rounds the last bit differently. The
    mask decoder's attention can be close to a hard choice, and may then magnify this difference to
    the third digit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        values = wide(x)
        centred = values - values.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normalised = centred / torch.sqrt(variance + self.eps)
        scale, shift = (p.view(-1, 1, 1, 1) for p in (self.weight, self.bias))
        return (scale * normalised + shift).to(x.dtype)


class ChannelNorm3d(nn.LayerNorm):
    """The same norm by PyTorch's fused kernel, which is faster and rounds differently.

    It is used in layers without released weights, and after large matrix products, whose last bits
    differ from the reference anyway.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # With the channels last this is an ordinary LayerNorm. The output keeps that memory order,
        # so the next convolution needs no copy.
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MLPBlock(nn.Module):
    """Linear, activation, linear: the perceptron of a transformer block."""

    def __init__(self, dim: int, mlp_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, mlp_dim)
        self.lin2 = nn.Linear(mlp_dim, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


class MLP(nn.Module):
    """A perceptron of ``num_layers`` linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(
            nn.Linear(width, next_width) for width, next_width in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
