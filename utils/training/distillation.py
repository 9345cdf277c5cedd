"""Distillation of the teacher into the student (FastSAM3D, arXiv:2403.09827): losses, stages.

Four stages follow each other:

* layers: the output of student block i is fitted to the output of the teacher's block at the same
  relative depth; training starts with block 1 and adds one block at a time;
* embedding: the whole encoder is fitted to the teacher's image embedding;
* masks: as embedding, plus losses on the masks that a frozen copy of the teacher's decoder predicts
  from the student's embedding;
* decoder: as masks, and the decoder is trained too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything import Interaction, Sam3D, SamConfig
from utils.errors import InputError, require_number
from utils.training.clicks import shrink
from utils.training.config import part_of
from utils.training.losses import dice_ce, embedding_loss
from utils.training.seeds import CLICKING, stream
from utils.training.tasks import Task
from utils.training.teacher_outputs import hidden_name, teacher_outputs


class Stage(NamedTuple):
    """A stage, and how many encoder blocks it trains, from the first on; 0 = all blocks."""

    name: str  # layers, embedding, masks, decoder
    blocks: int = 0


@dataclass(frozen=True)
class DistillationPlan:
    """Which part of the run belongs to which stage, as shares, and the weights of the losses.

    The stages are layers, embedding, masks, decoder, in this order; masks get the share that the
    other stages leave. Where both weights of the masks are 0, the embedding gets this share. The
    embedding loss is relative and the mask losses are means over voxels, so that their weights can
    be compared.

    >>> plan = DistillationPlan(steps=10, layers=(2, 4), layer_share=0.4, embedding_share=0.2)
    >>> [plan.stage(done).name for done in (0, 0.4, 0.6)]
    ['layers', 'embedding', 'masks']

    Args:
        steps: equal parts of the run, at whose ends stages may end: its steps, or with --minutes
            `TIME_PARTS`.
        layers: for each student block the teacher's block that it is fitted to, counted from 1.
        logit_weight: of the masks against the teacher's; the embedding has weight 1.
        truth_weight: of the masks against the truth.

    Raises:
        InputError: a share or ``steps`` is out of range, or the decoder has no loss.
    """

    steps: int
    layers: tuple[int, ...] = ()
    layer_share: float = 0.0
    embedding_share: float = 0.0
    tune_share: float = 0.0
    logit_weight: float = 1.0
    truth_weight: float = 1.0

    def __post_init__(self) -> None:
        shares = (self.layer_share, self.embedding_share, self.tune_share)
        if self.steps < 1:
            raise InputError(f"--steps {self.steps}: expected 1 or more to distil.")
        require_number("--logit-weight", self.logit_weight, 0)
        require_number("--truth-weight", self.truth_weight, 0)
        if not (min(shares) >= 0 and sum(shares) <= 1 + 1e-9):  # NaN is refused too
            raise InputError(
                f"--layer-share, --embedding-share, --tune-decoder: found {shares}; expected "
                "shares of the run, from 0 to 1, together at most 1."
            )
        if self.tune_share and not self.decodes:
            raise InputError(
                "--tune-decoder: the decoder has no loss where --logit-weight and --truth-weight "
                "are 0; expected one of them above 0."
            )

    @property
    def decodes(self) -> bool:
        """Whether there is a loss on masks."""
        return self.logit_weight > 0 or self.truth_weight > 0

    @property
    def wanted_layers(self) -> tuple[int, ...]:
        """The teacher's blocks whose hidden states are needed."""
        return self.layers if self.layer_share > 0 else ()

    @property
    def layered_until(self) -> float:
        """The share of the run at which the stage layers ends."""
        return self._layered / self.steps

    @property
    def _layered(self) -> int:
        return round(self.layer_share * self.steps) if self.layers else 0

    def stage(self, done: float) -> Stage:
        """Return the stage where the share ``done`` of the run is done."""
        part, layered = part_of(done, self.steps), self._layered
        if part < layered:
            return Stage("layers", 1 + int(part * len(self.layers) // layered))
        if not self.decodes or part < layered + round(self.embedding_share * self.steps):
            return Stage("embedding")
        tuned_from = self.steps - round(self.tune_share * self.steps)
        return Stage("decoder" if part >= tuned_from else "masks")


def matching_layers(student: SamConfig, teacher: SamConfig) -> tuple[int, ...]:
    """Return the teacher's block for each of the student's, at the same relative depth.

    Blocks count from 1: for six student blocks and twelve teacher blocks the result is 2, 4, 6, 8,
    10, 12. The result is empty where the tokens of student and teacher have different widths.
    """
    if student.encoder.embed_dim != teacher.encoder.embed_dim:
        return ()
    return _same_depth(student.encoder.depth, teacher.encoder.depth)


def _same_depth(student: int, teacher: int) -> tuple[int, ...]:
    """Return for each student block the teacher's at the same relative depth, counted from 1."""
    return tuple(max(1, round(i * teacher / student)) for i in range(1, student + 1))


def copy_teacher_blocks(teacher: Sam3D, student: Sam3D) -> list[str]:
    """Copy the teacher's encoder into the student's; return the names of the copied tensors.

    Stem, position embedding and neck are copied unchanged. Each student block is copied from the
    teacher's block at the same relative depth. Student tensors that the teacher lacks or has in
    another shape are not changed.
    """
    source = teacher.image_encoder.state_dict()
    target = student.image_encoder.state_dict()
    same_depth = _same_depth(student.config.encoder.depth, teacher.config.encoder.depth)
    copied = []
    for name, tensor in target.items():
        teacher_name = name
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            teacher_name = f"blocks.{same_depth[int(number)] - 1}.{rest}"
        if teacher_name in source and source[teacher_name].shape == tensor.shape:
            tensor.copy_(source[teacher_name])
            copied.append(name)
    return copied


class EncoderDistillation(Task):
    """Fit the student's encoder to the teacher's outputs for the same crops, held by the batch.

    The decoder starts as a copy of the teacher's and is frozen until the last stage; gradients pass
    through it to the encoder. The student's decoder gets the teacher's clicks and the teacher's
    previous masks. The student's masks are fitted to the teacher's masks and to the truth. The
    agreement with the teacher is also reported: the cosine of the embeddings and the DSC of the
    last masks.
    """

    def __init__(self, model: Sam3D, plan: DistillationPlan) -> None:
        super().__init__()
        self.model, self.plan = model, plan
        self._stage = Stage("masks" if plan.decodes else "embedding")
        self.begin(self._stage)

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the encoder's parameters, and the decoder's where it is tuned."""
        groups = [{"params": list(self.model.image_encoder.parameters()), "lr": lr}]
        if self.plan.tune_share:
            decoder = list(self.model.mask_decoder.parameters())
            groups.append({"params": decoder, "lr": lr})
        return groups

    def stage(self, done: float) -> Stage:
        """Return the stage where the share ``done`` of the run is done."""
        return self.plan.stage(done)

    def is_scored(self, stage: Stage) -> bool:
        """Return whether the stage is validated; earlier stages leave the encoder unfinished."""
        return stage.name in (("masks", "decoder") if self.plan.decodes else ("embedding",))

    def begin(self, stage: Stage) -> None:
        """Require gradients only of the parameters that the stage trains."""
        self._stage = stage
        encoder = self.model.image_encoder
        self.model.requires_grad_(False)
        if stage.name == "layers":
            for part in (encoder.patch_embed, *encoder.blocks[: stage.blocks]):
                part.requires_grad_(True)
            encoder.pos_embed.requires_grad_(True)
        else:
            encoder.requires_grad_(True)
        if stage.name == "decoder":
            self.model.mask_decoder.requires_grad_(True)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Return the losses of the current stage."""
        if self._stage.name == "layers":
            return self._layer_losses(batch)
        image_embedding = self.model.image_encoder(batch["image"])
        teacher_embedding = batch["image_embedding"].float()
        learnt = image_embedding[:, : teacher_embedding.shape[1]].float()
        feature = embedding_loss(learnt, teacher_embedding)
        cosine = F.cosine_similarity(learnt, teacher_embedding).mean()
        report = {
            "loss": feature,
            "loss_embedding": feature.detach(),
            "embedding_cosine": cosine.detach(),
        }
        if self._stage.name != "embedding":
            logit, truth, agreement = self._mask_losses(batch, image_embedding)
            weights = (self.plan.logit_weight, self.plan.truth_weight)
            report["loss"] = feature + weights[0] * logit + weights[1] * truth
            report["loss_logits"], report["loss_truth"] = logit.detach(), truth.detach()
            report["mask_dsc_to_teacher"] = agreement
        return report

    def _layer_losses(self, batch: dict) -> dict[str, Tensor]:
        """Return the losses of the hidden states of the blocks that this stage trains."""
        count = self._stage.blocks
        _, hidden = self.model.image_encoder.forward_features(batch["image"], depth=count)
        losses = [
            embedding_loss(
                hidden[block].float().movedim(-1, 1),
                batch[hidden_name(self.plan.layers[block - 1])].float().movedim(-1, 1),
            )
            for block in range(1, count + 1)
        ]
        loss = torch.stack(losses).mean()
        return {"loss": loss, "loss_newest_layer": losses[-1].detach()}

    def _mask_losses(self, batch: dict, image_embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode the student's embedding under the teacher's clicks.

        Returns:
            Dice + CE against the teacher's masks, and against the truth, as means over the clicks;
            and the mean DSC between the last masks of student and teacher.
        """
        interaction = Interaction(self.model, image_embedding)
        teacher_masks = batch["low_res_masks"].float()  # (B, clicks, s, s, s)
        target = shrink(batch["label"], teacher_masks.shape[-1])
        to_teacher, to_truth = [], []
        for k in range(teacher_masks.shape[1]):
            click = batch["click_coords"][:, k], batch["click_labels"][:, k]
            logits, _ = interaction.click(*click)
            interaction.keep_raw(teacher_masks[:, k : k + 1])
            to_teacher.append(dice_ce(logits.float(), teacher_masks[:, k : k + 1].sigmoid()))
            to_truth.append(dice_ce(logits.float(), target))
        ours, theirs = (
            mask > self.model.mask_threshold for mask in (logits, teacher_masks[:, -1:])
        )
        voxels = (1, 2, 3, 4)
        size = ours.sum(voxels) + theirs.sum(voxels)
        agreement = torch.where(size > 0, 2 * (ours & theirs).sum(voxels) / size, 1.0).mean()
        return torch.stack(to_teacher).mean(), torch.stack(to_truth).mean(), agreement


class OnlineDistillation(EncoderDistillation):
    """Distillation without stored outputs: the teacher runs on each batch before the student.

    Crops may therefore be augmented. The teacher is neither trained nor saved.

    Args:
        teacher: on the device of the batches.
        num_clicks: clicks for each sample, placed in the errors of the teacher's masks.
        seed: of the clicks.
    """

    def __init__(
        self,
        model: Sam3D,
        plan: DistillationPlan,
        teacher: Sam3D,
        *,
        num_clicks: int,
        seed: int,
    ) -> None:
        super().__init__(model, plan)
        self._teacher = (
            teacher.eval().requires_grad_(False),
        )  # a tuple, to register no sub-module
        self.num_clicks, self.seed = num_clicks, seed

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Run the teacher, then return the losses of the current stage."""
        rngs = [stream(self.seed, n, CLICKING) for n in batch["number"]]
        decodes = self._stage.name in ("masks", "decoder")
        outputs = teacher_outputs(
            self._teacher[0],
            batch["image"],
            batch["label"],
            self.num_clicks if decodes else 0,
            rngs,
            layers=self.plan.wanted_layers if self._stage.name == "layers" else (),
        )
        return super().forward(batch | outputs)


def require_stored_layers(stored: Sequence[int], wanted: Sequence[int], folder: object) -> None:
    """Raise an `InputError` if the hidden states of a ``wanted`` block are not stored."""
    missing = sorted(set(wanted) - set(stored))
    if missing:
        raise InputError(
            f"{folder}: holds hidden states after blocks {list(stored)}, expected {list(wanted)}.\n"
            f"Run preparelabel.py with --store-layers {' '.join(map(str, wanted))}, use --online, "
            "or leave this stage out with --layer-share 0."
        )
