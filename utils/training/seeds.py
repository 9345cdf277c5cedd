"""The random streams of a run; they are independent of each other and of earlier steps."""

from typing import Literal

import numpy as np

#: Purposes of random streams; part of their seeds, so that streams are independent.
SAMPLING, AUGMENTING, CLICKING, TARGETS = range(4)
Purpose = Literal[0, 1, 2, 3]


def stream(seed: int, number: int, purpose: Purpose) -> np.random.Generator:
    """Return the generator of one purpose at one step or sample of a run.

    Args:
        seed: of the run.
        number: of the step, or of the sample in the run.
        purpose: SAMPLING, AUGMENTING, CLICKING or TARGETS.
    """
    return np.random.default_rng([seed, number, purpose])
