"""What is trained: a task turns a batch into ``{"loss": ..., named scalars}``.

`InteractiveTask` trains the teacher (SAM-Med3D, arXiv:2310.15161), `EncoderDistillation` the
student (FastSAM3D, arXiv:2403.09827). One loop, utils/trainer.py, drives both.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segment_anything import Sam3D
from utils.box_prompt import Box, box_around, ellipsoid_logits
from utils.interaction import (
    NO_CLICK,
    ClickHistory,
    coarsen,
    decode,
    low_res_size,
    shrink,
    simulate_clicks,
    upsample,
)
from utils.losses import dice_ce, embedding_loss
from utils.runtime import CLICKING
from utils.teacher_outputs import teacher_outputs


class InteractiveTask(nn.Module):
    """Segment from simulated clicks: encode once, then click into the error and decode, n times.

    In a share of the samples the first prompt is a box: the click in its middle and a coarse mask
    (utils/box_prompt.py). In some of the n turns, the last among them as in SAM, no click is added:
    the network then betters its own mask.

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
        rngs = [np.random.default_rng([self.seed, n, CLICKING]) for n in batch["number"]]
        cells = low_res_size(self.model)
        coarse, full = coarsen(label, cells), label[:, 0].cpu().numpy()
        target = shrink(label, self.loss_size)

        image_embedding = self.model.image_encoder(image)
        history = ClickHistory(self.model.config.prompt.click_memory)
        starts, low_res, losses = self._starts(full, rngs), None, []
        free = self._free_turns(rngs)
        for turn in range(self.num_clicks):
            coords, labels = simulate_clicks(low_res, coarse, full, rngs)
            labels[free[:, turn]] = NO_CLICK
            if turn == 0:
                low_res = _give_boxes(starts, coords, cells, full.shape[1], image.device)
            history.add(coords.to(image.device), labels.to(image.device))
            logits, _ = decode(self.model, image_embedding, history, low_res)
            losses.append(dice_ce(upsample(logits.float(), self.loss_size), target))
            low_res = logits.detach().float()
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


def _give_boxes(
    starts: list[Box | None], coords: Tensor, cells: int, size: int, device: torch.device
) -> Tensor | None:
    """Put the first click of samples with a box into its middle; return their mask prompts.

    Samples without a box get zeros, as everyone does where none has one (None).
    """
    if not any(starts):
        return None
    masks = np.zeros((len(starts), 1, cells, cells, cells), np.float32)
    for mask, box, place in zip(masks, starts, coords, strict=True):
        if box:
            mask[0] = ellipsoid_logits(box, size, cells)
            place[:] = torch.tensor(box.centre)
    return torch.from_numpy(masks).to(device)


class EncoderDistillation(nn.Module):
    """Teach the student's encoder the teacher's stored embedding and what its decoder makes of it.

    The decoder is the teacher's and stays as it is; gradients pass through it to the encoder. Under
    the teacher's own clicks the student's masks follow the teacher's, and the truth. Losses are
    relative or means over voxels, so their weights compare; beside them the agreement with the
    teacher is reported: the cosine of the embeddings and the DSC of the last masks.

    Args:
        logit_weight: weight of the masks against the teacher's; 0 and ``truth_weight`` 0 train on
            embeddings alone, as FastSAM3D does.
        truth_weight: weight of the masks against the truth.
    """

    def __init__(self, model: Sam3D, *, logit_weight: float, truth_weight: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.logit_weight, self.truth_weight = logit_weight, truth_weight
        for part in (model.prompt_encoder, model.mask_decoder):
            part.requires_grad_(False)

    def parameter_groups(self, lr: float) -> list[dict]:
        """Only the encoder learns."""
        return [{"params": list(self.model.image_encoder.parameters()), "lr": lr}]

    def forward(self, batch: dict) -> dict[str, Tensor]:
        image_embedding = self.model.image_encoder(batch["image"])
        teacher_embedding = batch["image_embedding"].float()
        feature = embedding_loss(image_embedding.float(), teacher_embedding)
        cosine = F.cosine_similarity(image_embedding.float(), teacher_embedding).mean()
        report = {
            "loss": feature,
            "loss_embedding": feature.detach(),
            "embedding_cosine": cosine.detach(),
        }
        if self.logit_weight or self.truth_weight:
            logit, truth, agreement = self._mask_losses(batch, image_embedding)
            report["loss"] = feature + self.logit_weight * logit + self.truth_weight * truth
            report["loss_logits"], report["loss_truth"] = logit.detach(), truth.detach()
            report["mask_dsc_to_teacher"] = agreement
        return report

    def _mask_losses(self, batch: dict, image_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the student's embedding under the teacher's clicks.

        Returns:
            Dice + CE against the teacher's masks and against the truth, means over the clicks; and
            the mean DSC of the student's last masks with the teacher's.
        """
        history = ClickHistory(self.model.config.prompt.click_memory)
        teacher_masks = batch["low_res_masks"].float()  # (B, clicks, s, s, s)
        target = shrink(batch["label"], teacher_masks.shape[-1])
        low_res, to_teacher, to_truth = None, [], []
        for k in range(teacher_masks.shape[1]):
            history.add(batch["click_coords"][:, k], batch["click_labels"][:, k])
            logits, _ = decode(self.model, image_embedding, history, low_res)
            low_res = teacher_masks[:, k : k + 1]
            to_teacher.append(dice_ce(logits.float(), torch.sigmoid(low_res)))
            to_truth.append(dice_ce(logits.float(), target))
        ours, theirs = (mask > self.model.mask_threshold for mask in (logits, low_res))
        voxels = (1, 2, 3, 4)
        size = ours.sum(voxels) + theirs.sum(voxels)
        agreement = torch.where(size > 0, 2 * (ours & theirs).sum(voxels) / size, 1.0).mean()
        return torch.stack(to_teacher).mean(), torch.stack(to_truth).mean(), agreement


class OnlineDistillation(EncoderDistillation):
    """Distillation without stored outputs: the teacher runs beside the student, on the same crops.

    So the crops may be augmented anew each time. The teacher learns nothing and is no part of what
    is saved.

    Args:
        teacher: on the device of the batches.
        num_clicks: clicks a sample, into the teacher's own errors.
    """

    def __init__(
        self,
        model: Sam3D,
        teacher: Sam3D,
        *,
        num_clicks: int,
        seed: int,
        logit_weight: float,
        truth_weight: float = 0.0,
    ) -> None:
        super().__init__(model, logit_weight=logit_weight, truth_weight=truth_weight)
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple: no module of this one
        self.num_clicks, self.seed = num_clicks, seed

    def forward(self, batch: dict) -> dict[str, Tensor]:
        rngs = [np.random.default_rng([self.seed, n, CLICKING]) for n in batch["number"]]
        image, label = batch["image"], batch["label"]
        return super().forward(
            batch | teacher_outputs(self._teacher[0], image, label, self.num_clicks, rngs)
        )
