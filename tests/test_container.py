"""The container's recipe, followed without Docker: the copied files suffice to segment a case."""

import ast
import re
import shutil
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from container_helpers import (
    DOCKER,
    build,
    instructions,
    is_ignored,
    packages_of,
    required,
    run_sh,
    shipped_folder,
)
from preparation_helpers import ROOT
from small_cases import ball
from small_networks import save_student

SHAPE = (20, 24, 28)
BOX = {
    "z_min": 4, "z_max": 14, "z_mid": 9,
    "z_mid_y_min": 7, "z_mid_y_max": 17, "z_mid_x_min": 10, "z_mid_x_max": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Return a folder that stands for /workspace after the build, with a case in its inputs."""
    weights = tmp_path_factory.mktemp("work_dir")
    for name in ("student.pth", "last.pt", "run.log"):
        save_student(weights / name)
    workspace = tmp_path_factory.mktemp("container") / "workspace"
    build(workspace, weights, CHECKPOINT="student.pth")
    for folder in ("inputs", "outputs"):
        (workspace / folder).mkdir()
    image = 60 + 90 * ball(SHAPE) + np.random.default_rng(0).integers(0, 30, SHAPE)
    np.savez_compressed(
        workspace / "inputs" / "CT_A_1.npz",
        imgs=image.astype(np.uint8),
        spacing=(1.2, 1.1, 1.0),
        boxes=np.array([BOX, BOX], object),
    )
    return workspace


@pytest.fixture(scope="module")
def done(workspace):
    """Return how the container's command ended, once."""
    return run_sh(workspace)


def test_the_challenges_command_answers_the_case(workspace, done):
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (workspace / "outputs").iterdir()] == ["CT_A_1.npz"]
    with np.load(workspace / "outputs" / "CT_A_1.npz", allow_pickle=False) as answer:
        assert answer.files == ["segs"]
        assert answer["segs"].dtype == np.uint8
        assert answer["segs"].shape == SHAPE
        assert set(np.unique(answer["segs"])) <= {0, 1, 2}
    assert "network" in done.stdout.splitlines()[-1]


def test_every_module_and_package_it_may_import_is_there(workspace):
    packages = packages_of(workspace, "predict", "check_network")
    assert {"torch", "nibabel"} <= packages
    assert {packages_distributions()[name][0] for name in packages} <= required("requirements.txt")


def test_its_packages_are_those_of_the_project():
    ours = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").open()]
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    for line in lines:
        assert line.startswith("#") or line in ours


def test_a_cold_start_loads_nothing_that_only_training_needs(done):
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
    assert "torch" in names
    assert not names & {"matplotlib", "torchio", "SimpleITK", "tensorboard", "joblib"}


def test_the_recipe_is_what_the_challenge_expects():
    recipe = instructions()
    assert ("WORKDIR", "/workspace") in recipe
    copied = [words for name, words in recipe if name == "COPY"]
    for sources in (words[:-1] for words in copied if words[0] != "--from=weights"):
        assert all((ROOT / source).exists() for source in sources)
        assert not any(is_ignored(Path(source)) for source in sources)


