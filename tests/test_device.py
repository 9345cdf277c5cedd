"""Devices by name: those of this machine, and all others refused."""

import pytest
import torch
from small_networks import save_student
from test_predict import predicted, write_npz

from utils.errors import InputError
from utils.run.device import (
    available_devices,
    peak_memory_mib,
    pick_device,
    pick_engine,
    pick_precision,
    synchronise,
)
from utils.run.ranks import joined

HAS_CUDA = torch.cuda.is_available()
HAS_MPS = torch.backends.mps.is_available()


@pytest.mark.parametrize(
    "name",
    ["xpu", "meta", "hpu", "cuda:99", "cuda:-1", "", "vulkan", "gpu", "cpu:7", "cuda:", "cuda:x"],
)
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(InputError) as refused:
        pick_device(name)
    message = str(refused.value)
    assert message.startswith(f"--device {name}" if name else "--device with an empty name")
    assert "Expected one of auto, cpu" in message


@pytest.mark.skipif(HAS_MPS, reason="there is an Apple GPU")
def test_mps_is_refused_where_there_is_none(tmp_path):
    student = save_student(tmp_path / "student.pth")
    path = write_npz(tmp_path / "inputs")
    with pytest.raises(InputError, match="--device mps: found no Apple GPU"):
        predicted(path, tmp_path / "out", student, "--device", "mps")


@pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA GPU")
def test_auto_is_the_cpu_without_a_gpu():
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")


def test_mps_is_taken_where_pytorch_has_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = pick_device("mps")
    assert device == torch.device("mps")
    assert "mps" in available_devices()
    assert pick_precision("auto", device) == torch.float32
    assert pick_engine("eager", device) == "eager"
    with pytest.raises(InputError, match="expected a CUDA device"):
        pick_engine("graph", device)
    assert 1 < peak_memory_mib(device) < 2**20


def test_several_processes_cannot_share_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several processes"), joined("mps"):
        pass


def test_a_cpu_needs_no_waiting_and_tells_its_memory():
    synchronise(torch.device("cpu"))
    assert 1 < peak_memory_mib(torch.device("cpu")) < 2**20


def test_only_gpus_that_are_there_are_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available_devices()[:4] == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="cuda:2: found no such CUDA GPU"):
        pick_device("cuda:2")
