"""Losses of teacher and student; each is a mean over the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dice_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Return soft Dice (squared denominator) plus binary cross-entropy, the loss of SAM-Med3D.

    Args:
        logits: (B, 1, D, H, W).
        target: (B, 1, D, H, W) in [0, 1]; may be soft.
    """
    probability = torch.sigmoid(logits)
    axes = (1, 2, 3, 4)
    overlap = (probability * target).sum(axes)
    size = (probability.square() + target.square()).sum(axes)
    dice = 1 - (2 * overlap + 1e-5) / (size + 1e-5)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, target)


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error of the student's embedding relative to the teacher's variance.

    Computed for each sample: 0 for a perfect copy, 1 for predicting the mean of each channel.

    Args:
        student, teacher: (B, C, D, H, W).
    """
    centred = teacher - teacher.mean(dim=(2, 3, 4), keepdim=True)
    error, spread = ((x**2).mean(dim=(1, 2, 3, 4)) for x in (student - teacher, centred))
    return (error / spread.clamp_min(1e-6)).mean()
