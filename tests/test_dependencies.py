"""The packages that the code imports are named, with bounds that were tested."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
FILES = ("", "-cluster", "-export", "-hub", "-gpu", "-serve", "-dev")
#: Named for other reasons than an import of ours.
NOT_IMPORTED = {
    "tensorboard",  # torch.utils.tensorboard
    "onnx", "onnxscript", "onnxruntime",  # imported by name where they are needed
    "requests",  # medim
    "ruff", "mutmut",  # commands
}  # fmt: skip
#: Run in an environment of their own, see docs/serving.md.
ELSEWHERE = {"napari_worker", "monailabel_worker"}


def lines_of(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


REQUIRED = {
    canonicalize_name(each.name): each
    for suffix in FILES
    for each in lines_of(f"requirements{suffix}.txt")
}
PINNED = {canonicalize_name(each.name): each for each in lines_of("constraints.txt")}
TESTED = {name: Version(str(each.specifier).removeprefix("==")) for name, each in PINNED.items()}


def imported():
    """Return the names of the distributions that the project's files import."""
    folders = ("segment_anything", "utils", "tests", "benchmarks", "docker", "docs")
    paths = [*ROOT.glob("*.py"), *(path for top in folders for path in (ROOT / top).rglob("*.py"))]
    ours = {path.stem for path in paths} | {*folders}
    names = set()
    for path in paths:
        if path.stem in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    names -= {*sys.stdlib_module_names, *ours}
    owners = packages_distributions() | {"flash_attn": ["flash-attn"]}
    return {canonicalize_name(owners[name][0]) for name in names}


def test_every_imported_package_is_named():
    assert imported() - REQUIRED.keys() == set()


def test_every_named_package_is_used():
    assert REQUIRED.keys() - imported() == NOT_IMPORTED


@pytest.mark.parametrize("name", REQUIRED)
def test_an_upper_bound_is_the_version_after_the_tested_one(name):
    if name == "flash-attn":  # needs CUDA: not among the tested versions
        return
    required, tested = REQUIRED[name], TESTED[name]
    assert required.specifier.contains(tested)
    bounds = [part for part in required.specifier if part.operator in ("<", "==")]
    assert len(bounds) == 1
    if bounds[0].operator == "<":
        assert Version(bounds[0].version) == Version(f"{tested.major}.{tested.minor + 1}")


def test_constraints_are_exact_versions_that_bind_from_python_3_11_on():
    assert REQUIRED.keys() - PINNED.keys() == {"flash-attn"}
    for each in PINNED.values():
        assert re.fullmatch(r"==[\w.]+", str(each.specifier))  # no "+cpu": PyPI has no such builds
        assert not each.marker.evaluate({"python_version": "3.10"})
        assert each.marker.evaluate({"python_version": "3.11"})
        assert each.marker.evaluate({"python_version": "3.13"})


def test_what_the_packages_need_in_turn_has_an_exact_version_too():
    waiting, needed = [*(REQUIRED.keys() & PINNED.keys())], set()
    while waiting:
        name = waiting.pop()
        needed.add(name)
        for each in map(Requirement, requires(name) or ()):
            wanted = each.marker is None or each.marker.evaluate({"extra": ""})
            if wanted and canonicalize_name(each.name) not in needed:
                waiting.append(canonicalize_name(each.name))
    assert "setuptools" in needed  # of torch; pip freeze leaves it out unless told
    assert needed - PINNED.keys() == set()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the constraints bind from 3.11 on")
def test_these_tests_run_with_the_versions_of_the_constraints():
    found = {name: Version(version(name)).public for name in REQUIRED if name in PINNED}
    assert found == {name: str(TESTED[name]) for name in found}
