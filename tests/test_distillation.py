"""How the student learns: losses, stages, what each touches."""

import numpy as np
import pytest
import torch
from small_cases import ball
from small_networks import small_sam, small_student

from segment_anything import Interaction, network_configs
from utils.errors import InputError
from utils.training.distillation import (
    DistillationPlan,
    EncoderDistillation,
    OnlineDistillation,
    Stage,
    copy_teacher_blocks,
    matching_layers,
    require_stored_layers,
)
from utils.training.losses import dice_ce
from utils.training.seeds import CLICKING
from utils.training.teacher_outputs import teacher_outputs

EMBEDDING_ONLY = DistillationPlan(10, logit_weight=0, truth_weight=0)
LAYERED = DistillationPlan(20, (1, 2), layer_share=0.4, embedding_share=0.2, tune_share=0.2)


def batch(count=2):
    label = torch.from_numpy(ball((32, 32, 32), (14, 15, 17), 6.0))
    return {
        "image": torch.randn(count, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)),
        "label": label.expand(count, 1, 32, 32, 32),
        "number": list(range(count)),
    }


def teacher_batch(teacher, layers=(1, 2)):
    """A batch with what the teacher makes of it."""
    sample = batch()
    rngs = [np.random.default_rng([0, n, CLICKING]) for n in sample["number"]]
    outputs = teacher_outputs(teacher, sample["image"], sample["label"], 3, rngs, layers=layers)
    return sample | outputs


def test_student_that_is_the_teacher_agrees_with_it_in_full():
    teacher = small_sam()
    task = EncoderDistillation(teacher, DistillationPlan(10, (1, 2), truth_weight=0.5))
    report = task(teacher_batch(teacher))

    assert report["loss_embedding"] < 1e-10
    assert report["embedding_cosine"] == pytest.approx(1, abs=1e-5)
    assert report["mask_dsc_to_teacher"] == pytest.approx(1)
    expected = report["loss_logits"] + 0.5 * report["loss_truth"]
    assert report["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
    task.begin(Stage("layers", 2))
    assert task(teacher_batch(teacher))["loss"] < 1e-10


def test_losses_of_all_stages_are_near_one_for_a_student_that_says_the_mean():
    student, teacher = small_student(), small_sam()
    sample = teacher_batch(teacher)
    task = EncoderDistillation(student, LAYERED)
    for stage in (Stage("layers", 1), Stage("embedding")):
        target = sample["hidden_1"] if stage.name == "layers" else sample["image_embedding"]
        axes = (1, 2, 3) if stage.name == "layers" else (2, 3, 4)
        mean = target.mean(axes, keepdim=True).expand_as(target)
        features = (mean, [None, mean, None]) if stage.name == "layers" else (mean, [])
        student.image_encoder.forward_features = lambda x, depth=None, f=features: f
        student.image_encoder.forward = lambda x, f=features: f[0]
        task.begin(stage)
        assert task(sample)["loss"].item() == pytest.approx(1, rel=1e-4)


def test_weights_of_zero_leave_the_embedding_alone():
    report = EncoderDistillation(small_sam(1), EMBEDDING_ONLY)(teacher_batch(small_sam()))
    assert report["loss"] == report["loss_embedding"]
    assert "loss_logits" not in report


def test_stages_follow_each_other_as_the_shares_say():
    stages = [LAYERED.stage(step / 20) for step in range(20)]
    assert stages == (
        [Stage("layers", 1)] * 4
        + [Stage("layers", 2)] * 4
        + [Stage("embedding")] * 4
        + [Stage("masks")] * 4
        + [Stage("decoder")] * 4
    )


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        (DistillationPlan(10), {"masks"}),
        (DistillationPlan(10, (1, 2), embedding_share=0.5), {"embedding", "masks"}),
        (DistillationPlan(10, (1, 2), layer_share=0.5), {"layers", "masks"}),
        (DistillationPlan(10, embedding_share=1.0), {"embedding"}),
        (EMBEDDING_ONLY, {"embedding"}),
    ],
)
def test_each_stage_can_be_left_out(plan, names):
    assert {plan.stage(step / 10).name for step in range(10)} == names


