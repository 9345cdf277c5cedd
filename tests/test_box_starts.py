"""Training of networks that take boxes: samples that start from a box get its corners."""

import numpy as np
import pytest
import torch
from test_boxes3D import CONFIG, PLAIN

from segment_anything import NO_CLICK, Interaction, build_sam3D
from utils.prompts.box import PEAK_LOGIT, Box, box_around
from utils.training import tasks
from utils.training.tasks import InteractiveTask
from utils.training.teacher_outputs import teacher_outputs


def batch(count=4):
    inside = torch.zeros(64, 64, 64)
    inside[20:40, 16:30, 22:50] = 1
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(count, 1, 64, 64, 64, generator=generator),
        "label": inside.expand(count, 1, 64, 64, 64),
        "number": list(range(count)),
    }


def watch(monkeypatch, config, **options):
    """Run a step; return its task, and in each turn what the decoder was given."""
    turns = []

    class Watched(Interaction):
        def click(self, coords, labels):
            first_mask = self.low_res_masks
            result = super().click(coords, labels)
            turns.append((*self._history.decoded(), first_mask))
            return result

    monkeypatch.setattr(tasks, "Interaction", Watched)
    torch.manual_seed(0)
    options = {"num_clicks": 3, "loss_size": 16, "seed": 0} | options
    task = InteractiveTask(build_sam3D(config), **options)
    task(batch())["loss"].backward()
    return task, turns


def test_samples_that_start_from_a_box_get_its_corners_and_no_click(monkeypatch):
    _, turns = watch(monkeypatch, CONFIG, box_share=0.5)
    coords, labels, masks = turns[0]
    kinds = {tuple(row) for row in labels.tolist()}
    assert kinds == {(2, 3, NO_CLICK), (NO_CLICK, NO_CLICK, 1)}  # a mixed batch
    tight = box_around(batch(1)["label"][0, 0].numpy() > 0)
    for corners, kind, mask in zip(coords, labels, masks[:, 0], strict=True):
        if kind[0] == NO_CLICK:
            assert not mask.any()
            continue
        found = Box(*((corners[:2] + 0.5).tolist()))
        for a, b, c, d in zip(found.start, tight.start, tight.stop, found.stop, strict=True):
            loose = 0.1 * (c - b)
            assert b - loose <= a <= b
            assert c <= d <= c + loose
        assert mask.max() > 0.9 * PEAK_LOGIT


def test_later_turns_have_a_click_each_and_the_box_still(monkeypatch):
    _, turns = watch(monkeypatch, CONFIG, box_share=1.0)
    for n, (coords, labels, _) in enumerate(turns):
        assert labels.shape == (4, 3 + n)
        assert labels[:, :3].tolist() == [[2, 3, NO_CLICK]] * 4
        assert set(labels[:, 3:].flatten().tolist()) <= {0, 1}
        assert torch.equal(coords[:, :2], turns[0][0][:, :2])


def test_mixed_starts_train_the_corners(monkeypatch):
    task, _ = watch(monkeypatch, CONFIG, box_share=0.5)
    for corner in task.model.prompt_encoder.point_embeddings[2:]:
        assert corner.weight.grad.abs().sum() > 0


def test_samples_are_prompted_alike_whatever_batch_they_are_in():
    torch.manual_seed(0)
    task = InteractiveTask(build_sam3D(CONFIG), num_clicks=2, loss_size=16, seed=0, box_share=0.5)
    whole, parts = batch(), []
    with torch.no_grad():
        for number in range(4):
            part = {key: value[number : number + 1] for key, value in whole.items()}
            parts.append(task(part)["loss"].item())
        assert task(whole)["loss"].item() == pytest.approx(sum(parts) / 4, rel=1e-4)


def test_networks_without_boxes_start_from_the_middle(monkeypatch):
    _, turns = watch(monkeypatch, PLAIN, box_share=1.0)
    coords, labels, _ = turns[0]
    assert labels.tolist() == [[1]] * 4
    tight = box_around(batch(1)["label"][0, 0].numpy() > 0)
    assert (coords[:, 0] - torch.tensor(tight.centre)).abs().max() <= 2


def test_a_teacher_that_takes_boxes_is_stored_with_clicks_alone():
    torch.manual_seed(0)
    model, sample = build_sam3D(CONFIG).eval(), batch(2)
    rngs = [np.random.default_rng(n) for n in range(2)]
    outputs = teacher_outputs(model, sample["image"], sample["label"], 2, rngs)
    assert outputs["click_labels"].shape == (2, 2)
    assert set(outputs["click_labels"].flatten().tolist()) <= {0, 1}


def test_half_of_the_random_boxes_are_drawn_on_the_middle_slice():
    label = np.zeros((40, 40, 40), bool)
    label[10:20, 10:20, 8:24] = True
    label[5:30, 5:30, 8:10] = True  # wide in two slices far from the middle one
    boxes = [box_around(label, np.random.default_rng(seed)) for seed in range(200)]
    on_one_slice = [box for box in boxes if box.start[0] > 5]

    assert 70 < len(on_one_slice) < 130
    for box in on_one_slice:  # 1.2 times the 10 voxels of the middle slice
        np.testing.assert_allclose(np.transpose(box), [[9, 21], [9, 21], [8, 24]])
    for box in boxes:
        if box not in on_one_slice:
            assert all(np.less_equal(box.start, (5, 5, 8)))
            assert all(np.greater_equal(box.stop, (30, 30, 24)))


def test_a_target_without_a_voxel_in_its_middle_slice_gets_a_whole_box():
    label = np.zeros((16, 16, 16), bool)
    label[4:8, 4:8, 2] = label[4:8, 4:8, 12] = True
    for seed in range(20):
        box = box_around(label, np.random.default_rng(seed))
        assert all(np.less_equal(box.start, (4, 4, 2)))
        assert all(np.greater_equal(box.stop, (8, 8, 13)))
