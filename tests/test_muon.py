"""--optimizer muon: which weights Muon updates, how, and that AdamW updates the rest."""

import copy
import dataclasses

import pytest
import torch
from small_networks import small_sam
from test_trainer import CONFIG
from torch import nn

from utils.errors import InputError
from utils.training.config import FitConfig
from utils.training.optimizer import Optimizer
from utils.training.tasks import InteractiveTask, Task

MUON = dataclasses.replace(CONFIG, optimizer="muon", warmup=0.0, clip=1e9)


class Layers(Task):
    """The sum of a linear layer's and a convolution's outputs, with a table added."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.ModuleDict(
            {"linear": nn.Linear(6, 4), "conv": nn.Conv3d(2, 8, 3), "table": nn.Embedding(3, 4)}
        )

    def parameter_groups(self, lr):
        return [{"params": list(self.model.parameters()), "lr": lr}]

    def forward(self, batch):
        linear = self.model["linear"](batch["x"][:, :6]) + self.model["table"].weight[1]
        conv = self.model["conv"](batch["x"].view(-1, 2, 3, 3, 3))
        return {"loss": linear.square().sum() + conv.exp().sum()}


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(5, 54, generator=generator), "id": list("abcde")}]


def step(task, config, device="cpu"):
    optimizer = Optimizer(task, config, torch.device(device))
    optimizer.set_rate(0.0)
    optimizer.take_step(task, 0, batches())
    return optimizer


def weights(task):
    return {name: p.detach().clone() for name, p in task.model.named_parameters()}


def test_a_linear_layer_takes_the_step_of_torchs_muon():
    task, twin = Layers(), Layers()
    step(task, MUON)

    expected = torch.optim.Muon(
        [twin.model["linear"].weight],
        lr=MUON.lr, weight_decay=MUON.weight_decay, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    twin(batches()[0])["loss"].backward()
    expected.step()
    assert torch.equal(task.model["linear"].weight, twin.model["linear"].weight)


def test_a_convolutions_update_has_singular_values_of_about_one_size():
    task = Layers()
    before = weights(task)["conv.weight"]
    config = dataclasses.replace(MUON, weight_decay=0.0)
    step(task, config)

    update = (task.model["conv"].weight.detach() - before).flatten(1)
    sizes = torch.linalg.svdvals(update) / (0.2 * config.lr * update.shape[1] ** 0.5)
    other = Layers()
    other(batches()[0])["loss"].backward()
    plain = torch.linalg.svdvals(other.model["conv"].weight.grad.flatten(1))
    assert sizes.max() / sizes.min() < 0.2 * plain.max() / plain.min()
    assert 0.6 < sizes.median() < 1.2


def test_biases_and_tables_take_the_step_of_adamw():
    task, plain = Layers(), Layers()
    step(task, MUON)
    step(plain, dataclasses.replace(MUON, optimizer="adamw"))

    mine, adamw = weights(task), weights(plain)
    for name in ("linear.bias", "conv.bias", "table.weight"):
        assert torch.equal(mine[name], adamw[name])
    for name in ("linear.weight", "conv.weight"):
        assert not torch.equal(mine[name], adamw[name])


def test_tokens_and_position_tables_of_a_network_are_adamws():
    model = small_sam()
    task = InteractiveTask(model, num_clicks=1, loss_size=16, seed=0)
    state = Optimizer(task, MUON, torch.device("cpu")).state_dict()

    shapes = {
        "optimizer": sum(len(group["params"]) for group in state["optimizer"]["param_groups"]),
        "muon": sum(len(group["params"]) for group in state["muon"]["param_groups"]),
    }
    layers = (nn.Linear, nn.Conv3d, nn.ConvTranspose3d)
    assert shapes["muon"] == sum(isinstance(part, layers) for part in model.modules())
    assert shapes["optimizer"] == len(list(model.parameters())) - shapes["muon"]


def test_the_norm_of_the_gradient_counts_matrices_too():
    def norm_of(config):
        task = Layers()
        optimizer = Optimizer(task, config, torch.device("cpu"))
        return optimizer.take_step(task, 0, batches())[1]

    assert norm_of(MUON) == pytest.approx(norm_of(dataclasses.replace(MUON, optimizer="adamw")))


def test_the_state_is_restored():
    task = Layers()
    optimizer = step(task, MUON)
    twin = Layers()
    twin.model.load_state_dict(task.model.state_dict())
    restored = Optimizer(twin, MUON, torch.device("cpu"))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()), 1)

    for each, one in ((optimizer, task), (restored, twin)):
        each.set_rate(0.5)
        each.take_step(one, 1, batches(1))
    assert all(torch.equal(weights(task)[name], value) for name, value in weights(twin).items())


@pytest.mark.parametrize(
    "damage",
    [
        lambda buffer: buffer.fill_(torch.nan),
        lambda buffer: buffer.resize_(3, 2),
    ],
    ids=["not finite", "another shape"],
)
def test_damaged_momentum_is_refused(damage):
    optimizer = step(Layers(), MUON)
    state = optimizer.state_dict()
    damage(state["muon"]["state"][0]["momentum_buffer"])

    with pytest.raises(ValueError, match="momentum_buffer"):
        Optimizer(Layers(), MUON, torch.device("cpu")).load_state_dict(state, 1)


def test_another_optimizer_is_refused():
    with pytest.raises(InputError, match="--optimizer: found 'sgd', expected one of adamw, muon"):
        FitConfig(steps=1, batch_size=1, lr=1e-3, optimizer="sgd")
