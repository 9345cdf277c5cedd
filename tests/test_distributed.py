"""Several ranks on one machine (gloo), and a training that is killed for good."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_cases import write_prepared
from training_rows import rows_of

from utils.training.crop_cache import build_cache
from utils.training.tensor_shards import open_shards

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    build_cache([write_prepared(folder / "tree", cases=5)], folder / "crops", workers=1)
    return folder / "crops"


@pytest.fixture(scope="module")
def alone(crops, tmp_path_factory):
    """One process with the whole batch, uninterrupted."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run = subprocess.run([sys.executable, WORKER, crops, out, "--batch-size", "4"], check=True)
    assert run.returncode == 0
    return out


def on_two_ranks(*arguments):
    launch = "torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint"
    command = [sys.executable, "-m", *launch.split(), "localhost:0", WORKER, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("split", [("2", "1"), ("1", "2")], ids=["ranks", "ranks and passes"])
def test_two_ranks_take_the_steps_of_one_with_the_whole_batch(crops, alone, tmp_path, split):
    batch_size, accumulation = split
    flags = ("--batch-size", batch_size, "--accumulation", accumulation)
    result = on_two_ranks(crops, tmp_path / "run", *flags)

    assert result.returncode == 0, result.stderr
    first, second = (torch.load(out / "weights.pt") for out in (alone, tmp_path / "run"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=5e-5)  # of steps of 1e-3
    losses = [[row["loss"] for row in rows_of(out)] for out in (alone, tmp_path / "run")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(losses[0]) == 6


def test_two_ranks_distil_through_all_stages_as_one_with_the_whole_batch(crops, alone, tmp_path):
    result = on_two_ranks(crops, tmp_path / "run")

    assert result.returncode == 0, result.stderr
    first, second = (torch.load(out / "student.pt") for out in (alone, tmp_path / "run"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-4)  # of steps of 1e-3
    names = [set(row) for row in rows_of(tmp_path / "run/student")]
    assert ["loss_newest_layer" in row for row in names] == [True] * 2 + [False] * 4
    assert ["loss_logits" in row for row in names] == [False] * 3 + [True] * 3


def test_ranks_whose_clocks_differ_take_the_same_steps_in_the_minutes(crops, tmp_path):
    """The clock of rank 1 goes 51 times as fast."""
    # Nine seconds: on a busy machine a step may take two.
    result = on_two_ranks(crops, tmp_path / "run", "--minutes", "0.15")

    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"run/rank_{rank}.pt") for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for out in (tmp_path / "run", tmp_path / "run/student"):
        dones = [row["done"] for row in rows_of(out)]
        assert dones == sorted(dones)
        assert dones[0] < 0.01
        assert 0.5 < dones[-1] < 1


def test_every_sample_is_stored_once_over_the_ranks(crops, alone, tmp_path):
    on_two_ranks(crops, tmp_path / "run")

    one, two = (open_shards(out / "stored") for out in (alone, tmp_path / "run"))
    assert list(one.rows) == list(two.rows)
    held = []
    for path in (tmp_path / "run/stored").glob("*.safetensors"):
        with safe_open(path, framework="pt") as shard:
            held += [key for key in shard.keys() if key.endswith("/click_labels")]  # noqa: SIM118
    assert sorted(held) == sorted(f"{sample_id}/click_labels" for sample_id in one.rows)
    assert len({row["shard"] for row in two.rows.values()}) == 2


def test_a_rank_that_fails_ends_the_run_with_its_reason(crops, tmp_path):
    started = time.monotonic()
    result = on_two_ranks(crops, tmp_path / "run", "--die")

    assert result.returncode != 0
    assert "cannot be read. Expected a crop: cut it again." in result.stderr
    assert time.monotonic() - started < 60


def test_training_killed_at_any_step_resumes_bit_for_bit(crops, alone, tmp_path):
    """Killed with SIGKILL four times at random moments, saving after every step."""
    rng = np.random.default_rng(0)
    out = tmp_path / "run"
    flags = ("--batch-size", "4", "--save-minutes", "0", "--resume")
    killed = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, WORKER, crops, out, *flags])
        while process.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    subprocess.run([sys.executable, WORKER, crops, out, *flags], check=True)

    assert killed >= 2
    first, second = (torch.load(folder / "weights.pt") for folder in (alone, out))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows_of(out) == rows_of(alone)


def test_ranks_wait_until_rank_0_has_come(tmp_path):
    """Rank 0 builds the crop cache before it joins; NCCL connects late, as gloo does here."""
    script, mark = tmp_path / "late.py", tmp_path / "built"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(WORKER).parent.parent)!r})\n"
        "from utils.run.ranks import joined\n"
        "if os.environ['RANK'] == '0':\n"
        "    time.sleep(3)\n"
        f"    Path({str(mark)!r}).touch()\n"
        "with joined('cpu'):\n"
        f"    assert Path({str(mark)!r}).exists(), 'rank 1 did not wait'\n"
    )
    launch = "torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint"
    command = [sys.executable, "-m", *launch.split(), "localhost:0", script]
    environment = os.environ | {"TORCH_GLOO_LAZY_INIT": "1"}
    subprocess.run(command, check=True, timeout=60, env=environment, capture_output=True)
