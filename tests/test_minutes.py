"""A training with --minutes: it ends in time, on any machine, and resumes where it was.

The clock is one of the test's own. Steps, validations and waits for the loader move it forward.
"""

import dataclasses
import json

import pytest
import torch
from small_networks import small_sam
from training_rows import rows_of

from segment_anything import checkpoint_payload
from utils.errors import InputError
from utils.training.config import FitConfig
from utils.training.tasks import Task
from utils.training.trainer import fit

MINUTES = 20
CONFIG = FitConfig(
    steps=None, minutes=MINUTES, batch_size=2, lr=1e-2, warmup=0.1, workers=0, save_minutes=1e9
)
SAMPLES = [{"organ": "a", "dataset": "b"}] * 4


class Clock:
    """Seconds that pass where the test says so."""

    def __init__(self):
        self.now = 1e6

    def __call__(self):
        return self.now


class Timed(Task):
    """Trains one tensor; a step takes ``seconds``, or a function of the seconds since the start."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.model = small_sam()
        self.weight = self.model.mask_decoder.iou_token.weight
        self.clock, self.seconds, self.began = clock, seconds, clock.now
        self.stages, self.dones = [], []

    def parameter_groups(self, lr):
        return [{"params": [self.weight], "lr": lr}]

    def stage(self, done):
        return int(4 * done)

    def begin(self, stage):
        self.stages.append(stage)

    def forward(self, batch):
        self.dones.append((self.done, batch["done"]))
        passed = self.clock.now - self.began
        self.clock.now += self.seconds(passed) if callable(self.seconds) else self.seconds
        return {"loss": (batch["x"][:, None] * self.weight).square().mean()}


class Numbers(torch.utils.data.Dataset):
    """Numbers that follow the draw; reading one moves the clock by ``seconds``."""

    def __init__(self, clock, seconds=0):
        self.clock, self.seconds = clock, seconds

    def __len__(self):
        return 4

    def __getitem__(self, draw):
        self.clock.now += self.seconds
        return {
            "x": torch.tensor([float(draw.number % 5)]),
            "id": str(draw.number),
            "done": draw.done,
        }


def train(out, *, seconds=6.0, load=0.0, validation=None, resume=False, clock=None, **changes):
    """Train; return the task, the report and the minutes by the clock."""
    clock = clock or Clock()
    out.mkdir(exist_ok=True)
    task = Timed(clock, seconds)
    began = clock.now

    def validate(model):
        clock.now += validation(clock.now - began) if callable(validation) else validation
        return {"score": 0.5, "dsc_1": 0.5}

    report = fit(
        task, Numbers(clock, load), SAMPLES, dataclasses.replace(CONFIG, **changes), out,
        device=torch.device("cpu"), payload=lambda: checkpoint_payload(task.model),
        resume=resume, validate=validate if validation else None, clock=clock,
    )  # fmt: skip
    return task, report, (clock.now - began) / 60


def slower_halfway(seconds):
    """Return the duration of what takes ``seconds``, three times as many after half of the run."""
    return lambda passed: seconds * (3 if passed > 30 * MINUTES else 1)


def test_a_run_uses_its_minutes_and_no_more(tmp_path):
    _, report, minutes = train(tmp_path)

    assert MINUTES - 0.3 < minutes <= MINUTES
    assert report.steps == len(rows_of(tmp_path)) > 190
    assert (tmp_path / "last.pt").exists()
    assert (tmp_path / "loss.png").exists()


def test_rate_and_stages_follow_the_share_of_the_minutes(tmp_path):
    task, _, _ = train(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    assert rows[0]["done"] == rows[0]["minutes"] == 0
    middle = next(row for row in rows if row["minutes"] >= MINUTES / 2)
    assert middle["done"] == pytest.approx(0.5, abs=0.02)
    assert middle["lr"] == pytest.approx(CONFIG.lr * 0.5868, rel=0.05)  # cosine after the warm-up
    rising = [row["lr"] for row in rows if row["done"] < 0.099]
    assert rising == sorted(rising)
    assert 0 < rising[0] < 0.02 * CONFIG.lr
    assert task.stages == [0, 1, 2, 3]


def test_a_machine_that_becomes_three_times_slower_ends_in_time_with_a_rate_near_0(tmp_path):
    times = {"seconds": slower_halfway(4.0), "validation": slower_halfway(20.0)}
    _, _, minutes = train(tmp_path, **times, validate_every=70)
    rows = rows_of(tmp_path)
    scores = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]

    assert MINUTES - 0.7 < minutes <= MINUTES
    assert rows[-1]["lr"] < 0.001 * CONFIG.lr
    assert scores[-1]["step"] == rows[-1]["step"]
    dones = [row["done"] for row in rows]
    assert dones == sorted(dones)
    assert dones[-1] < 1


def test_time_for_a_validation_that_comes_only_at_the_end_is_kept(tmp_path):
    _, report, minutes = train(tmp_path, validation=45.0)

    assert minutes <= MINUTES
    assert report.best == tmp_path / "best.pt"


def test_a_step_that_would_not_fit_is_not_begun(tmp_path):
    _, report, minutes = train(tmp_path, seconds=7.0 * 60)

    assert report.steps == 2
    assert minutes == 14


def test_waits_for_the_loader_count_as_minutes(tmp_path):
    _, report, minutes = train(tmp_path, seconds=2.0, load=2.0)  # two samples a step

    assert minutes <= MINUTES
    assert report.steps == pytest.approx(MINUTES * 60 / 6, abs=3)


def test_samples_and_task_know_the_share_done(tmp_path):
    task, _, _ = train(tmp_path)

    rows = rows_of(tmp_path)
    assert [done for done, _ in task.dones] == [row["done"] for row in rows]
    assert [done for _, done in task.dones] == [[row["done"]] * 2 for row in rows]


def test_samples_that_workers_load_ahead_know_an_earlier_share(tmp_path):
    task, _, _ = train(tmp_path, workers=2)

    behind = [done - of_draw[0] for done, of_draw in task.dones]
    assert all(0 <= share < 0.05 for share in behind)
    assert task.dones[-1][1][0] > 0.9


@pytest.mark.parametrize(("load", "share"), [(0.0, 0), (0.1, 9), (2.0, 67)])
def test_the_log_tells_how_long_steps_waited_for_the_loader(tmp_path, caplog, load, share):
    caplog.set_level("INFO")
    _, report, _ = train(tmp_path, minutes=1, seconds=2.0, load=load)  # two samples a step

    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {(row["wait_seconds"], row["step_seconds"]) for row in rows} == {(2 * load, 2.0)}
    assert report.waited == pytest.approx(share / 100, abs=0.005)
    assert f"waited for the loader {share} % of their time" in caplog.text
    assert ("--workers" in caplog.text) == (share > 20)


class Stopped(Exception):
    """Stands for the end of a process."""


def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path):
    settings = {"validate_every": 25, "validation": 15.0, "save_minutes": 1}
    whole, report, _ = train(tmp_path / "whole", **settings)

    clock, stopped = Clock(), tmp_path / "stopped"

    def seconds(passed):
        if passed > 60 * MINUTES * 0.6:
            raise Stopped
        return 6.0

    with pytest.raises(Stopped):
        train(stopped, seconds=seconds, clock=clock, **settings)
    clock.now += 1e5  # between the calls
    resumed, again, minutes = train(stopped, resume=True, clock=clock, **settings)

    assert rows_of(stopped) == rows_of(tmp_path / "whole")
    assert again.steps == report.steps
    assert minutes == pytest.approx(MINUTES * 0.4, abs=1.5)  # a part of the steps comes again
    assert torch.equal(resumed.weight, whole.weight)
    assert resumed.dones == whole.dones[-len(resumed.dones) :]
    logs = [(tmp_path / name / "validation.jsonl").read_text() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]


def test_a_finished_run_takes_no_further_step_when_resumed(tmp_path):
    _, report, _ = train(tmp_path)
    resumed, again, minutes = train(tmp_path, resume=True)

    assert again.steps == report.steps
    assert resumed.dones == []
    assert minutes == 0


@pytest.mark.parametrize(
    "changes", [{"minutes": 30}, {"minutes": None, "steps": 1000}], ids=["longer", "steps"]
)
def test_another_length_is_refused(tmp_path, changes):
    train(tmp_path, lr_schedule="constant")

    with pytest.raises(InputError, match=f"--minutes: found {changes['minutes']}, expected 20"):
        train(tmp_path, lr_schedule="constant", resume=True, **changes)


DAMAGE = {
    "none": lambda c: c.pop("progress"),
    "text": lambda c: c.update(progress="3"),
    "no seconds": lambda c: c["progress"].pop("seconds"),
    "negative seconds": lambda c: c["progress"].update(seconds=-1.0),
    "a share of NaN": lambda c: c["progress"].update(done=float("nan")),
    "a share of 2": lambda c: c["progress"].update(done=2.0),
    "a duration as text": lambda c: c["progress"].update(recent=["1"]),
    "durations as a number": lambda c: c["progress"].update(recent=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_times_in_a_checkpoint_are_refused(tmp_path, damage):
    train(tmp_path)
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    DAMAGE[damage](content)
    torch.save(content, tmp_path / "last.pt")

    with pytest.raises(InputError, match=r"last\.pt: its training state cannot be used"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize("length", [{"steps": None}, {"steps": 3}], ids=["neither", "both"])
def test_a_run_has_either_steps_or_minutes(length):
    minutes = None if length["steps"] is None else 3

    with pytest.raises(InputError, match=f"found {length['steps']} and {minutes}, expected one"):
        dataclasses.replace(CONFIG, **length, minutes=minutes)
