import pytest
import torch

from utils.training.losses import dice_ce, embedding_loss


def test_dice_ce_by_hand():
    logits = torch.zeros(1, 1, 1, 1, 2)  # probability 0.5 twice
    target = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
    dice = 1 - 2 * 0.5 / (0.25 + 0.25 + 1)
    assert dice_ce(logits, target).item() == pytest.approx(dice + 0.693147, abs=1e-4)


def test_a_confident_right_answer_costs_nothing_and_a_wrong_one_much():
    target = (torch.arange(8.0).reshape(1, 1, 2, 2, 2) > 3).float()
    logits = 40 * target - 20
    assert dice_ce(logits, target) < 1e-4
    assert dice_ce(-logits, target) > 10


def test_the_mean_embedding_scores_one_and_a_copy_zero():
    torch.manual_seed(0)
    teacher = 3 * torch.randn(2, 4, 5, 5, 5) + torch.arange(4.0).reshape(1, 4, 1, 1, 1)
    mean = teacher.mean(dim=(2, 3, 4), keepdim=True).expand_as(teacher)
    assert embedding_loss(teacher, teacher) == 0
    assert embedding_loss(mean, teacher).item() == pytest.approx(1, abs=1e-5)
