import numpy as np
import pytest
import torch
from small import ball, small_sam

from segment_anything import NO_CLICK, ClickHistory, decode, low_res_size, upsample
from utils.training.clicks import coarsen, simulate_clicks


def _label(radius=6.0):
    return torch.from_numpy(ball((32, 32, 32), (14, 15, 17), radius))[None, None]


def test_a_history_shows_the_last_click_or_all():
    last, every = ClickHistory("last"), ClickHistory("all")
    for history in (last, every):
        history.add(torch.tensor([[1.0, 2, 3]]), torch.tensor([1]))
        history.add(torch.tensor([[4.0, 5, 6]]), torch.tensor([0]))
    assert last.shown()[0].tolist() == [[[4, 5, 6]]]
    assert every.shown()[0].tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert every.shown()[1].tolist() == [[1, 0]]


def test_decode_gives_low_resolution_logits_and_an_iou():
    model = small_sam()
    history = ClickHistory("all")
    history.add(torch.full((2, 3), 16.0), torch.tensor([1, NO_CLICK]))
    embedding = model.image_encoder(torch.randn(2, 1, 32, 32, 32))
    logits, iou = decode(model, embedding, history, None)
    zeros, _ = decode(model, embedding, history, torch.zeros_like(logits))
    assert logits.shape == (2, 1, low_res_size(model), 16, 16)
    assert iou.shape == (2, 1)
    assert torch.equal(logits, zeros)
    assert upsample(logits, 32).shape == (2, 1, 32, 32, 32)


def test_the_first_click_lies_in_the_target_and_is_positive():
    label = _label()
    for seed in range(20):
        coords, labels = simulate_clicks(
            None, coarsen(label, 16), label[:, 0].numpy(), [np.random.default_rng(seed)]
        )
        assert labels.tolist() == [1]
        assert label[0, 0][tuple(coords[0].long())]


def test_a_click_into_a_false_positive_is_negative_and_outside_the_target():
    label = _label()
    predicted = torch.where(label[:, :, ::2, ::2, ::2], 5.0, -5.0)
    predicted[0, 0, :4] = 5.0
    for seed in range(20):
        coords, labels = simulate_clicks(
            predicted, label[:, 0, ::2, ::2, ::2].numpy(), label[:, 0].numpy(),
            [np.random.default_rng(seed)],
        )  # fmt: skip
        assert labels.tolist() == [0]
        assert not label[0, 0][tuple(coords[0].long())]


def test_without_error_there_is_no_click():
    label = _label()
    coarse = coarsen(label, 16)
    perfect = torch.from_numpy(np.where(coarse, 5.0, -5.0))[:, None]
    _, labels = simulate_clicks(perfect, coarse, label[:, 0].numpy(), [np.random.default_rng(0)])
    assert labels.tolist() == [NO_CLICK]


@pytest.mark.parametrize("radius", [0.5, 1.0, 6.0])
def test_no_target_vanishes_on_the_coarse_grid(radius):
    label = _label(radius)
    coarse = coarsen(label, 8)
    assert coarse.any()
    centre = np.argwhere(coarse[0]).mean(axis=0) * 4 + 1.5
    np.testing.assert_allclose(centre, (14, 15, 17), atol=2)
