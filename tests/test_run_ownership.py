"""Two runs never write to one folder: the second is refused, with who holds it. Real processes."""

import json
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

SMALL = ["--num-clicks", "2", "--loss-size", "16", "--batch-size", "1", "--workers", "0"]
ENDLESS = ["--steps", "100000", "--save-minutes", "0", "--no-store"]
BRIEF = ["--steps", "2", "--no-store"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with cases, both networks, and a training in its midst."""
    folder = tmp_path_factory.mktemp("owned")
    write_prepared(folder / "tree")
    save_teacher(folder / "t.pt")
    save_student(folder / "s.pt")
    process = subprocess.Popen(
        command("preparelabel.py", *teach("run", *ENDLESS)),
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    wait_for(folder / "run/last.pt")
    process.send_signal(signal.SIGSTOP)  # it owns its folders still, and uses no core
    yield folder, process
    process.kill()
    process.wait()


def command(script, *flags, launcher=()):
    return [sys.executable, *launcher, str(ROOT / script), *map(str, flags)]


def teach(out, *flags, crops=("--img-datas", "tree/liver/CT_A")):
    files = ["--checkpoint", "t.pt", "--crops-dir", "crops", "--out-dir", out]
    return [*SMALL, *files, *crops, "--teacher-dir", f"{out}_outputs", *flags]


def run(folder, script, *flags, launcher=()):
    return subprocess.run(
        command(script, *flags, launcher=launcher),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def wait_for(path, seconds=200):
    ends = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < ends, f"{path} has not appeared"
        time.sleep(0.05)


def require_refused(result, folder, owner):
    assert result.returncode == 1
    assert result.stderr.count("Error") == 1
    assert f"{folder}: is in use by process {owner.pid} on" in result.stderr
    assert "Traceback" not in result.stderr


def test_second_training_is_refused_and_changes_nothing(place):
    folder, owner = place
    flags = json.loads((folder / "run/args.json").read_text())

    result = run(folder, "preparelabel.py", *teach("run", *BRIEF, "--seed", 9))

    require_refused(result, "run", owner)
    assert json.loads((folder / "run/args.json").read_text()) == flags
    assert owner.poll() is None


def test_folder_of_a_training_is_refused_to_other_scripts_too(place):
    folder, owner = place
    flags = ["--checkpoint", "s.pt", "--out-dir", "run", "--val-datas", "tree/liver/CT_A"]

    result = run(folder, "validation_student.py", *flags)

    require_refused(result, "run", owner)


def test_teacher_dir_is_owned_too(place):
    folder, owner = place
    flags = [*teach("other", *BRIEF), "--teacher-dir", "run_outputs"]

    require_refused(run(folder, "preparelabel.py", *flags), "run_outputs", owner)


def test_trainings_share_a_crop_cache(place):
    folder, owner = place

    updating = run(folder, "preparelabel.py", *teach("second", *BRIEF))

    assert updating.returncode == 0, updating.stderr
    assert owner.poll() is None


def test_one_folder_may_serve_all_purposes_of_a_run(place):
    folder, _ = place
    flags = [*teach("single", *BRIEF), "--teacher-dir", "single/../single", "--crops-dir", "single"]

    result = run(folder, "preparelabel.py", *flags)

    assert result.returncode == 0, result.stderr


def test_ranks_end_together_where_rank_0_is_refused(place):
    folder, owner = place

    result = run(folder, "preparelabel.py", *teach("run", *BRIEF), launcher=TORCHRUN)

    assert result.returncode != 0
    assert result.stderr.count(f"run: is in use by process {owner.pid} on") == 1


def test_two_ranks_own_a_folder_once(place):
    folder, _ = place

    result = run(folder, "preparelabel.py", *teach("ranks", *BRIEF), launcher=TORCHRUN)

    assert result.returncode == 0, result.stderr


def test_folder_of_a_killed_training_is_free(place):
    folder, owner = place
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()

    result = run(folder, "preparelabel.py", *teach("run", *ENDLESS, "--resume", "--steps", 2))

    assert "in use" not in result.stderr
    assert "steps" in result.stderr  # it has read last.pt, which holds more steps than two
    assert Path(folder / "run/last.pt").exists()
