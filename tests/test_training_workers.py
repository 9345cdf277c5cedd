"""Training and storing with loader workers: little shared memory is enough, and a kill is said."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preparation_helpers import ROOT
from small_cases import write_prepared
from small_networks import save_student, save_teacher
from test_loader import SMALL_SHM, UNSHARE

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TRAINING = ["--batch-size", "4", "--workers", "2", "--crops-dir", "crops"]
TEACHER = [*TRAINING, "--num-clicks", "2", "--loss-size", "16", "--checkpoint", "t.pt"]
TEACHER += ["--img-datas", "tree/liver/CT_A", "--out-dir", "teacher", "--teacher-dir", "outputs"]
STUDENT = [*TRAINING, "--checkpoint", "s.pt", "--teacher-dir", "outputs"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    write_prepared(folder / "tree", cases=5)
    save_teacher(folder / "t.pt")
    save_student(folder / "s.pt")
    return folder


def test_training_and_storing_need_no_shared_memory(place):
    """A batch has 0.7 MB, and /dev/shm 256 kB."""
    command = [*UNSHARE, SMALL_SHM.replace("1m", "256k"), "sh"]
    if subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("this machine lets no user mount a small /dev/shm")
    for script, flags in (("preparelabel.py", TEACHER), ("distillation.py", STUDENT)):
        result = subprocess.run(
            [*command, sys.executable, ROOT / script, *flags, "--steps", "2"],
            cwd=place,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr


def test_killed_loader_worker_ends_the_training_with_one_message(place):
    out = place / "endless"
    flags = [*TEACHER, "--steps", "100000", "--out-dir", out, "--no-store"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "preparelabel.py", *flags],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    worker = loader_workers(process.pid)[0]

    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=200)

    assert process.returncode == 1
    assert time.monotonic() - killed < 60  # a step takes seconds on a busy machine
    assert errors.count("Error") == 1
    assert f"WorkerDiedError: loader worker {worker} was killed (signal 9)." in errors
    assert "--workers 0" in errors
    assert "Traceback" not in errors


def loader_workers(process):
    """Children that are forks of the training: they have its command line."""
    own = Path(f"/proc/{process}/cmdline").read_bytes()
    children = [
        int(number)
        for task in Path(f"/proc/{process}/task").iterdir()
        for number in (task / "children").read_text().split()
    ]
    return [child for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]