def test_base_image_and_packages_have_exact_versions():
    recipe = instructions()
    *_, base = (words for name, words in recipe if name == "FROM")
    image, _, _ = base.partition(" AS ")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", image)
    installs = [part for name, words in recipe if name == "RUN" for part in words.split("&&")]
    installs = [part for part in installs if "pip install" in part]
    assert len(installs) == 2
    assert all("-c constraints.txt" in part for part in installs)
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    assert {re.split(r"[=<>]", x)[0].lower() for x in lines if not x.startswith("#")} <= pinned


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("predict.py", False),
        ("constraints.txt", False),
        ("utils/volumes/geometry.py", False),
        ("docker/predict.sh", False),
        ("docker/checkpoint.sh", False),
        ("serve.py", False),
        ("docker/serve.sh", False),
        ("docker/requirements-serve.txt", False),
        ("utils/serving/page/index.html", False),
        ("utils/serving/npm/package-lock.json", False),
        ("utils/serving/npm/node_modules/@niivue/niivue/dist/index.js", True),
        ("utils/serving/page/vendor/niivue.js", True),
        ("docker/weights/student.pth", True),
        ("utils/student.pth", True),
        ("segment_anything/modeling/last.pt", True),
        ("student.pth", True),
        ("weights/student.pth", False),
        ("weights/student.pth.sha256", False),
        ("weights/teacher.pth", True),
        ("work_dir/student/student.pth", True),
        ("work_dir/teacher_outputs/teacher.pt", True),
        ("work_dir/student/run.log", True),
        ("utils/__pycache__/geometry.cpython-311.pyc", True),
        (".venv/lib/python3.11/site-packages/distutils-precedence.pth", True),
        (".git/config", True),
        ("data/npz/CT_A_1.npz", True),
        ("README.md", True),
    ],
)
def test_the_build_sees_only_what_it_needs(path, ignored):
    assert is_ignored(Path(path)) == ignored


@pytest.mark.parametrize(
    ("beside", "entered"),
    [
        (["best.pt", "run.log", "student2.pth", "teacher.pt.old"], ["student.pth"]),
        (["teacher.pth"], ["student.pth", "teacher.pth"]),
        (["teacher.pt"], ["student.pth", "teacher.pt"]),
    ],
)
def test_only_the_named_checkpoint_and_its_teacher_enter(tmp_path, beside, entered):
    weights = tmp_path / "work_dir"
    weights.mkdir()
    for name in ("student.pth", *beside):
        (weights / name).touch()
    build(tmp_path / "workspace", weights, CHECKPOINT="student.pth")
    assert sorted(path.name for path in (tmp_path / "workspace/weights").iterdir()) == entered


def test_the_sha256_beside_the_checkpoint_enters_with_it(tmp_path):
    weights = tmp_path / "work_dir"
    weights.mkdir()
    for name in ("student.pth", "student.pth.sha256", "last.pt.sha256"):
        (weights / name).touch()
    build(tmp_path / "workspace", weights, CHECKPOINT="student.pth")
    entered = sorted(path.name for path in (tmp_path / "workspace/weights").iterdir())
    assert entered == ["student.pth", "student.pth.sha256"]


def test_without_a_named_folder_the_student_that_ships_enters_alone(tmp_path):
    """Nothing of it lies in the root of this repository: the files are made up."""
    context = tmp_path / "clone"
    (context / "weights").mkdir(parents=True)
    for name in ("student.pth", "student.pth.sha256", "teacher.pth", "teacher.pth.sha256"):
        (context / "weights" / name).write_text(name)
    folder = shipped_folder(context, tmp_path / "stage")
    build(tmp_path / "workspace", folder)
    entered = {path.name: path.read_text() for path in (tmp_path / "workspace/weights").iterdir()}
    assert entered == {name: name for name in ("student.pth", "student.pth.sha256")}


