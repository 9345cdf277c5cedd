"""The container's recipe, followed without Docker: the copied files suffice to segment a case."""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import ROOT
from small_cases import ball
from small_networks import save_student

import serve

DOCKER = ROOT / "docker"
SHAPE = (20, 24, 28)
BOX = {
    "z_min": 4, "z_max": 14, "z_mid": 9,
    "z_mid_y_min": 7, "z_mid_y_max": 17, "z_mid_x_min": 10, "z_mid_x_max": 20,
}  # fmt: skip


def all_instructions(**build_args):
    """Return the Dockerfile's (instruction, words), with build arguments in their places.

    The words of COPY begin with "--from=weights" where the files come from the named folder.
    """
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


def instructions(target="", **build_args):
    """Return the steps of the stage for the weights, then those of an image from its base on.

    Args:
        target: as of --target; by default the last stage.
    """
    stages = {}
    for name, words in all_instructions(**build_args):
        if name == "FROM":
            source, _, own = words.partition(" AS ")
            steps = [*stages[source]] if source in stages else [(name, words)]
            stages[own] = steps
        else:
            steps.append((name, words))
    return [*stages["weights"], *stages[target]]


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


def copy_weights(folder, patterns, target):
    """Do what COPY does with a named folder: patterns may match nothing, a name must be there."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if not found and not re.search(r"[*?[]", pattern):
            raise FileNotFoundError(pattern)
        for path in found:
            shutil.copy(path, target / path.name)


def stages(target="", **build_args):
    """Return the steps of the stage that stands for the named folder, and those of the image."""
    recipe = instructions(target, **build_args)
    first, second = [n for n, (name, _) in enumerate(recipe) if name == "FROM"]
    assert recipe[first] == ("FROM", "scratch AS weights")
    return recipe[first:second], recipe[second:]


def shipped_folder(context, folder):
    """Follow the COPY lines of the stage that takes the named folder's place; return ``folder``."""
    folder.mkdir()
    for name, words in stages()[0]:
        if name == "COPY":
            source, target = words
            assert target == "/"
            copy(context, source, folder)
    return folder


def build(workspace, weights, target="", **build_args):
    """Follow the recipe's COPY lines into ``workspace``, with a folder of weights."""
    for name, words in stages(target, **build_args)[1]:
        if name != "COPY" or words[0] == "--from=page":  # which npm fetches
            continue
        *sources, target = words
        if sources[0] == "--from=weights":
            copy_weights(weights, sources[1:], workspace / target)
        else:
            for source in sources:
                copy(ROOT, source, workspace / target)
    return workspace


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


