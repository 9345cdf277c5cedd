"""Load batches in worker processes, each connected to the training by a pipe of its own.

torch's DataLoader passes tensors through shared memory (``/dev/shm``). A container has 64 MB of it
by default. Two batches of 128³ crops need more, and the training would hang. A pipe needs no shared
memory. When a worker dies, the system closes its pipe, so that the training ends at once, also in
the middle of a batch.
"""

import multiprocessing
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.run.executor import WorkerDiedError

#: Returns the batch of the given draws: tensors and lists by name.
Load = Callable[[Sequence[Any]], dict]

AHEAD = 2  # batches of each worker that are requested and not used yet
PATIENCE_SECONDS = 5  # until a worker that does not end is killed


class BatchLoader:
    """Batches in the order of their draws; they do not depend on the number of workers.

    Args:
        load: makes a batch; with ``workers`` and the start method "spawn" it must be picklable.
        draws: the draws of each batch; each round over the loader iterates over them anew.
        workers: processes that load; 0 = load in this process.
    """

    def __init__(self, load: Load, draws: Iterable[Sequence[Any]], workers: int) -> None:
        self.load, self.draws, self.workers = load, draws, workers

    def __iter__(self) -> Iterator[dict]:
        """Yield the batches; close the generator to end its workers before the last batch.

        Raises:
            WorkerDiedError: a worker could not be started, was killed, or ran out of memory.
        """
        pin = torch.cuda.is_available()  # GPUs copy from pinned memory while they compute
        if self.workers == 0:
            for draws in self.draws:
                batch = self.load(draws)
                yield {key: _pinned(value) for key, value in batch.items()} if pin else batch
            return
        workers = _start(self.load, self.workers)
        # The receiver's thread needs this rank's GPU: pinned memory belongs to a device.
        setup = (torch.cuda.set_device, (torch.cuda.current_device(),)) if pin else (None, ())
        with ThreadPoolExecutor(1, "batches", *setup) as receiver:
            try:
                yield from _batches(workers, receiver, self.draws, pin)
            finally:
                _end(workers)  # also one that the receiver is waiting for
        for worker in workers:
            worker.pipe.close()


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


class _Failure(NamedTuple):
    """What a worker sends in place of a batch."""

    traceback: str
    out_of_memory: bool


class _TensorHeader(NamedTuple):
    """Type and shape of a tensor whose bytes follow."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def _batches(
    workers: list[_Worker],
    receiver: ThreadPoolExecutor,
    all_draws: Iterable[Sequence[Any]],
    pin: bool,
) -> Iterator[dict]:
    """Send the draws to the workers in turns; receive in that order, in the receiver's thread."""
    pending: deque[Future] = deque()
    for draws, worker in zip(all_draws, cycle(workers), strict=False):
        _request(worker, draws)
        pending.append(receiver.submit(_receive, worker, pin))
        if len(pending) > AHEAD * len(workers):
            yield _next(pending, workers)
    while pending:
        yield _next(pending, workers)


def _next(pending: deque[Future], workers: list[_Worker]) -> dict:
    """Return the next batch; a dead worker is an error, even if this batch is not its own."""
    for worker in workers:
        if not worker.process.is_alive():
            raise _died(worker.process)
    return pending.popleft().result()


def _request(worker: _Worker, draws: Sequence[Any]) -> None:
    try:
        worker.pipe.send(draws)
    except OSError as error:
        raise _died(worker.process) from error


def _receive(worker: _Worker, pin: bool) -> dict:
    """Return the next batch of a worker.

    Raises:
        WorkerDiedError: the worker has been killed, or ran out of memory.
        RuntimeError: it failed otherwise; the message holds its traceback.
    """
    try:
        batch = worker.pipe.recv()
        if isinstance(batch, _Failure):
            raise _failed(batch)
        for key, value in batch.items():
            if isinstance(value, _TensorHeader):
                tensor = torch.empty(value.shape, dtype=value.dtype, pin_memory=pin)
                worker.pipe.recv_bytes_into(_bytes_of(tensor))
                batch[key] = tensor
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        raise _died(worker.process) from error
    return batch


def _send(pipe: Connection, batch: dict) -> None:
    """Send a batch: first its values with places for tensors, then the tensors' bytes."""
    tensors = [value.contiguous() for value in batch.values() if isinstance(value, Tensor)]
    pipe.send({key: _header_of(value) for key, value in batch.items()})
    for tensor in tensors:
        pipe.send_bytes(_bytes_of(tensor))


def _header_of(value: object) -> object:
    return _TensorHeader(value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _pinned(value: object) -> object:
    return value.pin_memory() if isinstance(value, Tensor) else value


def _start(load: Load, count: int) -> list[_Worker]:
    """Start the workers.

    Raises:
        WorkerDiedError: the system has too little memory, or too few processes or files.
    """
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            ours, theirs = multiprocessing.Pipe()
            # A forked worker has copies of our ends. Unless it closes them, it does not notice
            # when this process dies.
            inherited = [ours, *(worker.pipe for worker in workers)] if _forks() else []
            arguments = load, theirs, inherited
            process = multiprocessing.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()  # else our end would not close when the worker dies
            workers.append(_Worker(process, ours))
    except OSError as error:
        _end(workers)
        raise WorkerDiedError(
            f"loader worker {len(workers) + 1} could not be started ({error}).\nExpected {count} "
            "processes: give a smaller --workers; --workers 0 needs none."
        ) from error
    return workers


def _forks() -> bool:
    return multiprocessing.get_start_method() == "fork"


def _work(load: Load, pipe: Connection, inherited: list[Connection]) -> None:
    """Send back a batch for each draws received, until the pipe is closed."""
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training alone
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while True:
        try:
            draws = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            batch = load(draws)
        except Exception as error:
            batch = _Failure(traceback.format_exc(), isinstance(error, MemoryError))
        try:
            pipe.send(batch) if isinstance(batch, _Failure) else _send(pipe, batch)
        except OSError:  # the training has ended
            return


def _end(workers: list[_Worker]) -> None:
    """Stop the workers, also in the middle of a batch, since no result of theirs is needed."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(PATIENCE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()


def _failed(failure: _Failure) -> Exception:
    if failure.out_of_memory:
        return WorkerDiedError(f"a loader worker ran out of memory. {_ADVICE}")
    return RuntimeError(f"a loader worker failed:\n{failure.traceback}")


def _died(process: BaseProcess) -> WorkerDiedError:
    process.join(PATIENCE_SECONDS)
    code = process.exitcode
    how = f"was killed (signal {-code})" if code and code < 0 else f"ended (exit code {code})"
    return WorkerDiedError(f"loader worker {process.pid} {how}. {_ADVICE}")


_ADVICE = (
    "Expected it to load batches: most often there is too little memory.\nGive a smaller "
    "--workers (--workers 0 loads in the training process) or --batch-size. A training resumes "
    "with --resume."
)
