"""The share of a run that is done: of its steps, or of its minutes by a clock of the test's own."""

import pytest
import torch

from utils.training.config import LR_SCHEDULES, FitConfig, lr_factor
from utils.training.distillation import DistillationPlan, Stage
from utils.training.progress import Progress

MINUTES = 20


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def progress(clock, *, validates=False, **length):
    config = FitConfig(**{"steps": None, "minutes": MINUTES, "batch_size": 1, "lr": 1} | length)
    return Progress(config, validates=validates, device=torch.device("cpu"), clock=clock)


def test_with_steps_the_share_is_that_of_the_steps_whatever_the_clock_says():
    clock = Clock()
    run, dones = progress(clock, steps=4, minutes=None), []
    while run.begin_step():
        dones.append(run.done)
        clock.now += 1e6
        run.end_step(1e6)

    assert dones == [0, 0.25, 0.5, 0.75]
    assert run.done == 1
    assert [run.done_of_draw(step) for step in range(4)] == dones


def test_the_share_does_not_fall_when_a_validation_is_shorter_than_was_kept_for_it():
    clock = Clock()
    run = progress(clock, validates=True)
    run.start()
    clock.now += 600
    assert run.begin_step()
    before = run.done
    with run.validating():
        clock.now += 1
    assert run.begin_step()

    assert before > 600 / (60 * MINUTES)
    assert run.done == before


@pytest.mark.parametrize(("seconds", "fits"), [(200, True), (300, False)])
def test_a_resumed_run_knows_how_long_a_step_takes(seconds, fits):
    clock = Clock()
    stopped = progress(clock)
    stopped.start()
    stopped.end_step(float(seconds))
    clock.now += 60 * (MINUTES - 4)

    resumed = progress(clock)
    resumed.load_state_dict(stopped.state_dict(), 1)
    resumed.start()

    assert resumed.begin_step() == fits
    assert resumed.taken == 1


def test_time_for_a_save_is_kept():
    clock = Clock()
    run = progress(clock)
    run.start()
    with run.saving():
        clock.now += 60.0
    clock.now = 60.0 * (MINUTES - 1) - 10
    assert run.begin_step()
    clock.now += 10

    assert not run.begin_step()


def earlier_factor(step, steps, warmup, schedule):
    """The rate as a function of the step, as it was before runs had minutes."""
    warm = round(warmup * steps)
    if step < warm:
        return (step + 1) / warm
    return LR_SCHEDULES[schedule]((step - warm) / max(1, steps - warm))


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.33, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 49, 260, 1403, 20_000])
def test_rates_of_a_run_with_steps_are_functions_of_the_step_to_the_last_bit(
    steps, warmup, schedule
):
    expected = [earlier_factor(step, steps, warmup, schedule) for step in range(steps)]
    assert [lr_factor(s / steps, steps, warmup, schedule) for s in range(steps)] == expected


def test_the_rate_of_a_run_with_minutes_neither_starts_at_0_nor_exceeds_the_full_one():
    factors = [lr_factor(n / 12_345, 1000, 0.05, "cosine") for n in range(12_345)]

    assert factors[0] == 1 / 50
    assert max(factors) == 1
    assert factors[-1] < 1e-6


@pytest.mark.parametrize("steps", [7, 49, 333, 1403])
def test_stages_of_a_run_with_steps_end_at_whole_steps(steps):
    plan = DistillationPlan(steps, (1, 2, 3), layer_share=0.3, embedding_share=0.2, tune_share=0.1)
    layered, embedding, tuned = (round(share * steps) for share in (0.3, 0.2, 0.1))
    stages = [plan.stage(step / steps) for step in range(steps)]

    assert stages[:layered] == [Stage("layers", 1 + s * 3 // layered) for s in range(layered)]
    names = [stage.name for stage in stages[layered:]]
    masks = steps - layered - embedding - tuned
    assert names == ["embedding"] * embedding + ["masks"] * masks + ["decoder"] * tuned
    assert plan.layered_until == layered / steps
