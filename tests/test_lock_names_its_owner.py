"""The lock of a folder names its owner, and a file system without locks is said."""

import errno
import fcntl
import os
import platform
import re
import sys

import pytest

from utils.files.atomic import WriteError
from utils.files.lock import LOCK, FolderInUseError, owned


def refusal(folder):
    """Return the message of a second owner."""
    with pytest.raises(FolderInUseError) as error, owned(folder):
        pass
    return str(error.value)


def test_the_folder_is_made_with_its_parents(tmp_path):
    with owned(tmp_path / "a" / "b"):
        assert os.listdir(tmp_path / "a" / "b") == [LOCK]


def test_the_owner_is_named_with_process_machine_time_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out-dir", "run"])
    with owned(tmp_path):
        owner = (tmp_path / LOCK).read_text()
        expected = rf"process {os.getpid()} on {re.escape(platform.node())}, since "
        expected += r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(train\.py --out-dir run\)"
        assert re.fullmatch(expected, owner)
        said = refusal(tmp_path)
        assert said.startswith(f"{tmp_path}: is in use by {owner}.\n")
        assert "wait until that run has ended" in said


def test_a_shorter_owner_leaves_nothing_of_a_longer_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with owned(tmp_path):
        alone = (tmp_path / LOCK).read_text()
    (tmp_path / LOCK).write_text("process " + "x" * 500)
    with owned(tmp_path):
        assert len((tmp_path / LOCK).read_text()) == len(alone)


def test_a_long_command_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a" * 199, "b" * 500])
    with owned(tmp_path):
        assert (tmp_path / LOCK).read_text().endswith("(" + "a" * 199 + " )")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", "another process"),
        (b"\x1b[31mred", "\\x1b[31mred"),
        (b"y" * 400, "y" * 300 + "."),
        (b"\xff", "\ufffd"),
    ],
    ids=["nothing", "control character", "long", "no text"],
)
def test_any_content_of_the_lock_file_is_shown_safely(tmp_path, content, shown):
    with owned(tmp_path):
        (tmp_path / LOCK).write_bytes(content)
        said = refusal(tmp_path)
    assert f"is in use by {shown}" in said
    assert "y" * 301 not in said


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_gets_a_warning_and_the_block_runs(
    tmp_path, monkeypatch, caplog, number
):
    def unsupported(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with owned(tmp_path):
        ran = True
    assert ran
    assert f"{tmp_path}: this file system has no locks" in caplog.text


def test_another_error_of_the_lock_is_an_error(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(WriteError, match=rf"{LOCK}: cannot be written .*broken"), owned(tmp_path):
        pass
