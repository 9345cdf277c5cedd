"""How far a training is: the share done of its steps or its minutes, and when it ends.

The learning rate, the stages and everything that fades follow from the share ``done``, from 0 to
below 1, of the step that begins. With ``--steps`` it is the share of the steps. With ``--minutes``
it is the share of the time for steps: the minutes without a reserve for what follows the last step,
which is the last validation, the last save and the curves. A run ends before a step that would not
fit. The schedule therefore reaches its end in time, also where the machine's speed changes.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from utils.run.ranks import from_rank_0
from utils.training.config import FitConfig

#: Returns the time in seconds; only differences count.
Clock = Callable[[], float]

RECENT = 20  # steps whose durations tell how long the next one takes
SLOW = 0.9  # quantile of these durations
END_SECONDS = 5  # kept for the curves and the logs, at most END_SHARE of the minutes
END_SHARE = 0.05
UNKNOWN_SHARE = 0.05  # of the minutes, kept for a validation of unknown duration

_BELOW_ONE = math.nextafter(1.0, 0.0)


class Progress:
    """The share done of a run, over all its calls; a call begins with `start`.

    All ranks have the same share: rank 0's clock is sent to the others at each step.

    Args:
        config: with the run's number of steps or minutes.
        validates: whether a validation follows the last step.
        device: of the training, through which the ranks send the share.
        save_seconds: estimate for a save of last.pt, until one has been measured.
        clock: the time in seconds.
    """

    def __init__(
        self,
        config: FitConfig,
        *,
        validates: bool,
        device: torch.device,
        save_seconds: float = 0.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self.steps, self._minutes = config.steps, config.minutes
        self.clock, self._device = clock, device
        self.taken = 0  # optimizer steps done
        self.done = 0.0  # share of the run at the step that began last; 1 at its end
        self.minutes = 0.0  # used when that step began
        self._earlier = 0.0  # seconds of earlier calls
        self._began = clock()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._validation, self._save = (None if validates else 0.0), save_seconds
        self._validation_steps = 0.0  # duration of a validation in steps

    def start(self) -> None:
        """Begin to count the minutes of this call."""
        self._began = self.clock()

    @property
    def minutes_of_call(self) -> float:
        """Minutes since `start`."""
        return (self.clock() - self._began) / 60

    def begin_step(self) -> bool:
        """Begin the next step if it belongs to the run and fits; return whether it does."""
        self.minutes = self._used() / 60
        if self.steps is not None:
            self.done = self.taken / self.steps if self.taken < self.steps else 1.0
        else:
            self.done = from_rank_0(self._share_of_minutes(), self._device)
        return self.done < 1

    def end_step(self, seconds: float) -> None:
        """Count a step that took ``seconds``, its wait for the loader included."""
        self.taken += 1
        self._recent.append(seconds)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Measure a validation: the time kept for the last one follows from it."""
        began = self.clock()
        yield
        self._validation = self.clock() - began
        step = self._step_seconds()
        self._validation_steps = self._validation / step if step else 0.0

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save of last.pt: the time kept for the last one follows from it."""
        began = self.clock()
        yield
        self._save = self.clock() - began

    def done_of_draw(self, step: int) -> float:
        """Return the share done for the samples of a step, which the loader asks for ahead of it.

        With ``--minutes`` this is the share at the step that began last.
        """
        return step / self.steps if self.steps else self.done

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run continues from, as checkpoints store it."""
        return {
            "seconds": self._used(),
            "done": self.done,
            "recent": list(self._recent),
            "validation": self._validation,
            "validation_steps": self._validation_steps,
            "save": self._save,
        }

    def load_state_dict(self, state: dict | None, taken: int) -> None:
        """Continue a run after ``taken`` steps; ``state`` is None in files of earlier versions.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is no such state.
        """
        self.taken = taken
        if state is None and self.steps is not None:
            return
        unknown = 0.0 if state["validation"] is None else state["validation"]
        names = ("seconds", "done", "validation_steps", "save")
        numbers = [unknown, *(state[name] for name in names), *state["recent"]]
        is_valid = all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers)
        if not is_valid or state["done"] > 1:
            raise ValueError(f"the times are {state}")
        self.done, self._earlier = state["done"], state["seconds"]
        self._recent.extend(state["recent"])
        self._validation_steps, self._save = state["validation_steps"], state["save"]
        if self._validation is None:
            self._validation = state["validation"]

    def _used(self) -> float:
        return self._earlier + self.clock() - self._began

    def _share_of_minutes(self) -> float:
        """Return the share done by this rank's clock; 1 if no further step fits."""
        available, used = 60 * self._minutes - self._reserve(), self._used()
        if self.done >= 1 or used >= available or used + self._step_seconds() > available:
            return 1.0
        return min(max(self.done, used / available), _BELOW_ONE)

    def _reserve(self) -> float:
        """Return the seconds that what follows the last step takes."""
        whole = 60 * self._minutes
        validation = UNKNOWN_SHARE * whole
        if self._validation is not None:  # a machine that has become slower validates slower, too
            validation = max(self._validation, self._validation_steps * self._step_seconds())
        return validation + self._save + min(END_SECONDS, END_SHARE * whole)

    def _step_seconds(self) -> float:
        """Return a duration that few of the recent steps exceed; 0 before the first."""
        durations = sorted(self._recent)
        return durations[math.ceil(SLOW * len(durations)) - 1] if durations else 0.0
