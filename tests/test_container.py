"""The container's recipe, followed without Docker: the copied files suffice to segment a case."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import ROOT
from small_cases import ball
from small_networks import save_student

DOCKER = ROOT / "docker"
SHAPE = (20, 24, 28)
BOX = {
    "z_min": 4, "z_max": 14, "z_mid": 9,
    "z_mid_y_min": 7, "z_mid_y_max": 17, "z_mid_x_min": 10, "z_mid_x_max": 20,
}  # fmt: skip


def instructions(**build_args):
    """Return the Dockerfile's (instruction, words), with build arguments in their places."""
    text = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    values, found = {}, []
    for line in lines:
        name, _, rest = line.partition(" ")
        if name == "ARG":
            key, _, default = rest.partition("=")
            values[key] = build_args.get(key, default.strip('"'))
        for key, value in values.items():
            rest = rest.replace(f"${{{key}}}", value)
        found.append((name, shlex.split(rest) if name == "COPY" else rest))
    return found


def is_ignored(path):
    """Say whether .dockerignore keeps a path from the build: the last rule that matches counts."""
    ignored = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        keep, pattern = rule.startswith("!"), rule.removeprefix("!")
        names = [path, *path.parents[:-1]]
        if pattern.startswith("**/"):
            matches = any(fnmatch(name.name, pattern[3:]) for name in names)
        else:
            depth = pattern.count("/") + 1
            matches = any(len(n.parts) == depth and fnmatch(str(n), pattern) for n in names)
        ignored = (not keep) if matches else ignored
    return ignored


def copy(context, source, target):
    """Do what COPY does: a folder's content, or a file, without what is ignored."""
    source = context / source
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for path in files:
        inner = path.relative_to(source) if source.is_dir() else path.name
        if not is_ignored(path.relative_to(context)):
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / inner)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Return a folder that stands for /workspace after the build, with a case in its inputs."""
    workspace = tmp_path_factory.mktemp("container") / "workspace"
    for name, words in instructions(CHECKPOINT="CHECKPOINT"):
        if name == "COPY":
            *sources, target = words
            for source in sources:
                if source == "CHECKPOINT":
                    (workspace / target).mkdir()
                    save_student(workspace / target / "student.pth")
                else:
                    copy(ROOT, source, workspace / target)
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


def run_sh(workspace, **environment):
    """Run what the challenge runs, with this Python as the container's."""
    tools = workspace.parent / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -X importtime "$@"\n')
    (tools / "python").chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    kept |= {"PATH": f"{tools}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""} | environment
    command = ["/bin/sh", "-c", "sh predict.sh"]
    return subprocess.run(
        command, cwd=workspace, env=kept, capture_output=True, text=True, check=False
    )


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
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    required = {re.split(r"[=<>]", line)[0] for line in lines if not line.startswith("#")}
    waiting, ours, packages = ["predict"], set(), set()
    while waiting:
        name = waiting.pop()
        path = workspace / f"{name.replace('.', '/')}.py"
        path = path if path.exists() else workspace / name.replace(".", "/") / "__init__.py"
        names = imports_of(path)
        mine = {inner for inner in names if inner.split(".")[0] in ("utils", "segment_anything")}
        waiting += mine - ours
        ours |= mine
        packages |= {other.split(".")[0] for other in names - mine}
    packages -= {*sys.stdlib_module_names, "flash_attn", "SimpleITK"}  # the last two are optional
    assert {"torch", "nibabel"} <= packages
    assert {packages_distributions()[name][0] for name in packages} <= required


def imports_of(path):
    """Return the modules that a file names, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            is_module = [(ROOT / f"{name.replace('.', '/')}.py").exists() for name in inner]
            names |= set(inner) if all(is_module) else {node.module}
    return names


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
    assert recipe[0] == ("FROM", "python:3.11-slim")
    copied = [words for name, words in recipe if name == "COPY"]
    assert ["docker/weights/", "weights/"] in copied
    for sources in (words[:-1] for words in copied):
        assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("predict.py", False),
        ("utils/volumes/geometry.py", False),
        ("docker/weights/student.pth", False),
        ("work_dir/student/student.pth", False),
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


def test_weights_that_are_missing_or_not_clear_are_said(workspace, done, tmp_path):
    scene = shutil.copytree(workspace, tmp_path / "workspace")
    (scene / "weights" / "second.pt").touch()
    ended = run_sh(scene)
    assert ended.returncode == 1
    assert "found 2 checkpoints (weights/student.pth weights/second.pt)" in ended.stderr
    shutil.rmtree(scene / "weights")
    assert "found 0 checkpoints" in run_sh(scene).stderr


def test_teacher_and_network_are_handed_over(workspace, done, tmp_path):
    scene = shutil.copytree(workspace, tmp_path / "workspace")
    (scene / "weights" / "teacher.pth").touch()
    (scene / "predict.py").write_text("import sys; print(sys.argv[1:])")
    ended = run_sh(scene, NETWORK="fastsam3d")
    words = ast.literal_eval(ended.stdout)
    for flag, value in (
        ("--checkpoint", "weights/student.pth"),
        ("--teacher", "weights/teacher.pth"),
        ("--network", "fastsam3d"),
    ):
        assert words[words.index(flag) + 1] == value


def test_it_does_not_run_as_root():
    users = [words for name, words in instructions() if name == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