def test_a_checkpoint_that_is_not_in_the_folder_ends_the_build(tmp_path):
    (tmp_path / "other.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"student\.pth"):
        build(tmp_path / "workspace", tmp_path)


def test_the_build_opens_the_network_after_the_weights_are_copied():
    recipe = instructions()
    copied = [n for n, (_, words) in enumerate(recipe) if "--from=weights" in words]
    checked = [n for n, step in enumerate(recipe) if step == ("RUN", "sh predict.sh --check")]
    user = [n for n, (name, _) in enumerate(recipe) if name == "USER"]
    assert copied < user < checked  # as the user who runs it: the files must be readable


def test_the_check_opens_the_network_and_segments_nothing(workspace, tmp_path):
    scene = with_weights(workspace, tmp_path)
    shutil.copy(workspace / "weights" / "student.pth", scene / "weights" / "a network.pth")
    (scene / "predict.py").unlink()
    ended = run_sh(scene, "sh predict.sh --check")
    assert ended.returncode == 0, ended.stderr
    assert "weights/a network.pth: network" in ended.stdout


@pytest.mark.parametrize("command", ["sh predict.sh --check", "sh predict.sh"])
@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "found 0 checkpoints ()"),
        (["a.pth", "b.pt"], "found 2 checkpoints (weights/a.pth weights/b.pt)"),
        (["teacher.pt", "teacher.pth"], "found 2 checkpoints"),
        (["a.pth", "teacher.pt", "teacher.pth"], "found 3 checkpoints"),
        (["a.pth", "b.pth", "teacher.pth"], "found 3 checkpoints"),
    ],
)
def test_weights_that_are_missing_or_not_clear_are_said(workspace, tmp_path, command, names, found):
    scene = with_weights(workspace, tmp_path, *names)
    ended = run_sh(scene, command)
    assert ended.returncode == 1
    assert found in ended.stderr
    assert "--build-arg CHECKPOINT=FILE" in ended.stderr


def test_weights_without_a_folder_are_said(workspace, tmp_path):
    scene = with_weights(workspace, tmp_path)
    (scene / "weights").rmdir()
    assert "found 0 checkpoints ()" in run_sh(scene, "sh predict.sh --check").stderr


def test_a_sha256_is_no_checkpoint_and_is_compared(workspace, tmp_path):
    scene = with_weights(workspace, tmp_path)
    shutil.copy(workspace / "weights" / "student.pth", scene / "weights" / "student.pth")
    (scene / "weights" / "student.pth.sha256").write_text("0" * 64)
    ended = run_sh(scene, "sh predict.sh --check")
    assert ended.returncode == 1
    assert "weights/student.pth:" in ended.stderr
    assert f"expected {'0' * 64}" in ended.stderr


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_network_ends_the_build(workspace, tmp_path, content):
    scene = with_weights(workspace, tmp_path)
    (scene / "weights" / "student.pth").write_bytes(content)
    ended = run_sh(scene, "sh predict.sh --check")
    assert ended.returncode == 1
    said, line, *_ = [x for x in ended.stderr.splitlines() if not x.startswith("import time:")]
    assert said == "checkpoint: weights/student.pth"
    assert line.startswith("InputError: weights/student.pth")


@pytest.mark.parametrize("teacher", ["teacher.pth", "teacher.pt"])
def test_teacher_and_network_are_handed_over(workspace, tmp_path, teacher):
    words = handed_over(with_weights(workspace, tmp_path, "student.pth", teacher))
    for flag, value in (
        ("--checkpoint", "weights/student.pth"),
        ("--teacher", f"weights/{teacher}"),
        ("--network", "fastsam3d"),
    ):
        assert words[words.index(flag) + 1] == value


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.pt", "last.ckpt", "two words.pth"])
def test_the_only_file_is_the_checkpoint_whatever_its_name(workspace, tmp_path, name):
    words = handed_over(with_weights(workspace, tmp_path, name))
    assert words[words.index("--checkpoint") + 1] == f"weights/{name}"
    assert "--teacher" not in words


def with_weights(workspace, folder, *names):
    """Return a copy of the workspace whose weights are empty files."""
    scene = shutil.copytree(workspace, folder / "workspace")
    shutil.rmtree(scene / "weights")
    (scene / "weights").mkdir()
    for name in names:
        (scene / "weights" / name).touch()
    return scene


def handed_over(scene):
    """Return the arguments that predict.sh gives to predict.py."""
    (scene / "predict.py").write_text("import sys; print(sys.argv[1:])")
    return ast.literal_eval(run_sh(scene, NETWORK="fastsam3d").stdout)


@pytest.mark.parametrize("target", ["", "serve"])
def test_it_does_not_run_as_root(target):
    users = [words for name, words in instructions(target) if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
