"""Layers that more than one part uses: channel normalisation and the two-layer perceptron.

Volumes are (B, C, D, H, W) here; token grids are (B, D, H, W, C).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm3d(nn.Module):
    """LayerNorm over the channels of (B, C, D, H, W), eps 1e-6, computed in float32 or more.

    The order of operations is the released one. `F.layer_norm` rounds differently in the last bit,
    which the mask decoder, whose attention can be nearly a hard choice, may turn into the third.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normalised = centred / torch.sqrt(variance + self.eps)
        scale, shift = (p.view(-1, 1, 1, 1) for p in (self.weight, self.bias))
        return (scale * normalised + shift).to(x.dtype)


class ChannelNorm3d(nn.LayerNorm):
    """The same norm by the fused kernel: faster, for layers that no released weights pin down."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        # Seen with channels last it is an ordinary LayerNorm, and what it returns stays in that
        # memory order, in which the convolution that follows runs without a copy.
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
