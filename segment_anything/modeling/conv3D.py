"""Faster forms of convolutions that PyTorch runs slowly; keys and shapes are those of `torch.nn`.

Where the stride equals the kernel size, each voxel is read once, and the convolution is one matrix
product between two rearrangements. Measured on a CPU (docs/performance.md), the 16^3 patch
embedding in bfloat16 is 28 times as fast in this form, and the mask decoder's transposed
convolutions three times. Small kernels, 4^3 and 2^3, are faster in PyTorch's form.

Volumes are (B, C, D, H, W). Outputs may have their channels last in memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchConv3d(nn.Conv3d):
    """One voxel from every cube of k = ``kernel_size`` voxels along each axis.

    (B, C, D, H, W) to (B, O, D/k, H/k, W/k).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        # The weight is (O, C, k, k, k), so a cube's channels come before its voxels.
        cubes = split(x, self.kernel_size[0]).movedim(-1, -4).flatten(4)
        return F.linear(cubes, self.weight.flatten(1), self.bias).movedim(-1, 1)


class PatchConvTranspose3d(nn.ConvTranspose3d):
    """A cube of k = ``kernel_size`` voxels along each axis from every voxel.

    (B, C, D, H, W) to (B, O, k D, k H, k W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return assemble(self.cubes(x))

    def cubes(self, x: Tensor) -> Tensor:
        """Return the cubes before they are put side by side, (B, D, H, W, k, k, k, O)."""
        weight = self.weight.permute(2, 3, 4, 1, 0).flatten(0, 3)  # (k k k O, C)
        bias = self.bias.repeat(self.kernel_size[0] ** 3)
        cubes = F.linear(x.movedim(1, -1), weight, bias)
        return cubes.unflatten(-1, (*self.kernel_size, self.out_channels))


class DetailConv3d(nn.Conv3d):
    """A 3^3 convolution with few channels that keeps the volume's size.

    For one sample of fewer than 20,480 rows (C D H) PyTorch picks a naive kernel on the CPU, 14
    times as slow as oneDNN's. So inference in float32 calls oneDNN directly.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        if recorded or x.device.type != "cpu" or not plain or not onednn:
            return super().forward(x)
        one = (1, 1, 1)
        return torch.mkldnn_convolution(x, self.weight, self.bias, one, one, one, 1)


def assemble(cubes: Tensor) -> Tensor:
    """Put cubes (B, D, H, W, k, k, k, C) side by side: (B, C, k D, k H, k W)."""
    batch, d, h, w, size, _, _, chans = cubes.shape
    volume = cubes.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(
        batch, d * size, h * size, w * size, chans
    )
    return volume.movedim(-1, 1)


def split(volume: Tensor, size: int) -> Tensor:
    """Undo `assemble`: (B, C, k D, k H, k W) to (B, D, H, W, k, k, k, C), k = ``size``."""
    batch, chans, *shape = volume.shape
    d, h, w = (length // size for length in shape)
    return volume.view(batch, chans, d, size, h, size, w, size).permute(0, 2, 4, 6, 3, 5, 7, 1)
