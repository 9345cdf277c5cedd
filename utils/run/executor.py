"""Run one function over many items: in this process, in worker processes, or on a Dask cluster.

joblib (``loky``) starts the worker processes. If a worker is killed, `run_all` raises an error in
this process. On a cluster, all Dask workers need the same files under the same paths. Start Dask
workers in this project's folder, so that they can import its modules.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool

from utils.errors import InputError
from utils.run.log import format_worker_log

CONNECT_SECONDS = 10  # time to reach a scheduler
WORKER_SECONDS = 60  # time for its first worker to start

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerDiedError(InputError):
    """A worker process was killed, most often because memory ran out."""


def cpu_count() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # no Linux
        return os.cpu_count() or 1


def run_all(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int = 1,
    scheduler: str | None = None,
) -> Iterator[Result]:
    """Yield ``function(item)`` for all items, in the order in which they finish.

    Closing the generator ends the worker processes, also in the middle of an item.

    Args:
        function: called with one item; must be picklable, as must items and results.
        items: may be a generator.
        workers: number of processes; 1 = this process alone. Ignored with ``scheduler``.
        scheduler: address of a Dask scheduler, ``tcp://host:port``.

    Raises:
        InputError: the scheduler cannot be reached, or Dask is not installed.
        WorkerDiedError: a worker was killed.
    """
    if scheduler is not None:
        yield from _on_cluster(function, items, scheduler)
    elif workers == 1:
        yield from map(function, items)
    else:
        parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
        # joblib warns of work that was not finished when a run stops early.
        warnings.filterwarnings("ignore", r".*tasks (which were|have been)", module="joblib")
        try:
            yield from parallel(_calls(function, items))
        except BrokenProcessPool as error:
            raise WorkerDiedError(
                f"a worker process was killed ({str(error).splitlines()[0]}).\nExpected "
                f"{workers} workers to finish: most often there is too little memory for so many. "
                "Run again with a smaller --workers; finished work is kept."
            ) from error


def _on_cluster(
    function: Callable[[Item], Result], items: Iterable[Item], scheduler: str
) -> Iterator[Result]:
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise InputError(
            "--dask-scheduler needs Dask, which is not installed. Expected the package: "
            "pip install -r requirements-cluster.txt"
        ) from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--dask-scheduler {scheduler}: cannot be reached ({error}). Expected the address that "
            "'dask scheduler' prints, such as tcp://10.0.0.1:8786."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise InputError(
                f"--dask-scheduler {scheduler}: has no worker. Expected one or more: start them "
                f"with 'dask worker {scheduler}' in this project's folder."
            ) from error
        try:
            work = partial(_call_in, Path.cwd(), function)
            # Not through joblib, which waits for ever if a worker dies.
            futures = client.map(work, list(items), pure=False)
            for future, result in as_completed(futures, with_results=True):
                future.release()
                yield result
        except KilledWorker as error:
            raise WorkerDiedError(
                f"a Dask worker died ({str(error).splitlines()[0]:.300}).\nExpected workers that "
                "finish: most often there is too little memory. Start them with more memory or "
                "fewer threads, and run again; finished work is kept."
            ) from error


def _calls(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple]:
    """Yield joblib's calls of ``function``, which run in this process's working folder."""
    call = delayed(partial(_call_in, Path.cwd(), function))
    return (call(item) for item in items)


def _call_in(folder: Path, function: Callable[[Item], Result], item: Item) -> Result:
    format_worker_log()
    if Path.cwd() != folder:
        os.chdir(folder)
    return function(item)
