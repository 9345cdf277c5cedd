"""A worker process that is killed ends every script that has workers with one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from preparation_helpers import ROOT, categorize_all, classify_all, reallocate_all
from small_networks import save_student

from utils.errors import InputError
from utils.run.executor import WorkerDiedError, run_all

TREE = Path("data/medical_preprocessed")
NNUNET = "--images images --labels labels --dataset CT_X --classes 1=a"
CLICKS = f"--checkpoint student.pth --device cpu --num-clicks 1 --val-datas {TREE}/liver/CT_A"
#: Command -> the function that kills a worker; the script's own process never calls it.
COMMANDS = {
    "classify.py": "utils.files.npz.read_npz",
    "categorize.py": "utils.preparation.cleaning.clean_target",
    f"categorize.py --check {TREE}": "utils.files.nifti.read_nifti",
    "reallocate.py": "utils.volumes.grid.require_same_grid",
    f"-m utils.preparation.nnunet {NNUNET}": "utils.preparation.cleaning.clean_target",
    f"validation_student.py {CLICKS}": "utils.cases.prepared.read_case",
}


@pytest.fixture
def inputs(workplace, make_case):
    """A prepared tree whose records are of other settings, so that every case is due."""
    for number in range(4):
        make_case(Path("data/npz"), f"CT_A_{number}")
    for step in (classify_all, categorize_all, reallocate_all):
        step()
    for kind, folder in (("imagesTr", "images"), ("labelsTr", "labels")):
        Path(folder).symlink_to(TREE / "liver/CT_A" / kind)
    save_student(Path("student.pth"))
    for record in Path("data").rglob("*.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"settings": {"a": 1}}))


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_worker_ends_the_script_with_one_message_and_exit_code_1(command):
    module, _, name = COMMANDS[command].rpartition(".")
    Path("sitecustomize.py").write_text(  # each process imports it first
        f"import os, {module}\n{module}.{name} = lambda *_, **__: os.kill(os.getpid(), 9)\n"
    )
    first, *words = command.split()
    words = ["-m", *words] if first == "-m" else [str(ROOT / first), *words]
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{ROOT}", "OMP_NUM_THREADS": "1"}

    result = subprocess.run(
        [sys.executable, *words, "--workers", "2"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
        check=False,
    )

    assert result.returncode == 1, result.stderr
    assert result.stderr.count("WorkerDiedError: a worker process was killed") == 1
    assert "Run again with a smaller --workers" in result.stderr
    assert "Traceback" not in result.stderr


def _die(number):
    os.kill(os.getpid(), number)


def test_dask_worker_that_dies_is_one_error_and_no_endless_wait():
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
        pytest.raises(WorkerDiedError, match="a Dask worker died"),
    ):
        list(run_all(_die, [9], scheduler=cluster.scheduler_address))


def test_dask_cluster_without_a_worker_is_an_input_error(monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setattr("utils.run.executor.WORKER_SECONDS", 0.2)
    with (
        LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(InputError, match="has no worker"),
    ):
        list(run_all(_die, [9], scheduler=cluster.scheduler_address))
