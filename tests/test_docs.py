"""What the documentation names exists, and its picture can be drawn."""

import importlib.util
import pkgutil
import re
import sys
from pathlib import Path

import matplotlib.image
import pytest
from small_networks import save_student

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`((?:\w+\.){1,4}\w+)`", ARCHITECTURE)))
NAMES = [name for name in NAMES if not name.endswith((".py", ".md"))]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "weights/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_architecture_names_exists(name):
    pkgutil.resolve_name(name)


def test_the_five_ways_are_found():
    ways = re.split(r"^## ", ARCHITECTURE, flags=re.M)[2:]
    assert len(ways) == 5
    assert all(len(re.findall(r"^\d\. .*`\w+\.", way, flags=re.M)) >= 5 for way in ways)


def test_a_click_passes_eight_files_at_most_before_the_first_layer():
    way = ARCHITECTURE.split("## A click becomes a mask")[1].split("The first network layer")[0]
    way = way.split("and calls")[1]  # reading the input is no part of it
    names = re.findall(r"`((?:\w+\.){1,4}\w+)`", way)
    files = {sys.modules[_owner(name).__module__].__file__ for name in names}
    assert 5 <= len(files) <= 8


def _owner(name: str):
    found = pkgutil.resolve_name(name)
    return found.fget if isinstance(found, property) else found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_links_or_names_exist(page):
    text = page.read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    missing = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(r"\b(?:utils|segment_anything|benchmarks|tests)/[\w/]+\.(?:py|npz)\b", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_tests_that_a_page_names_exist():
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs/reliability.md").read_text())
    texts = {file: (ROOT / "tests" / file).read_text() for file, _ in named}
    missing = [(file, test) for file, test in named if f"def {test}" not in texts[file]]
    assert len(named) > 50
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_a_page_runs_exist(page):
    for name in re.findall(r"python -m ((?:utils|segment_anything)[\w.]+)", page.read_text()):
        assert importlib.util.find_spec(name), name


def test_the_readmes_picture_is_drawn(tmp_path):
    path = ROOT / "docs" / "draw_overview.py"
    spec = importlib.util.spec_from_file_location("draw_overview", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    checkpoint = save_student(tmp_path / "student.pth")
    flags = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "overview.png")]
    flags += ["--clicks", "1"]
    drawn = module.run(module.parse_args(flags))
    height, width = matplotlib.image.imread(drawn).shape[:2]
    assert (width, height) > (800, 600)
