"""What may import what: scripts -> utils, in the order below -> segment_anything -> torch."""

import ast
import subprocess
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

#: The packages ("wings") of utils/ in import order. A module imports from its own package and from
#: lines above its own; packages on one line do not import each other.
ORDER = (
    ("errors", "data_paths"),
    ("volumes",),
    ("files",),
    ("run",),
    ("prompts",),
    ("cases",),
    ("results",),
    ("preparation", "training", "prediction"),
    ("validation", "serving"),
)
RANK = {wing: rank for rank, wings in enumerate(ORDER) for wing in wings}
USES_NETWORKS = {"run", "training", "prediction", "validation", "serving"}
NO_TORCH = ("volumes", "files", "prompts", "cases", "results", "preparation")


def imports_of(tree: ast.AST, *, at_import: bool = False) -> set[str]:
    """Return the modules that code imports, by full name: ``from utils.run import flags`` is two.

    Args:
        at_import: leave out what is imported inside of functions, and for type checkers.
    """
    found = set()
    for node in _executed(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _executed(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        is_later = isinstance(node, (ast.FunctionDef, ast.Lambda))
        if is_later or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            continue
        yield node
        yield from _executed(node)


def read(path: Path) -> ast.AST:
    return ast.parse(path.read_text())


def top_names(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(read(path))}


def wing_of(module: str) -> str:
    """Return ``volumes`` for ``utils.volumes.geometry``."""
    return module.split(".")[1]


def wrong_arrows(module: str, tree: ast.AST) -> list[str]:
    """Return the imports of a module of utils/ that the order forbids."""
    own = wing_of(module)
    imported = imports_of(tree)
    wings = {wing_of(name) for name in imported if name.startswith("utils.")}
    wrong = [wing for wing in sorted(wings - {own}) if RANK[wing] >= RANK[own]]
    if own not in USES_NETWORKS and any(n.split(".")[0] == "segment_anything" for n in imported):
        wrong.append("segment_anything")
    return wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def reached_at_import(module: str) -> set[str]:
    """Return the modules of this project that importing a module imports, and foreign names."""
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        path = ROOT / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path.is_file():
            waiting += imports_of(read(path), at_import=True)
    return reached


@pytest.mark.parametrize("path", PACKAGE, ids=module_name)
def test_segment_anything_imports_torch_and_itself(path):
    assert top_names(path) <= PACKAGE_MAY_IMPORT


@pytest.mark.parametrize("path", [*UTILS, *SCRIPTS], ids=module_name)
def test_nothing_imports_a_script(path):
    assert not top_names(path) & SCRIPT_NAMES


@pytest.mark.parametrize("path", UTILS, ids=module_name)
def test_wings_import_only_what_stands_above_them(path):
    if path.parent == ROOT / "utils" and path.stem == "__init__":
        return
    assert wrong_arrows(module_name(path), read(path)) == []


@pytest.mark.parametrize(
    ("module", "code", "wrong"),
    [
        ("utils.files.npz", "from utils.cases.prepared import find_cases", ["cases"]),
        ("utils.files.npz", "def f():\n    import utils.run.flags", ["run"]),
        ("utils.files.npz", "from utils import prompts", ["prompts"]),
        ("utils.training.trainer", "from utils.prediction.region import Scene", ["prediction"]),
        ("utils.validation.run", "import utils.serving.server", ["serving"]),
        ("utils.results.metrics", "from segment_anything import Sam3D", ["segment_anything"]),
        ("utils.training.trainer", "from segment_anything import Sam3D", []),
        ("utils.cases.prepared", "from utils.files.npz import read_npz", []),
        ("utils.cases.prepared", "from utils.cases.label_table import is_ct", []),
    ],
)
def test_an_arrow_that_is_turned_round_is_found(module, code, wrong):
    assert wrong_arrows(module, ast.parse(code)) == wrong


def test_every_wing_has_its_place_and_says_in_one_sentence_what_it_is():
    wings = {path.name for path in (ROOT / "utils").iterdir() if (path / "__init__.py").is_file()}
    assert wings <= RANK.keys()
    for wing in wings:
        sentence, *rest = read(ROOT / "utils" / wing / "__init__.py").body
        assert [node.name for node in rest] == (["__getattr__"] if wing == "serving" else [])
        assert isinstance(sentence.value.value, str)
        assert sentence.value.value.endswith(".")


@pytest.mark.parametrize("wing", NO_TORCH)
def test_a_wing_without_torch_reaches_no_torch_by_its_imports(wing):
    for path in sorted((ROOT / "utils" / wing).glob("*.py")):
        foreign = {name.split(".")[0] for name in reached_at_import(module_name(path))}
        assert not foreign & {"torch", "segment_anything"}, path


def test_wings_and_scripts_without_torch_run_where_there_is_none():
    paths = [path for wing in NO_TORCH for path in sorted((ROOT / "utils" / wing).glob("*.py"))]
    names = [*map(module_name, paths), "classify", "categorize", "reallocate"]
    imports = "; ".join(f"import {name}" for name in names)
    code = f"import sys; sys.modules['torch'] = None; {imports}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_tree_was_found():
    assert SCRIPTS
    assert UTILS
    assert PACKAGE
