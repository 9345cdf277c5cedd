"""What is trained: a task turns a batch into ``{"loss": ..., named scalars}``.

`InteractiveTask` trains the teacher (SAM-Med3D, arXiv:2310.15161); the student's tasks are in
utils/training/distillation.py. One loop, utils/training/trainer.py, drives all.
"""

from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor, nn

from segment_anything import NO_CLICK, Interaction, Sam3D, upsample
from utils.prompts.box import Box, box_around, ellipsoid_logits
from utils.training.clicks import coarsen, shrink, simulate_clicks
from utils.training.losses import dice_ce
from utils.training.seeds import CLICKING, stream


class Task(nn.Module):
    """A network in training, and the stages of it.

    ``model`` is what is saved; `parameter_groups` holds every parameter that any stage trains.
    """

    model: Sam3D

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the optimizer's groups, with their learning rates."""
        raise NotImplementedError

    def stage(self, step: int) -> Hashable:
        """Name the stage that a step belongs to; the same throughout where there is one."""
        return None

    def is_scored(self, stage: Hashable) -> bool:
        """Say whether the network of this stage may be the best one, and is validated."""
        return True

    def begin(self, stage: Hashable) -> None:
        """Make ready for a stage: what it does not train requires no gradient."""


class InteractiveTask(Task):
    """Segment from simulated clicks: encode once, then click into the error and decode, n times.

    In a share of the samples the first prompt is a box: the click in its middle and a coarse mask
    (utils/prompts/box.py). In some of the n turns, the last among them as in SAM, no click is
    added: the network then refines its own mask.

    Args:
        num_clicks: turns a step; the loss is the mean over them.
        box_share: how often a sample starts from a box.
        free_turns: turns without a new click; the first turn always has one.
        loss_size: edge of the grid the loss is taken on; the released recipe uses the full input.
        decoder_lr_scale: the decoder's learning rate over the encoder's; a tenth in the paper.
    """

    def __init__(
        self,
        model: Sam3D,
        *,
        num_clicks: int,
        loss_size: int,
        seed: int,
        decoder_lr_scale: float = 0.1,
        box_share: float = 0.0,
        free_turns: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_clicks, self.loss_size, self.seed = num_clicks, loss_size, seed
        self.decoder_lr_scale = decoder_lr_scale
        self.box_share, self.free_turns = box_share, free_turns

    def parameter_groups(self, lr: float) -> list[dict]:
        """Encoder at the full rate, the rest at ``decoder_lr_scale`` of it."""
        model, slow = self.model, lr * self.decoder_lr_scale
        return [
            {"params": list(model.image_encoder.parameters()), "lr": lr},
            {"params": list(model.prompt_encoder.parameters()), "lr": slow},
            {"params": list(model.mask_decoder.parameters()), "lr": slow},
        ]

    def forward(self, batch: dict) -> dict[str, Tensor]:
        image, label = batch["image"], batch["label"]
        rngs = [stream(self.seed, n, CLICKING) for n in batch["number"]]
        coarse = coarsen(label, self.model.config.low_res_size)
        full = label[:, 0].cpu().numpy()
        target = shrink(label, self.loss_size)

        interaction = Interaction(self.model, self.model.image_encoder(image))
        starts, free, losses = self._starts(full, rngs), self._free_turns(rngs), []
        for turn in range(self.num_clicks):
            coords, labels = simulate_clicks(interaction.low_res_masks, coarse, full, rngs)
            labels[free[:, turn]] = NO_CLICK
            if turn == 0:
                _give_boxes(starts, coords, interaction.low_res_masks, full.shape[1])
            logits, _ = interaction.click(coords.to(image.device), labels.to(image.device))
            losses.append(dice_ce(upsample(logits.float(), self.loss_size), target))
        return {
            "loss": torch.stack(losses).mean(),
            "loss_first_click": losses[0].detach(),
            "loss_last_click": losses[-1].detach(),
        }

    def _starts(self, labels: np.ndarray, rngs: list[np.random.Generator]) -> list[Box | None]:
        """Draw which samples start from a box, and the boxes."""
        return [
            box_around(label, rng) if self.box_share and rng.random() < self.box_share else None
            for label, rng in zip(labels, rngs, strict=True)
        ]

    def _free_turns(self, rngs: list[np.random.Generator]) -> Tensor:
        """Draw for each sample in which turns it gets no click: (B, num_clicks) bool."""
        free = torch.zeros(len(rngs), self.num_clicks, dtype=torch.bool)
        count = min(self.free_turns, self.num_clicks - 1)
        for row, rng in zip(free, rngs, strict=True):
            if count:
                row[-1] = True
                row[1 + rng.choice(self.num_clicks - 2, count - 1, replace=False)] = True
        return free


def _give_boxes(starts: list[Box | None], coords: Tensor, masks: Tensor, size: int) -> None:
    """Put the first click of samples with a box into its middle, and their mask prompts in place.

    Args:
        coords: (B, 3) first clicks, changed in place.
        masks: (B, 1, m, m, m) mask prompts, changed in place.
        size: edge of the crop.
    """
    for mask, box, place in zip(masks, starts, coords, strict=True):
        if box:
            mask[0] = torch.from_numpy(ellipsoid_logits(box, size, mask.shape[-1]))
            place[:] = torch.tensor(box.centre)
