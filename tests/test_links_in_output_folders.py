"""Logs and locks never write through a link: a hostile folder leads them to a user's file."""

import os
import subprocess
import sys

import pytest
from preparation_helpers import ROOT

from utils.errors import InputError
from utils.files.append import open_append
from utils.files.lock import owned

LINKS = {"symbolic": os.symlink, "hard": os.link}


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("link", LINKS)
def test_lock_that_is_a_link_is_refused(tmp_path, mine, link):
    (tmp_path / "run").mkdir()
    LINKS[link](mine, tmp_path / "run/.lock")

    with pytest.raises(InputError, match=r"\.lock: is a link"), owned(tmp_path / "run"):
        pass

    assert mine.read_text() == "mine"


def test_lock_of_another_program_is_kept(tmp_path):
    (tmp_path / ".lock").write_text("pid 7")

    with pytest.raises(InputError, match=r"\.lock: .*another origin"), owned(tmp_path):
        pass

    assert (tmp_path / ".lock").read_text() == "pid 7"


def test_lock_of_a_killed_run_is_replaced(tmp_path):
    code = "import os; from pathlib import Path; from utils.files.lock import owned\n"
    code += f"with owned(Path({str(tmp_path)!r})): os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert (tmp_path / ".lock").read_text().startswith("process ")

    with owned(tmp_path):
        pass


@pytest.mark.parametrize("link", LINKS)
def test_log_that_is_a_link_is_refused(tmp_path, mine, link):
    LINKS[link](mine, tmp_path / "run.log")

    with pytest.raises(InputError, match=r"run\.log: is a link"):
        open_append(tmp_path / "run.log")

    assert mine.read_text() == "mine"


def test_log_that_leads_to_no_file_makes_none(tmp_path):
    (tmp_path / "run.log").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(InputError, match=r"run\.log: is a link"):
        open_append(tmp_path / "run.log")

    assert not (tmp_path / "elsewhere").exists()


def test_log_is_appended_to(tmp_path):
    for line in ("a\n", "é\n"):
        with open_append(tmp_path / "run.log") as file:
            file.write(line)

    assert (tmp_path / "run.log").read_text("utf-8") == "a\né\n"
