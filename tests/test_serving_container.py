"""The container that serves the page: its recipe, followed without Docker."""

import ast
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from importlib.metadata import packages_distributions

import pytest
from container_helpers import (
    DOCKER,
    build,
    environment_of,
    instructions,
    packages_of,
    required,
    run_sh,
)
from preparation_helpers import ROOT
from small_networks import save_student

import serve


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
