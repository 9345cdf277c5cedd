"""The one thread that runs the network: jobs of all sessions in the order of their arrival.

The event loop waits for a job without standing still, so that other requests are answered
meanwhile.

The network is opened in this thread as well. PyTorch's OpenMP gives each thread that computes a
team of its own. With two teams there are more threads than cores, and all of them sleep where they
would spin a moment: decoding a click took 1.4 times as long.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from utils.serving.refusals import Refusal

Result = TypeVar("Result")

#: Jobs that wait at most, of all sessions and of one.
MOST_WAITING, MOST_WAITING_EACH = 64, 8


class Worker:
    """A thread with a queue of jobs."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="predictor")
        self.waiting = 0  # jobs that are not finished

    def call(self, job: Callable[[], Result]) -> Result:
        """Run a job in the thread, and wait for its result.

        Not for the event loop's thread, which would stand still, nor for a job of this thread.
        """
        return self._executor.submit(job).result()

    async def run(self, job: Callable[[], Result]) -> Result:
        """Run a job in the thread, after those before it; return its result.

        Raises:
            Refusal: too many jobs wait.
        """
        if self.waiting >= MOST_WAITING:
            raise busy(f"{MOST_WAITING} requests of all users wait")
        self.waiting += 1
        try:
            return await asyncio.wrap_future(self._executor.submit(job))
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Drop the jobs that wait; one that runs comes to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def busy(found: str) -> Refusal:
    """Return the refusal of a request that would have to wait too long."""
    return Refusal(
        429, "busy", f"{found}. Expected fewer: wait for their answers.", {"Retry-After": "1"}
    )