@pytest.mark.parametrize(
    ("stage", "touched"),
    [
        (Stage("layers", 1), {"patch_embed", "pos_embed", "blocks.0"}),
        (Stage("layers", 2), {"patch_embed", "pos_embed", "blocks.0", "blocks.1"}),
        (Stage("embedding"), {"patch_embed", "pos_embed", "blocks.0", "blocks.1", "neck"}),
        (Stage("masks"), {"patch_embed", "pos_embed", "blocks.0", "blocks.1", "neck"}),
        (
            Stage("decoder"),
            {"patch_embed", "pos_embed", "blocks.0", "blocks.1", "neck", "mask_decoder"},
        ),
    ],
)
def test_a_stage_changes_what_it_says_and_nothing_else(stage, touched):
    student, sample = small_student(), teacher_batch(small_sam())
    task = EncoderDistillation(student, LAYERED)
    optimizer = torch.optim.AdamW(task.parameter_groups(1e-3), weight_decay=0.1)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    task.begin(stage)
    task(sample)["loss"].backward()
    optimizer.step()

    changed = {
        n for n, tensor in student.state_dict().items() if not torch.equal(tensor, before[n])
    }
    parts = {
        ".".join(name.removeprefix("image_encoder.").split(".")[: 2 if "blocks" in name else 1])
        for name in changed
    }
    assert parts == touched


def test_a_stage_that_ends_leaves_nothing_behind_in_the_optimizer():
    """Weight decay would go on shrinking what had a gradient once."""
    student, sample = small_student(), teacher_batch(small_sam())
    task = EncoderDistillation(student, LAYERED)
    optimizer = torch.optim.AdamW(task.parameter_groups(1e-3), weight_decay=0.1)
    neck = student.image_encoder.neck[0].weight
    for stage, changes in ((Stage("embedding"), True), (Stage("layers", 1), False)):
        before = neck.clone()
        task.begin(stage)
        task(sample)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert torch.equal(before, neck) != changes


def test_layers_match_at_the_same_relative_depth():
    assert matching_layers(network_configs["fastsam3d"], network_configs["vit_b_ori"]) == (
        2,
        4,
        6,
        8,
        10,
        12,
    )
    assert (
        matching_layers(network_configs["tiny"], network_configs["vit_b_ori"]) == ()
    )  # other widths


def test_online_distillation_is_what_stored_outputs_of_the_same_crop_give():
    teacher, student = small_sam(), small_student()
    plan = DistillationPlan(20, (1, 2), layer_share=0.4, truth_weight=0.5)
    online = OnlineDistillation(student, plan, teacher, num_clicks=3, seed=0)
    stored = EncoderDistillation(student, plan)
    for stage in (Stage("layers", 2), Stage("embedding"), Stage("masks")):
        online.begin(stage)
        stored.begin(stage)
        expected = stored(teacher_batch(teacher))
        found = online(batch())
        assert found.keys() == expected.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key])


def test_teacher_of_an_online_distillation_neither_learns_nor_is_saved():
    teacher = small_sam()
    task = OnlineDistillation(small_sam(1), DistillationPlan(10), teacher, num_clicks=2, seed=0)
    task(batch())["loss"].backward()

    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name in task.state_dict())
    assert len(list(task.parameters())) == len(list(teacher.parameters()))


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ({"steps": 0}, "--steps 0"),
        (
            {"layer_share": 0.7, "embedding_share": 0.5},
            r"\(0\.7, 0\.5",
        ),
        ({"embedding_share": -0.1}, "--embedding-share.* -0.1"),
        ({"tune_share": 0.2, "logit_weight": 0, "truth_weight": 0}, "--tune-decoder: .*no loss"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, found):
    with pytest.raises(InputError, match=rf"{found}.*expected"):
        DistillationPlan(**{"steps": 10, "layers": (1, 2)} | shares)


