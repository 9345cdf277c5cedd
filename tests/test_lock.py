"""One owner of a folder at a time."""

import multiprocessing
import os
import signal
import time

import pytest

from utils.errors import InputError
from utils.files.lock import FolderInUseError, owned


def own_until_killed(folder, ready):
    with owned(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=own_until_killed, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_folder_of_a_living_process_is_refused_with_who_owns_it(tmp_path, other):
    with (
        pytest.raises(FolderInUseError, match=rf"run: is in use by process {other.pid} on"),
        owned(tmp_path / "run"),
    ):
        pass


def test_a_killed_process_owns_nothing(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.join()

    with owned(tmp_path / "run"):
        pass


def test_two_blocks_of_one_process_exclude_each_other_while_the_first_runs(tmp_path):
    with owned(tmp_path):
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} "), owned(tmp_path):
            pass
        with owned(tmp_path / "b"):
            pass

    with owned(tmp_path):
        pass


def test_nothing_is_left_in_a_folder_that_is_no_longer_owned(tmp_path):
    with owned(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    assert not list(tmp_path.iterdir())


def own_in_turns(folder, results):
    """Own a folder 300 times, as often as it is free; count how often another owner was in it."""
    taken = clashes = 0
    while taken < 300:
        try:
            with owned(folder):
                taken += 1
                mark = folder / "mark"
                clashes += mark.exists()
                mark.touch()
                mark.unlink(missing_ok=True)
        except FolderInUseError:
            continue
    results.put(clashes)


def test_processes_that_take_turns_are_never_in_the_folder_together(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = tmp_path, results
    processes = [context.Process(target=own_in_turns, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()

    assert sum(results.get(timeout=120) for _ in processes) == 0
    for process in processes:
        process.join()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")

    with pytest.raises(InputError, match="cannot be written"), owned(tmp_path / "run"):
        pass

    assert (tmp_path / "run").read_text() == "mine"
