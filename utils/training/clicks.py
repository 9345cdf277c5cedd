"""Simulated clicks for training, placed in the error of the low-resolution prediction.

Coordinates are crop voxels in the network's axis order (utils/volumes/geometry.py).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything import NO_CLICK
from utils.prompts.click_method import training_click


def simulate_clicks(
    low_res_masks: Tensor,
    coarse_label: np.ndarray,
    label: np.ndarray,
    rngs: Sequence[np.random.Generator],
) -> tuple[Tensor, Tensor]:
    """Place one click for each sample, in the error of the low-resolution prediction.

    First a coarse cell is drawn: half of the time the centre of the largest error, else any cell of
    the error. Then a voxel of this cell is drawn whose value in ``label`` equals the click's label.

    Args:
        low_res_masks: (B, 1, m, m, m) logits, m a multiple of s; zeros before the first click.
        coarse_label: (B, s, s, s) bool, from `coarsen`.
        label: (B, S, S, S) bool at the network's input size.
        rngs: a generator for each sample, so that its clicks do not depend on other samples.

    Returns:
        coords (B, 3) float and labels (B,) int, both on the CPU: 1 in the target, 0 outside,
        NO_CLICK where no error is left.
    """
    masks = shrink(low_res_masks, coarse_label.shape[-1])
    predicted = (masks[:, 0] > 0).cpu().numpy()
    coords, labels = np.zeros((len(label), 3), np.float32), np.full(len(label), NO_CLICK)
    for i, (mask, truth, rng) in enumerate(zip(predicted, coarse_label, rngs, strict=True)):
        click = training_click(mask, truth, rng)
        if click is None:
            continue
        cell, is_foreground = click
        coords[i] = _voxel_in_cell(label[i], cell, truth.shape[0], is_foreground, rng)
        labels[i] = int(is_foreground)
    return torch.from_numpy(coords), torch.from_numpy(labels)


def shrink(label: Tensor, size: int) -> Tensor:
    """Average labels or logits (B, 1, S, S, S) down to (B, 1, size, size, size) floats."""
    cell = label.shape[-1] // size
    return F.avg_pool3d(label.float(), cell)


def coarsen(label: Tensor, size: int) -> np.ndarray:
    """Shrink labels (B, 1, S, S, S) to (B, size, size, size) bool, so that no target vanishes."""
    share = shrink(label, size)[:, 0]
    # A target thinner than half a cell keeps its fullest cells.
    fullest = share.amax(dim=(1, 2, 3), keepdim=True)
    full_enough = share >= torch.minimum(torch.full_like(fullest, 0.5), fullest)
    return (full_enough & (share > 0)).cpu().numpy()


def _voxel_in_cell(
    label: np.ndarray,
    cell: tuple[int, int, int],
    cells: int,
    is_foreground: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw a voxel of the cell with the click's label; without one, return the cell's middle."""
    width = label.shape[0] // cells
    start = np.array(cell) * width
    block = label[tuple(slice(s, s + width) for s in start)]
    candidates = np.argwhere(block == is_foreground)
    if len(candidates) == 0:
        return start + (width - 1) / 2
    return start + candidates[rng.integers(len(candidates))]