def test_layers_that_are_not_stored_are_named():
    require_stored_layers((1, 2, 4), (2, 4), "out")
    with pytest.raises(InputError, match=r"(?s)blocks \[\].*--store-layers 2 4"):
        require_stored_layers((), (2, 4), "out")


def test_only_networks_whose_whole_encoder_has_begun_to_learn_are_scored():
    scored = EncoderDistillation(small_student(), LAYERED).is_scored
    stages = [LAYERED.stage(done) for done in (0, 0.2, 0.4, 0.6, 0.8)]
    assert [scored(stage) for stage in stages] == [False] * 3 + [True] * 2
    assert EncoderDistillation(small_student(), EMBEDDING_ONLY).is_scored(Stage("embedding"))


def test_shares_may_add_up_to_all_steps():
    plan = DistillationPlan(100, (1, 2), layer_share=0.33, embedding_share=0.56, tune_share=0.11)
    assert plan.stage(0.99).name == "decoder"


def test_a_student_starts_from_the_teachers_blocks_of_equal_shape():
    teacher = small_sam(depth=4)
    student = small_student()
    copied = copy_teacher_blocks(teacher, student)
    ours, theirs = student.image_encoder.state_dict(), teacher.image_encoder.state_dict()
    assert torch.equal(ours["pos_embed"], theirs["pos_embed"])
    assert torch.equal(ours["blocks.1.attn.qkv.weight"], theirs["blocks.3.attn.qkv.weight"])
    assert torch.equal(ours["blocks.0.mlp.lin1.weight"], theirs["blocks.1.mlp.lin1.weight"])
    assert "blocks.0.attn.qkv.weight" not in ours
    assert len(copied) == len(ours)


def mask_losses_by_hand(student, sample):
    """Return Dice + CE to the teacher's masks and to the truth, means over the clicks."""
    masks = sample["low_res_masks"]
    truth = torch.nn.functional.avg_pool3d(sample["label"].float(), 2)
    interaction = Interaction(student, student.image_encoder(sample["image"]))
    to_teacher, to_truth = [], []
    for k in range(masks.shape[1]):
        logits, _ = interaction.click(sample["click_coords"][:, k], sample["click_labels"][:, k])
        interaction.low_res_masks = masks[:, k : k + 1].float()
        to_teacher.append(dice_ce(logits, torch.sigmoid(masks[:, k : k + 1].float())).item())
        to_truth.append(dice_ce(logits, truth).item())
    return np.mean(to_teacher), np.mean(to_truth)


def test_mask_losses_are_those_of_each_click_decoded_after_the_teachers_mask():
    student, sample = small_student(), teacher_batch(small_sam())
    with torch.no_grad():
        report = EncoderDistillation(student, DistillationPlan(10))(sample)
        to_teacher, to_truth = mask_losses_by_hand(student, sample)

    assert report["loss_logits"].item() == pytest.approx(to_teacher, rel=1e-5)
    assert report["loss_truth"].item() == pytest.approx(to_truth, rel=1e-5)
    assert to_teacher > 0.1


@pytest.mark.parametrize(("logit_weight", "truth_weight"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_the_loss_is_the_embeddings_and_both_mask_losses_by_their_weights(
    logit_weight, truth_weight
):
    plan = DistillationPlan(10, logit_weight=logit_weight, truth_weight=truth_weight)
    report = EncoderDistillation(small_student(), plan)(teacher_batch(small_sam()))
    masks = logit_weight * report["loss_logits"] + truth_weight * report["loss_truth"]
    assert report["loss"].item() == pytest.approx((report["loss_embedding"] + masks).item())
    assert report["loss_logits"] > 0.1
    assert report["loss_truth"] > 0.1
