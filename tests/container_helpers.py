"""The containers' recipe, followed without Docker: its steps copy files into a folder."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch

from preparation_helpers import ROOT

DOCKER = ROOT / "docker"


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
