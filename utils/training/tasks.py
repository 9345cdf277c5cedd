"""Training tasks: a task holds a network and turns a batch into a loss and named scalars.

`InteractiveTask` trains the teacher (SAM-Med3D, arXiv:2310.15161); the student's tasks are in
utils/training/distillation.py. One loop, utils/training/trainer.py, trains all of them.
"""

from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor, nn

from segment_anything import NO_CLICK, Interaction, Sam3D, upsample
from utils.errors import require_number
from utils.prompts.box import Box, box_around, ellipsoid_logits
from utils.training.clicks import coarsen, shrink, simulate_clicks
from utils.training.losses import dice_ce
from utils.training.seeds import CLICKING, stream

#: Share of the run after which every step has all turns.
GROWN = 0.75


class Task(nn.Module):
    """A network in training, and the stages of its training.

    ``forward`` takes a batch (`collate`) and returns a dict of scalar tensors: ``loss``, through
    which gradients flow, and others for the log. ``model`` is the network to validate and save.
    """

    model: Sam3D
    done: float = 0.0  # share of the run that is done, in [0, 1), when the current step begins

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the optimizer's groups: every parameter that any stage trains."""
        raise NotImplementedError

    def advance(self, done: float) -> None:
        """Note the share of the run that is done, before each step: what fades follows it."""
        self.done = done

    def stage(self, done: float) -> Hashable:
        """Return the stage where the share ``done`` is done; None for tasks of one stage."""
        return None

    def is_scored(self, stage: Hashable) -> bool:
        """Return whether this stage is validated, so that best.pt may be saved."""
        return True

    def begin(self, stage: Hashable) -> None:
        """Prepare for a stage: let only the parameters that it trains require gradients."""


