"""Every flag that names a checkpoint takes a file of the hub, and results name its commit."""

import io
import json
import os
import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from local_hub import COMMIT, LocalHub, run_with_hub
from small_cases import ball, write_prepared
from small_networks import save_student, save_teacher
from validation_helpers import run

import distillation
import predict
import preparelabel
import validation
import validation_student
from segment_anything import sam_model_registry3D
from utils.errors import InputError
from utils.files.hub import HubFile
from utils.files.nifti import read_nifti, write_nifti
from utils.run.checkpoint_flags import checkpoint_file, with_local_files
from utils.run.folder import write_flags

ADDRESS = "hf://owner/net/weights.pth"


def saved(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Program:
    """Touches a file when it is unpickled by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_path_stays_a_path_and_an_address_becomes_a_file_of_the_hub():
    assert checkpoint_file("work_dir/student.pth") == Path("work_dir/student.pth")
    assert checkpoint_file(f"{ADDRESS}@v1") == HubFile("owner/net", "weights.pth", "v1")
    with pytest.raises(ArgumentTypeError, match=r"hf://owner/net: is no address .* Expected hf://"):
        checkpoint_file("hf://owner/net")


def test_flags_without_a_file_of_the_hub_stay_as_they_are():
    args = Namespace(checkpoint=Path("a.pth"), teacher=None)
    assert with_local_files(args) is args


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        *((each, "--checkpoint") for each in (predict, validation, validation_student)),
        *((each, "--checkpoint") for each in (preparelabel, distillation)),
        *((each, "--teacher") for each in (predict, validation_student)),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_script_takes_its_checkpoints_from_the_hub(tmp_path, monkeypatch, script, flag):
    # Without the package nothing is downloaded, and the message names what would have been.
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    words = [flag, ADDRESS, "--out-dir", "out"]
    if script is predict:
        write_nifti(Path("scan.nii.gz"), np.zeros((4, 4, 4), np.uint8), np.eye(4))
        words = [flag, ADDRESS, "--input", "scan.nii.gz", "--output", "out", "--fg", "1,1,1"]
    if flag == "--teacher":
        words += ["--checkpoint", "student.pth"]
    with pytest.raises(InputError, match=f"{ADDRESS}: needs the package huggingface_hub"):
        run(script, words)
    assert not Path("out").exists()


def cached(folder, save):
    """Save a checkpoint where the cache has a file of the hub; return its path."""
    path = folder / "models--owner--net/snapshots" / COMMIT / "weights.pth"
    path.parent.mkdir(parents=True)
    return save(path)


def test_the_flags_of_a_run_name_the_address_with_its_commit(tmp_path):
    write_flags(Namespace(checkpoint=cached(tmp_path, save_teacher)), tmp_path, "script.py")
    stored = json.loads((tmp_path / "args.json").read_text())
    assert stored["checkpoint"] == f"{ADDRESS}@{COMMIT}"


def test_the_report_names_the_address_with_its_commit(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    flags = ["--val-datas", folder, "--num-clicks", 1, "--pictures", 0, "--device", "cpu"]
    flags += ["--checkpoint", cached(tmp_path, save_student), "--out-dir", tmp_path / "out"]
    run(validation_student, flags)
    assert f"{ADDRESS}@{COMMIT}" in (tmp_path / "out/report.html").read_text()
    assert f"{ADDRESS}@{COMMIT}" in (tmp_path / "out/args.json").read_text()


def check_network(hub, tmp_path, address, *flags):
    return run_with_hub(hub, tmp_path, "docker/check_network.py", "--checkpoint", address, *flags)


def test_a_file_of_the_released_layout_is_opened_by_the_networks_name(tmp_path):
    weights = {"model_state_dict": sam_model_registry3D["tiny"]().state_dict()}
    with LocalHub({"owner/net/sam_med3d_turbo.pth": saved(weights)}) as hub:
        address = "hf://owner/net/sam_med3d_turbo.pth"
        done = check_network(hub, tmp_path, address, "--network", "tiny")
        assert done.returncode == 0, done.stderr
        assert "sam_med3d_turbo.pth: network tiny" in done.stdout
        assert f"{address}@{COMMIT}: SHA-256 " in done.stderr


def test_a_file_with_a_program_is_refused_and_the_program_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    good = save_student(tmp_path / "good.pth")
    content = torch.load(good, weights_only=True) | {"args": Program(marker)}
    with LocalHub({"owner/net/weights.pth": saved(content)}) as hub:
        done = check_network(hub, tmp_path, ADDRESS)
    assert done.returncode == 1
    assert f"{COMMIT}/weights.pth: not readable as a checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()


def test_predict_answers_as_with_the_file_itself(tmp_path):
    student = save_student(tmp_path / "student.pth")
    image = 60 + 90 * ball() + np.random.default_rng(0).integers(0, 30, ball().shape)
    write_nifti(tmp_path / "scan.nii.gz", image.astype(np.uint8), np.eye(4))
    words = ["--input", tmp_path / "scan.nii.gz", "--fg", "9,12,15", "--device", "cpu"]
    run(predict, [*words, "--output", tmp_path / "own", "--checkpoint", student])
    with LocalHub({"owner/net/weights.pth": student.read_bytes()}) as hub:
        words += ["--output", tmp_path / "hubs", "--checkpoint", ADDRESS]
        done = run_with_hub(hub, tmp_path, "predict.py", *words)
    assert done.returncode == 0, done.stderr
    own, hubs = (read_nifti(tmp_path / out / "scan.nii.gz").array for out in ("own", "hubs"))
    assert own.any()
    assert (own == hubs).all()
