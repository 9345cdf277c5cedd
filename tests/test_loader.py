"""Batches from worker processes: the same for any number of workers, and no worker is missed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from utils.run.executor import WorkerDiedError
from utils.training.loader import BatchLoader

DRAWS = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(9)]
UNSHARE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
SMALL_SHM = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'


def numbers(draws):
    """A batch with all that a real one has: tensors of several dtypes, names and nested facts."""
    values = torch.tensor(draws)
    return {
        "image": torch.rand((len(draws), 4), generator=torch.Generator().manual_seed(draws[0])),
        "half": values.to(torch.bfloat16)[:, None],
        "label": values % 2 == 0,
        "process": [os.getpid()],
        "crop": [{"start": (n, 0.5)} for n in draws],
    }


def large(draws):
    """4 MB a batch."""
    return {"image": torch.full((2**20,), float(draws[0]))}


def plain(batches):
    return [{key: value for key, value in batch.items() if key != "process"} for batch in batches]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    alone, shared = (plain(BatchLoader(numbers, DRAWS, count)) for count in (0, workers))

    assert len(shared) == len(DRAWS)
    for expected, found in zip(alone, shared, strict=True):
        assert found.keys() == expected.keys()
        assert found["crop"] == expected["crop"]
        for key in ("image", "half", "label"):
            assert found[key].dtype == expected[key].dtype
            assert torch.equal(found[key], expected[key])


def test_workers_are_other_processes_and_all_are_used():
    processes = {batch["process"][0] for batch in BatchLoader(numbers, DRAWS, 2)}

    assert len(processes) == 2
    assert os.getpid() not in processes


def test_more_workers_than_batches_are_no_error():
    assert len(list(BatchLoader(numbers, DRAWS[:1], 3))) == 1


def test_a_loader_can_be_iterated_over_again():
    loader = BatchLoader(numbers, DRAWS, 2)

    first, again = (plain(loader) for _ in range(2))

    assert [batch["crop"] for batch in first] == [batch["crop"] for batch in again]


@pytest.mark.parametrize("load", [numbers, large], ids=["small batches", "large batches"])
def test_a_killed_worker_ends_the_loading_within_seconds_with_its_signal(load):
    others = children()
    with closing(iter(BatchLoader(load, [[n] for n in range(1000)], 2))) as batches:
        next(batches)
        victim = min(children() - others)
        os.kill(victim, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(WorkerDiedError, match=rf"(?s){victim} was killed \(signal 9\).*--work"):
            for _ in batches:
                pass

    assert time.monotonic() - started < 5
    assert not children() - others


def test_a_closed_loader_leaves_no_process():
    others = children()
    with closing(iter(BatchLoader(large, DRAWS, 2))) as batches:
        next(batches)
        assert len(children() - others) == 2

    assert not children() - others


def ending(draws):
    os._exit(3)


def out_of_memory(draws):
    raise MemoryError


def broken(draws):
    raise KeyError("a defect")


def test_a_worker_that_ends_is_said_with_its_exit_code():
    with pytest.raises(WorkerDiedError, match=r"ended \(exit code 3\)"):
        list(BatchLoader(ending, DRAWS, 2))


def test_a_worker_out_of_memory_is_said_with_what_to_do():
    with pytest.raises(WorkerDiedError, match=r"(?s)out of memory.*--workers 0"):
        list(BatchLoader(out_of_memory, DRAWS, 2))


def test_a_defect_in_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)in broken.*KeyError: 'a defect'"):
        list(BatchLoader(broken, DRAWS, 2))


def test_batches_larger_than_the_shared_memory_arrive():
    """A container has 64 MB of /dev/shm; here it has 1 MB, and four batches of 4 MB are made."""
    code = (
        "from test_loader import *\n"
        "print(sum(float(b['image'][0]) for b in BatchLoader(large, [[1], [2], [3], [4]], 2)))"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    command = [*UNSHARE, SMALL_SHM, "sh", sys.executable, "-c", code]
    if subprocess.run([*UNSHARE, SMALL_SHM, "sh", "true"], check=False).returncode:
        pytest.skip("this machine lets no user mount a small /dev/shm")

    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert run.stdout == "10.0\n", run.stderr


@pytest.mark.parametrize("load", ["numbers", "large"])
def test_workers_of_a_killed_process_end(load):
    code = (
        f"from test_loader import *\nfor b in BatchLoader({load}, ([n] for n in range(9**9)), 3):"
    )
    code += "\n    print(*children(), flush=True)\n    time.sleep(60)"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    workers = [int(number) for number in process.stdout.readline().split()]

    process.kill()
    process.wait()

    assert len(workers) == 3
    ends = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def children():
    """Process ids of the running children of this process."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(number) for number in path.read_text().split() if is_running(int(number))}


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
