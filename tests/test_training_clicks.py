"""The clicks that training simulates."""

import numpy as np
import pytest
import torch
from small_cases import ball

from segment_anything import NO_CLICK
from utils.training.clicks import coarsen, simulate_clicks

NOTHING = torch.zeros(1, 1, 16, 16, 16)


def _label(radius=6.0):
    return torch.from_numpy(ball((32, 32, 32), (14, 15, 17), radius))[None, None]


def test_the_first_click_lies_in_the_target_and_is_positive():
    label = _label()
    for seed in range(20):
        coords, labels = simulate_clicks(
            NOTHING, coarsen(label, 16), label[:, 0].numpy(), [np.random.default_rng(seed)]
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
