"""The import arrow: scripts -> utils -> segment_anything -> torch."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(ROOT.glob("*.py"))
UTILS = sorted((ROOT / "utils").rglob("*.py"))
PACKAGE = sorted((ROOT / "segment_anything").rglob("*.py"))
SCRIPT_NAMES = {path.stem for path in SCRIPTS}
# flash_attn is optional there: the file does without it where it is not installed.
PACKAGE_MAY_IMPORT = {*sys.stdlib_module_names, "torch", "segment_anything", "flash_attn"}


def _imported(path):
    """Return the top-level names that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.name)
def test_segment_anything_imports_torch_and_itself(path):
    assert _imported(path) <= PACKAGE_MAY_IMPORT


@pytest.mark.parametrize("path", UTILS, ids=lambda path: path.name)
def test_utils_import_no_script(path):
    assert not _imported(path) & SCRIPT_NAMES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_no_script(path):
    assert not _imported(path) & SCRIPT_NAMES


def test_the_tree_was_found():
    assert SCRIPTS
    assert UTILS
    assert PACKAGE