def run_sh(workspace, command="sh predict.sh", **environment):
    """Run a command, by default the challenge's, with this Python as the container's."""
    return subprocess.run(
        ["/bin/sh", "-c", command], cwd=workspace, env=environment_of(workspace) | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def environment_of(workspace):
    """Return environment variables with which this Python is the container's."""
    tools = workspace.parent / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -X importtime "$@"\n')
    (tools / "python").chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"PATH": f"{tools}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}


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


def required(*files):
    """Return the packages that requirement files of docker/ name."""
    lines = [line for file in files for line in (DOCKER / file).read_text().splitlines()]
    return {re.split(r"[=<>]", line)[0] for line in lines if not line.startswith("#")}


def packages_of(workspace, *scripts):
    """Return the packages that scripts may import, by themselves and by our modules."""
    waiting, ours, packages = [*scripts], set(), set()
    while waiting:
        name = waiting.pop()
        path = workspace / f"{name.replace('.', '/')}.py"
        path = path if path.exists() else workspace / name.replace(".", "/") / "__init__.py"
        names = imports_of(path)
        mine = {inner for inner in names if inner.split(".")[0] in ("utils", "segment_anything")}
        waiting += mine - ours
        ours |= mine
        packages |= {other.split(".")[0] for other in names - mine}
    optional = {"flash_attn", "huggingface_hub"} | (set() if "serve" in scripts else {"SimpleITK"})
    return packages - {*sys.stdlib_module_names, *optional}


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
    (line, *_) = [x for x in ended.stderr.splitlines() if not x.startswith("import time:")]
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


@pytest.fixture(scope="module")
def served_workspace(tmp_path_factory):
    """Return a folder that stands for /workspace after the build of the target "serve"."""
    pytest.importorskip("starlette", reason="no package starlette: requirements-serve.txt")
    weights = tmp_path_factory.mktemp("weights")
    save_student(weights / "student.pth")
    workspace = tmp_path_factory.mktemp("served") / "workspace"
    return build(workspace, weights, "serve", CHECKPOINT="student.pth")


def test_a_build_without_target_makes_the_challenges_container():
    recipe = instructions()
    assert ("CMD", '["/bin/bash", "-c", "sh predict.sh"]') in recipe
    assert "serve" not in str(recipe)


def test_the_server_has_every_module_and_package_it_may_import(served_workspace):
    packages = packages_of(served_workspace, "serve", "check_network")
    assert {"torch", "starlette", "SimpleITK", "blosc2"} <= packages
    names = {packages_distributions()[name][0].lower() for name in packages}
    both = required("requirements.txt", "requirements-serve.txt")
    assert names <= {name.lower() for name in both}


def test_the_servers_packages_are_those_of_the_project_in_tested_versions():
    files = [ROOT / "requirements.txt", ROOT / "requirements-serve.txt"]
    ours = [line.split("#")[0].strip() for file in files for line in file.open()]
    pinned = (ROOT / "constraints.txt").read_text().lower()
    for line in (DOCKER / "requirements-serve.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert line in ours
            assert f"\n{re.split(r'[=<>]', line)[0].lower()}==" in pinned
    installs = [words for name, words in instructions("serve") if "pip install" in words]
    assert all("-c constraints.txt" in part for words in installs for part in words.split("&&"))


def test_the_page_of_the_server_is_fetched_in_the_build_by_the_lock_file():
    recipe = instructions("page")
    fetches = [words for name, words in recipe if "utils.serving.fetch_page" in words]
    node = re.search(r"^NODE := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert fetches == [f"pip install --no-cache-dir {node} && python -m utils.serving.fetch_page"]
    vendor = "utils/serving/page/vendor/"
    copied = ["--from=page", f"/workspace/{vendor}", vendor]
    assert ("COPY", copied) in instructions("serve")
    assert not any(node in words for name, words in instructions("serve") if name == "RUN")


def test_the_server_opens_the_network_in_the_build_as_the_user_who_runs_it():
    recipe = instructions("serve")
    user = [n for n, (name, _) in enumerate(recipe) if name == "USER"]
    checked = [n for n, step in enumerate(recipe) if step == ("RUN", "sh predict.sh --check")]
    assert user < checked
    assert ("ENTRYPOINT", '["sh", "serve.sh"]') in recipe
    assert ("STOPSIGNAL", "SIGINT") in recipe


def served_flags(workspace, folder, *words, **environment):
    """Return the arguments that serve.sh gives to serve.py."""
    scene = shutil.copytree(workspace, folder / "workspace")
    (scene / "serve.py").write_text("import sys; print(sys.argv[1:])")
    done = run_sh(scene, f"sh serve.sh {' '.join(words)}", **environment)
    return ast.literal_eval(done.stdout)


def test_the_server_is_reached_from_outside_with_a_token_alone(served_workspace, tmp_path):
    words = served_flags(served_workspace, tmp_path, "--image", "'images/a b.nii.gz'")
    args = serve.parse_args(words)
    assert (args.host, args.port, args.token) == ("0.0.0.0", 1527, serve.NEW_TOKEN)
    assert (str(args.save_dir), str(args.image)) == ("masks", "images/a b.nii.gz")
    assert str(args.checkpoint) == "weights/student.pth"


def test_flags_of_the_user_come_before_those_of_the_container(served_workspace, tmp_path):
    token = "a-token-of-the-user"
    words = served_flags(served_workspace, tmp_path, "--token", token, NETWORK="fastsam3d")
    args = serve.parse_args(words)
    assert (args.token, args.network) == (token, "fastsam3d")


def test_the_server_runs_on_the_copied_files_and_ends_as_docker_stops_it(served_workspace):
    command = ["/bin/sh", "serve.sh", "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        command, cwd=served_workspace, env=environment_of(served_workspace),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        ready = next(line for line in process.stderr if line.startswith("ready: "))
        url = ready.split()[1]
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/\?token=[\w-]{32}", url)
        with urllib.request.urlopen(url) as page:
            assert page.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url.partition("?")[0] + "api/status")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 0
    assert "ended; prompts are kept in masks/autosave" in rest