class InteractiveTask(Task):
    """Segment from simulated clicks: encode once, then n turns of click and decode.

    A click lies in the error of the previous turn's mask. In a share of the samples the first
    prompt is a box: its corners and a coarse mask, or, in networks without ``PromptConfig.boxes``,
    a click in its middle and the mask (utils/prompts/box.py). In ``free_turns`` turns no click is
    added, and the network refines the mask of the previous turn; the last turn is such a turn, as
    in SAM.

    The number of turns may grow over the run. A step with few turns costs less, so that the network
    sees more images early, while first masks are poor and later clicks teach little.

    Args:
        num_clicks: turns in a step; the loss is the mean over the turns.
        start_clicks: turns in the first steps; their number reaches ``num_clicks`` when
            `GROWN` of the run is done. 0: ``num_clicks`` in every step.
        mask_dropout: share of the later turns in which the network gets no mask prompt, and must
            segment anew from all clicks and the image.
        loss_size: edge of the grid on which the loss is computed; SAM-Med3D uses the full input
            size.
        seed: seeds clicks, boxes and the choice of turns without a click.
        decoder_lr_scale: learning rate of the decoder relative to the encoder's; a tenth in the
            SAM-Med3D's paper.
        box_share: share of the samples that start from a box.
        free_turns: turns without a new click; the first turn always has a click or a box.

    Raises:
        InputError: an argument is out of its range.
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
        start_clicks: int = 0,
        mask_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_number("--num-clicks", num_clicks, 1, whole=True)
        require_number("--loss-size", loss_size, 1, whole=True)
        require_number("--decoder-lr-scale", decoder_lr_scale, 0)
        require_number("--box-share", box_share, 0, 1)
        require_number("--free-turns", free_turns, 0, whole=True)
        require_number("--start-clicks", start_clicks, 0, num_clicks, whole=True)
        require_number("--mask-dropout", mask_dropout, 0, 1)
        self.model = model
        self.num_clicks, self.loss_size, self.seed = num_clicks, loss_size, seed
        self.decoder_lr_scale = decoder_lr_scale
        self.box_share, self.free_turns = box_share, free_turns
        self.start_clicks, self.mask_dropout = start_clicks or num_clicks, mask_dropout

    @property
    def turns(self) -> int:
        """The number of turns of the present step."""
        grown = min(1.0, self.done / GROWN)
        return self.start_clicks + int(grown * (self.num_clicks - self.start_clicks))

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the encoder at the full rate, the rest at ``decoder_lr_scale`` of it."""
        model, slow = self.model, lr * self.decoder_lr_scale
        return [
            {"params": list(model.image_encoder.parameters()), "lr": lr},
            {"params": list(model.prompt_encoder.parameters()), "lr": slow},
            {"params": list(model.mask_decoder.parameters()), "lr": slow},
        ]

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Return the mean loss over the turns, and the losses of the first and the last turn."""
        image, label = batch["image"], batch["label"]
        rngs = [stream(self.seed, n, CLICKING) for n in batch["number"]]
        coarse = coarsen(label, self.model.config.encoder.cells_size)
        full = label[:, 0].cpu().numpy()
        target = shrink(label, self.loss_size)

        interaction = Interaction(self.model, self.model.image_encoder(image))
        starts, free, losses = self._starts(full, rngs), self._free_turns(rngs), []
        for turn in range(self.turns):
            coords, labels = simulate_clicks(interaction.low_res_masks, coarse, full, rngs)
            labels[free[:, turn]] = NO_CLICK
            if turn == 0:
                _give_boxes(starts, coords, interaction.low_res_masks, full.shape[1])
                if self.model.config.prompt.boxes:
                    _give_corners(starts, labels, interaction)
            elif self.mask_dropout:
                kept = self._kept_masks(rngs).to(image.device)
                interaction.low_res_masks = interaction.low_res_masks * kept
            logits, _ = interaction.click(coords.to(image.device), labels.to(image.device))
            losses.append(dice_ce(upsample(logits.float(), self.loss_size), target))
        return {
            "loss": torch.stack(losses).mean(),
            "loss_first_click": losses[0].detach(),
            "loss_last_click": losses[-1].detach(),
        }

    def _starts(self, labels: np.ndarray, rngs: list[np.random.Generator]) -> list[Box | None]:
        """Return a random box for each sample that starts from one, None for the others."""
        return [
            box_around(label, rng) if self.box_share and rng.random() < self.box_share else None
            for label, rng in zip(labels, rngs, strict=True)
        ]

    def _kept_masks(self, rngs: list[np.random.Generator]) -> Tensor:
        """Choose at random the samples that keep their mask prompt: (B, 1, 1, 1, 1), 1 or 0."""
        kept = [float(rng.random() >= self.mask_dropout) for rng in rngs]
        return torch.tensor(kept).view(-1, 1, 1, 1, 1)

    def _free_turns(self, rngs: list[np.random.Generator]) -> Tensor:
        """Choose at random the turns without a click: (B, turns) bool, one row a sample."""
        turns = self.turns
        free = torch.zeros(len(rngs), turns, dtype=torch.bool)
        count = min(self.free_turns, turns - 1)
        for row, rng in zip(free, rngs, strict=True):
            if count:
                row[-1] = True
                row[1 + rng.choice(turns - 2, count - 1, replace=False)] = True
        return free


def _give_boxes(starts: list[Box | None], coords: Tensor, masks: Tensor, size: int) -> None:
    """Replace the first prompt of samples with a box by the box's middle and mask, in place.

    Args:
        starts: the box of each sample, or None.
        coords: (B, 3) first clicks in crop voxels; changed.
        masks: (B, 1, m, m, m) mask prompts; changed.
        size: edge of the crop in voxels.
    """
    for mask, box, place in zip(masks, starts, coords, strict=True):
        if box:
            mask[0] = torch.from_numpy(ellipsoid_logits(box, size, mask.shape[-1]))
            place[:] = torch.tensor(box.centre)


def _give_corners(starts: list[Box | None], labels: Tensor, interaction: Interaction) -> None:
    """Replace the first click of samples with a box by the box's corners.

    Args:
        starts: the box of each sample, or None.
        labels: (B,) of the first clicks; changed.
        interaction: of a network that takes boxes.
    """
    none = Box((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    given = torch.tensor([box is not None for box in starts])
    boxes = torch.tensor([box or none for box in starts], dtype=torch.float32)
    labels[given] = NO_CLICK
    device = interaction.low_res_masks.device
    interaction.give_boxes(boxes.to(device), given.to(device))
