"""Preparation that is killed, cut into shards or spread over processes: the same bytes in the end.

Everything below the output folders is compared, manifests and records included; but of records not
the inodes and times of files that an earlier step made, and not the files that name a lock's last
owner.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import (
    ROOT,
    categorize_all,
    classify_all,
    prepare_all,
    reallocate_all,
)
from tqdm import tqdm

pytestmark = pytest.mark.usefixtures("workplace")
OUTPUTS = ("data/classified", "data/medical_preprocessed")
INODE = re.compile(rb'"(inode|times_ns)": \[\d+, \d+\]')
FORKED_KILLS, GROUP_KILLS, PARENT_KILLS = 40, 4, 4


def make_cases(make_case, count=24):
    rng = np.random.default_rng(0)
    for number in range(count):
        name = f"CT_A_{number}" if number % 4 else f"CT_A_tumor_{number}"
        image = rng.integers(0, 200, (12, 40, 50), np.uint8)
        make_case(Path("data/npz"), name, imgs=image, gts=(image < 60) + (image < 20).astype("u1"))


def bytes_of(folder):
    """Path -> content of everything below a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): INODE.sub(b"", path.read_bytes())
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def take_outputs():
    """Return what is below the output folders, and move them away."""
    content = [bytes_of(folder) for folder in OUTPUTS]
    number = len(list(Path().glob("old*")))
    Path("data").rename(f"old{number}")
    Path("data").mkdir()
    Path(f"old{number}/npz").rename("data/npz")
    return content


def prepare_quietly():
    # tqdm's lock is shared by forked processes: one that is killed with it holds up the others.
    tqdm.set_lock(threading.RLock())
    with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        prepare_all()


def require_whole(reference):
    """Every file in its place has its final content, whatever was killed."""
    for folder, whole in zip(OUTPUTS, reference, strict=True):
        for name, content in bytes_of(folder).items():
            if name.endswith(".gz") and ".tmp-" not in name:
                assert content == whole[name], name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork in a process with threads
def test_run_killed_40_times_at_random_ends_like_one_that_was_not(make_case):
    make_cases(make_case)
    started = time.monotonic()
    prepare_all()
    seconds = time.monotonic() - started
    reference = take_outputs()
    rng = np.random.default_rng(1)
    fork = multiprocessing.get_context("fork")
    unfinished = 0

    for kill in range(FORKED_KILLS):
        if kill % 5 == 0 and Path(OUTPUTS[0]).exists():  # from the beginning now and then
            take_outputs()
        process = fork.Process(target=prepare_quietly)
        process.start()
        process.join(rng.uniform(0, 0.5 * seconds))
        process.kill()
        process.join()
        unfinished += process.exitcode == -signal.SIGKILL
        require_whole(reference)

    assert unfinished >= 20
    prepare_all()
    assert [bytes_of(folder) for folder in OUTPUTS] == reference


@pytest.mark.parametrize(("kills", "whole_group"), [(GROUP_KILLS, True), (PARENT_KILLS, False)])
def test_killed_run_with_workers_ends_like_one_that_was_not(make_case, kills, whole_group):
    """Killing the parent alone leaves workers that finish their case while the next run begins."""
    make_cases(make_case)
    prepare_all()
    reference = take_outputs()
    rng = np.random.default_rng(2)
    steps = "import classify, categorize, reallocate\nfor s in (classify, categorize, reallocate):"
    code = f"{steps} s.run(s.parse_args(['--workers', '2']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    for _ in range(kills):
        process = start()
        time.sleep(rng.uniform(1.0, 3.0))
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        require_whole(reference)

    assert start().wait() == 0
    assert [bytes_of(folder) for folder in OUTPUTS] == reference


def test_shards_in_any_order_equal_the_single_run(make_case):
    make_cases(make_case)
    prepare_all()
    reference = take_outputs()

    done = 0
    for shard in ("3/3", "1/3", "2/3"):
        for step in (classify_all, categorize_all, reallocate_all):
            done += step("--shard", shard).done

    assert done == 3 * 24
    assert [bytes_of(folder) for folder in OUTPUTS] == reference


def test_case_is_in_the_same_shard_in_each_step(make_case):
    make_cases(make_case)

    steps = (classify_all, categorize_all, reallocate_all)
    done = {step("--shard", "2/3").done for step in steps}

    assert len(done) == 1
    assert 0 < done.pop() < 24


def test_dask_cluster_gives_the_same_tree(make_case):
    from distributed import LocalCluster

    make_cases(make_case, 8)
    prepare_all()
    reference = take_outputs()

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None
    ) as cluster:
        address = ("--dask-scheduler", cluster.scheduler_address)
        done = [step(*address).done for step in (classify_all, categorize_all, reallocate_all)]

    assert done == [8, 8, 8]
    assert [bytes_of(folder) for folder in OUTPUTS] == reference
