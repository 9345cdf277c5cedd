"""The click loop: which clicks and which masks each click is decoded with."""

import pytest
import torch
from small_networks import small_sam

from segment_anything import NO_CLICK, Interaction, upsample
from segment_anything.decoding import ClickHistory, decode_points

CLICK = torch.full((2, 3), 16.0), torch.tensor([1, NO_CLICK])


def test_a_history_shows_the_last_click_or_all():
    last, every = ClickHistory("last"), ClickHistory("all")
    for history in (last, every):
        history.add(torch.tensor([[1.0, 2, 3]]), torch.tensor([1]))
        history.add(torch.tensor([[4.0, 5, 6]]), torch.tensor([0]))
    assert last.decoded()[0].tolist() == [[[4, 5, 6]]]
    assert every.decoded()[0].tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert every.decoded()[1].tolist() == [[1, 0]]


def test_decode_gives_low_resolution_logits_and_an_iou():
    model = small_sam()
    embedding = model.image_encoder(torch.randn(2, 1, 32, 32, 32))
    logits, iou = Interaction(model, embedding).click(*CLICK)
    assert logits.shape == (2, 1, model.config.low_res_size, 16, 16)
    assert iou.shape == (2, 1)
    assert upsample(logits, 32).shape == (2, 1, 32, 32, 32)


def test_a_click_is_decoded_with_all_clicks_so_far_and_the_masks_of_the_one_before():
    model = small_sam()
    embedding = model.image_encoder(torch.randn(2, 1, 32, 32, 32)).detach()
    interaction = Interaction(model, embedding)
    assert not interaction.low_res_masks.any()
    first, _ = interaction.click(*CLICK)
    assert torch.equal(interaction.low_res_masks, first)
    second, _ = interaction.click(torch.full((2, 3), 9.0), torch.tensor([0, 1]))

    coords = torch.stack([CLICK[0], torch.full((2, 3), 9.0)], 1)
    labels = torch.stack([CLICK[1], torch.tensor([0, 1])], 1)
    if model.config.prompt.click_memory == "last":
        coords, labels = coords[:, -1:], labels[:, -1:]
    dense_pe = model.prompt_encoder.get_dense_pe()
    expected, _ = decode_points(model, embedding, coords, labels, first.detach(), dense_pe)
    assert torch.equal(second, expected)


def test_only_the_logits_of_a_click_carry_its_gradient():
    model = small_sam()
    interaction = Interaction(model, model.image_encoder(torch.randn(2, 1, 32, 32, 32)))
    logits, _ = interaction.click(*CLICK)
    assert logits.requires_grad
    assert not interaction.low_res_masks.requires_grad


def test_a_click_of_another_shape_is_refused_and_not_added():
    model = small_sam()
    embedding = model.image_encoder(torch.randn(2, 1, 32, 32, 32)).detach()
    interaction = Interaction(model, embedding)
    with pytest.raises(ValueError, match=r"expected \(2, 3\) and \(2,\)"):
        interaction.click(CLICK[0][:1], CLICK[1])
    expected, _ = Interaction(model, embedding).click(*CLICK)
    assert torch.equal(interaction.click(*CLICK)[0], expected)


def test_an_interaction_can_start_from_masks():
    model = small_sam()
    embedding = model.image_encoder(torch.randn(2, 1, 32, 32, 32)).detach()
    given = torch.randn(2, 1, 16, 16, 16)
    interaction = Interaction(model, embedding)
    interaction.low_res_masks = given
    logits, _ = interaction.click(*CLICK)
    expected, _ = decode_points(
        model,
        embedding,
        CLICK[0][:, None],
        CLICK[1][:, None],
        given,
        model.prompt_encoder.get_dense_pe(),
    )
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, Interaction(model, embedding).click(*CLICK)[0])
