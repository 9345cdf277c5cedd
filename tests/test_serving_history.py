"""The order of prompts over all targets, which an autosave keeps for undo after a restart."""

import numpy as np
import pytest

from utils.prompts.kinds import Click
from utils.serving.history import History


def walk(seed, steps=60):
    """A history of random steps; each prompt's first coordinate tells when it was given."""
    rng, history = np.random.default_rng(seed), History({1: (), 2: (), 3: ()})
    for step in range(steps):
        target, present = int(rng.integers(1, 4)), dict(history.present)
        kind = rng.integers(8)
        if kind == 0 and history.previous is not None:
            history.undo()
        elif kind == 1 and history.next is not None:
            history.redo()
        elif kind == 2:
            history.push({**present, target: ()})
        elif kind == 3:
            history.push({**present, target: present[target][:2]})
        else:
            new = [Click((step, n, 0), True) for n in range(int(rng.integers(1, 3)))]
            history.push({**present, target: (*present[target], *new)})
    return history


@pytest.mark.parametrize("seed", range(20))
def test_prompts_are_ordered_as_they_were_given(seed):
    history = walk(seed)
    prompts = [(c, target) for target, clicks in history.present.items() for c in clicks]
    by_time = sorted(prompts, key=lambda each: each[0].zyx)
    assert history.order() == [target for _, target in by_time]


def test_prompts_given_one_by_one_are_undone_in_that_order():
    history = walk(3)
    again = History.one_by_one(history.present, history.order())
    assert (again.present, again.order()) == (history.present, history.order())
    for count in range(again.undo_steps, 0, -1):
        assert sum(map(len, again.present.values())) == count
        again.undo()
    assert again.present == {1: (), 2: (), 3: ()}


@pytest.mark.parametrize("order", [[], [1], [2, 2, 1, 9], [1, 1, 1]])
def test_an_order_of_other_prompts_is_replaced(order):
    present = {1: (Click((0, 0, 0), True),), 2: (Click((1, 0, 0), True), Click((2, 0, 0), False))}
    assert History.one_by_one(present, order).order() == [1, 2, 2]
