"""The prompts of the teacher's training: clicks, boxes, turns without a click."""

import numpy as np
import pytest
import torch
from small_cases import ball
from small_networks import small_sam

from segment_anything import NO_CLICK, Interaction, upsample
from utils.errors import InputError
from utils.prompts.box import box_around, ellipsoid_logits
from utils.results.metrics import dsc
from utils.training import tasks
from utils.training.tasks import InteractiveTask
from utils.training.teacher_outputs import teacher_outputs


def batch(count=3):
    label = torch.from_numpy(ball((32, 32, 32), (14, 15, 17), 6.0))
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(count, 1, 32, 32, 32, generator=generator),
        "label": label.expand(count, 1, 32, 32, 32),
        "number": list(range(count)),
    }


def watch(monkeypatch, **options):
    """Run a step; return what the decoder was given in each turn: coords, labels, mask prompt."""
    turns = []

    class Watched(Interaction):
        def click(self, coords, labels):
            turns.append((coords.clone(), labels.clone(), self.low_res_masks))
            return super().click(coords, labels)

    monkeypatch.setattr(tasks, "Interaction", Watched)
    task = InteractiveTask(small_sam(), loss_size=16, seed=0, **options)
    task(batch())
    return turns


def test_without_boxes_a_step_starts_from_a_click_and_an_empty_mask(monkeypatch):
    turns = watch(monkeypatch, num_clicks=3)

    assert not turns[0][2].any()
    assert turns[0][1].tolist() == [1, 1, 1]


def test_every_sample_starts_from_its_box_where_all_do(monkeypatch):
    coords, labels, masks = watch(monkeypatch, num_clicks=2, box_share=1.0)[0]
    tight = box_around(batch(1)["label"][0, 0].numpy())

    assert labels.tolist() == [1, 1, 1]
    assert (coords - torch.tensor(tight.centre)).abs().max() <= 1
    expected = torch.from_numpy(ellipsoid_logits(tight, 32, 16))
    for mask in masks[:, 0]:
        overlap = ((mask > 0) & (expected > 0)).sum() / (expected > 0).sum()
        assert overlap > 0.95


def test_a_share_of_the_samples_starts_from_a_box():
    task = InteractiveTask(small_sam(), num_clicks=1, loss_size=16, seed=0, box_share=0.25)
    labels = np.broadcast_to(batch(1)["label"][0].numpy(), (400, 32, 32, 32))
    starts = task._starts(labels, [np.random.default_rng(n) for n in range(400)])

    assert 0.18 < sum(box is not None for box in starts) / 400 < 0.32


@pytest.mark.parametrize(("free_turns", "expected"), [(0, 0), (2, 2), (99, 7)])
def test_some_turns_are_without_a_click_but_never_the_first(free_turns, expected):
    task = InteractiveTask(small_sam(), num_clicks=8, loss_size=16, seed=0, free_turns=free_turns)
    free = task._free_turns([np.random.default_rng(n) for n in range(50)])

    assert free.sum(1).tolist() == [expected] * 50
    assert not free[:, 0].any()
    assert free[:, -1].all() == (expected > 0)


def test_a_turn_without_a_click_shows_none_and_keeps_the_mask(monkeypatch):
    turns = watch(monkeypatch, num_clicks=4, free_turns=1)

    assert turns[-1][1].tolist() == [NO_CLICK] * 3
    assert turns[-1][2].shape == (3, 1, 16, 16, 16)


def test_samples_are_prompted_alike_whatever_batch_they_are_in(monkeypatch):
    task = InteractiveTask(
        small_sam(), num_clicks=3, loss_size=16, seed=0, box_share=0.5, free_turns=1
    )
    whole, parts = batch(4), []
    for number in range(4):
        part = {key: value[number : number + 1] for key, value in whole.items()}
        parts.append(task(part)["loss"].item())

    assert task(whole)["loss"].item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_one_batch_can_be_learnt_by_heart():
    torch.manual_seed(0)
    model = small_sam()
    task = InteractiveTask(
        model, num_clicks=3, loss_size=32, seed=0, decoder_lr_scale=1.0, box_share=0.3
    )
    sample = batch(2)
    optimizer = torch.optim.AdamW(task.parameter_groups(3e-3))
    for _ in range(120):
        report = task(sample)
        optimizer.zero_grad()
        report["loss"].backward()
        optimizer.step()

    rngs = [np.random.default_rng(n) for n in range(2)]
    outputs = teacher_outputs(model, sample["image"], sample["label"], 3, rngs)
    masks = upsample(outputs["low_res_masks"][:, -1:], 32)[:, 0] > model.mask_threshold
    for mask, label in zip(masks, sample["label"], strict=True):
        assert dsc(label[0].numpy(), mask.numpy()) > 0.95


def test_turns_grow_over_the_run_up_to_all_clicks():
    task = InteractiveTask(small_sam(), num_clicks=5, loss_size=16, seed=0, start_clicks=2)
    turns = []
    for done in (0.0, 0.2, 0.3, 0.5, 0.75, 0.99):
        task.advance(done)
        turns.append(task.turns)
    assert turns == [2, 2, 3, 4, 5, 5]


def test_turns_do_not_grow_unless_asked_to():
    task = InteractiveTask(small_sam(), num_clicks=5, loss_size=16, seed=0)
    assert task.turns == 5


def test_mask_prompts_are_left_out_in_a_share_of_the_later_turns(monkeypatch):
    turns = watch(monkeypatch, num_clicks=8, mask_dropout=0.5)
    given = [bool(mask.any()) for _, _, masks in turns[1:] for mask in masks]
    assert 0.2 < np.mean(given) < 0.8
    always = watch(monkeypatch, num_clicks=3, mask_dropout=1.0)
    assert not any(masks.any() for _, _, masks in always)


def test_a_step_without_mask_prompts_has_gradients():
    task = InteractiveTask(small_sam(), num_clicks=3, loss_size=16, seed=0, mask_dropout=0.5)
    task(batch())["loss"].backward()
    assert task.model.image_encoder.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_beyond_all_clicks_is_refused(start):
    with pytest.raises(InputError, match="--start-clicks"):
        InteractiveTask(small_sam(), num_clicks=3, loss_size=16, seed=0, start_clicks=start)
