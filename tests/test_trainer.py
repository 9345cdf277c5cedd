import dataclasses
import json

import pytest
import torch
from small_cases import write_prepared
from small_networks import RULE, small_sam
from torch import nn
from training_rows import rows_of

from segment_anything import checkpoint_payload
from utils.training.config import FitConfig, lr_factor
from utils.training.crop_cache import build_cache
from utils.training.data_loader import CropDataset
from utils.training.optimizer import DivergedError
from utils.training.tasks import InteractiveTask, Task
from utils.training.trainer import fit

CONFIG = FitConfig(
    steps=6, batch_size=2, accumulation=1, lr=1e-3, weight_decay=0.1, lr_schedule="cosine",
    warmup=0.2, clip=1.0, validate_every=0, patience=0, save_minutes=60, workers=0, seed=0,
    precision=torch.float32,
)  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    return build_cache([write_prepared(folder / "tree")], folder / "crops", workers=1)


def train(index, out_dir, *, resume=False, stop_after=None, **changes):
    """Train the small network; ``stop_after`` kills the run after that many steps."""
    model = small_sam()
    task = InteractiveTask(model, num_clicks=2, loss_size=16, seed=0, decoder_lr_scale=1.0)
    if stop_after is not None:
        task = Interrupted(task, stop_after)
    out_dir.mkdir(exist_ok=True)
    config = dataclasses.replace(CONFIG, **changes)
    report = fit(
        task, CropDataset(index, RULE, augment="basic"), index.samples, config, out_dir,
        device=torch.device("cpu"), payload=lambda: checkpoint_payload(model), resume=resume,
    )  # fmt: skip
    return model, report


class Interrupted(Task):
    """A task that is killed in the middle of a step."""

    def __init__(self, task, steps):
        super().__init__()
        self.task, self.model, self.steps = task, task.model, steps

    def parameter_groups(self, lr):
        return self.task.parameter_groups(lr)

    def forward(self, batch):
        if self.steps == 0:
            raise KeyboardInterrupt
        self.steps -= 1
        return self.task(batch)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_rate_warms_up_and_falls_to_zero():
    factors = [lr_factor(step / 100, 100, 0.1, "cosine") for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_the_rate_falls_in_the_steps_of_the_paper():
    factors = [lr_factor(step / 200, 200, 0.0, "steps") for step in range(200)]
    assert factors == [1.0] * 120 + [0.1] * 60 + [0.01] * 20


def test_training_lowers_the_loss_and_writes_each_step_down(index, tmp_path):
    _, report = train(index, tmp_path / "run", steps=60)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert report.last_loss < 0.8 * report.first_loss
    assert (tmp_path / "run/loss.png").stat().st_size > 1000


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(index, tmp_path, optimizer):
    whole, _ = train(index, tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        train(index, tmp_path / "killed", stop_after=4, save_minutes=0, optimizer=optimizer)
    resumed, _ = train(index, tmp_path / "killed", resume=True, optimizer=optimizer)
    assert torch.equal(weights(resumed), weights(whole))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "killed")


def test_two_half_batches_accumulate_to_one_whole(index, tmp_path):
    torch.manual_seed(0)

    class Mean(Task):
        """A loss that is a mean over samples, without clicks, so that halves can be added."""

        def __init__(self):
            super().__init__()
            self.model = nn.Linear(1, 1)

        def parameter_groups(self, lr):
            return [{"params": list(self.model.parameters()), "lr": lr}]

        def forward(self, batch):
            return {"loss": self.model(batch["x"]).square().mean()}

    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, draw):
            return {"x": torch.tensor([float(draw.number % 4)]), "id": str(draw.number)}

        def __len__(self):
            return 4

    results = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        task = Mean()
        out_dir = tmp_path / str(batch_size)
        out_dir.mkdir()
        config = dataclasses.replace(
            CONFIG, batch_size=batch_size, accumulation=accumulation, steps=3
        )
        fit(
            task, Numbers(), [{"organ": "a", "dataset": "b"}] * 4, config, out_dir,
            device=torch.device("cpu"), payload=dict, resume=False,
        )  # fmt: skip
        results.append(weights(task.model))
    torch.testing.assert_close(results[0], results[1])


def test_a_loss_that_is_not_finite_names_step_and_samples(index, tmp_path):
    class Broken(InteractiveTask):
        def forward(self, batch):
            return {"loss": super().forward(batch)["loss"] * float("nan")}

    task = Broken(small_sam(), num_clicks=1, loss_size=16, seed=0)
    with pytest.raises(DivergedError, match=r"nan at step 0, samples \['liver/CT_A/CT_A_"):
        fit(
            task, CropDataset(index, RULE, augment="basic"), index.samples, CONFIG, tmp_path,
            device=torch.device("cpu"), payload=dict, resume=False,
        )  # fmt: skip
    assert not (tmp_path / "last.pt").exists()


def test_bfloat16_trains_too(index, tmp_path):
    _, report = train(index, tmp_path / "run", steps=40, precision=torch.bfloat16)
    assert report.last_loss < report.first_loss
