"""What the page takes from npm is pinned: exact versions, one hash each, from one registry."""

import json
import os
import re

import pytest

from utils.errors import InputError
from utils.serving import fetch_page

FOLDER = fetch_page.NPM
PACKAGE = json.loads((FOLDER / "package.json").read_text())
LOCK = json.loads((FOLDER / "package-lock.json").read_text())
LOCKED = {path: entry for path, entry in LOCK["packages"].items() if path}


def test_the_lock_file_is_of_this_package():
    assert LOCK["lockfileVersion"] == 3
    assert LOCK["packages"][""]["dependencies"] == PACKAGE["dependencies"]


def test_what_we_ask_for_has_an_exact_version():
    assert PACKAGE["dependencies"] == {"@niivue/niivue": "0.69.0"}
    for name, version in PACKAGE["dependencies"].items():
        assert LOCKED[f"node_modules/{name}"]["version"] == version


@pytest.mark.parametrize("path", LOCKED)
def test_a_locked_package_has_a_version_a_hash_and_a_source(path):
    entry = LOCKED[path]
    assert re.fullmatch(r"\d+\.\d+\.\d+", entry["version"])
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", entry["integrity"])
    assert entry["resolved"].startswith("https://registry.npmjs.org/")
    assert entry["resolved"].endswith(f"-{entry['version']}.tgz")
    assert "hasInstallScript" not in entry


def test_the_lock_file_holds_all_that_its_packages_need():
    needed = {name for entry in LOCK["packages"].values() for name in entry.get("dependencies", ())}
    assert len(needed) > 5
    assert {f"node_modules/{name}" for name in needed} - LOCKED.keys() == set()


def test_nothing_fetched_is_committed():
    ignored = (FOLDER.parents[2] / ".gitignore").read_text().splitlines()
    assert {"/utils/serving/npm/node_modules/", "/utils/serving/page/vendor/"} <= set(ignored)


def npm_that(folder, monkeypatch, script):
    """Put a program npm in front of the others."""
    path = folder / "bin" / "npm"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_the_viewer_is_the_file_of_the_lock_files_package(tmp_path, monkeypatch):
    file = fetch_page.NIIVUE
    command = f'echo "$@" > said && mkdir -p {file.parent} && echo viewer > {file}'
    npm_that(tmp_path, monkeypatch, command)
    path = fetch_page.fetch(tmp_path, tmp_path / "vendor")
    assert path.read_text() == "viewer\n"
    words = (tmp_path / "said").read_text().split()
    assert words[0] == "ci"  # and not install, which changes the lock file
    assert "--ignore-scripts" in words


def test_a_viewer_stays_as_it_is_where_npm_fails(tmp_path, monkeypatch):
    (tmp_path / "niivue.js").write_text("earlier")
    npm_that(tmp_path, monkeypatch, "exit 7")
    with pytest.raises(InputError, match="exit code 7"):
        fetch_page.fetch(tmp_path, tmp_path)
    assert (tmp_path / "niivue.js").read_text() == "earlier"


def test_a_machine_without_npm_is_told_what_to_type(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(fetch_page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="make page"):
        fetch_page.npm_command()
