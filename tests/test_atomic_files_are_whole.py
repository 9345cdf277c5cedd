"""Files appear whole or not at all, and only what a dead process left half-written is removed."""

import os
import subprocess
import sys
import time
from collections import namedtuple

import pytest

from utils.files.atomic import (
    ABANDONED_SECONDS,
    WriteError,
    atomic_path,
    is_abandoned,
    make_folder,
    remove_abandoned,
)

DAY = 24 * 3600
Usage = namedtuple("Usage", "free")


@pytest.fixture
def temporary(tmp_path):
    """The temporary path of a file that this process is writing."""
    with atomic_path(tmp_path / "a.nii.gz") as path:
        path.write_text("half")
        yield path


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def named(path, *, machine=None, process=None):
    """Return a temporary file like ``path``, of another machine or process; it exists."""
    _, where, who, *rest = path.name.split("-")
    where, who = machine or where, who if process is None else f"{process:x}"
    other = path.with_name("-".join((".tmp", where, who, *rest)))
    other.write_text("half")
    return other


def test_a_file_appears_with_its_folders_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_temporary_name_is_no_finished_files_name_but_has_its_suffixes(temporary):
    assert temporary.name.startswith(".tmp-")
    assert temporary.name.endswith("-a.nii.gz")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_block_that_fails_leaves_the_file_that_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("before")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error("full")

    with pytest.raises(WriteError if error is OSError else error, match="full"):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a"]


def test_what_cannot_be_written_is_named_with_the_room_in_its_nearest_folder(tmp_path):
    (tmp_path / "file").touch()
    found = rf"{tmp_path}/file/b/a: cannot be written \(.*[1-9][\d,]* MiB are free in {tmp_path}\)"
    with (
        pytest.raises(WriteError, match=f"(?s){found}"),
        atomic_path(tmp_path / "file" / "b" / "a"),
    ):
        pass


def test_a_folder_that_takes_no_files_is_named(tmp_path, monkeypatch):
    def refused(**where):
        raise PermissionError(f"no file in {where['dir']}")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(WriteError, match=f"{tmp_path}: cannot be written .no file in {tmp_path}"):
        make_folder(tmp_path)


def test_a_file_that_a_living_process_writes_is_not_abandoned(temporary):
    assert not is_abandoned(temporary)


def test_a_file_of_a_process_that_has_ended_is_abandoned(temporary, dead):
    assert is_abandoned(named(temporary, process=dead))


def test_a_file_of_another_machine_is_abandoned_once_it_is_a_day_old(temporary, dead):
    foreign = named(temporary, machine="0123abcd", process=dead)
    assert not is_abandoned(foreign)
    for age, abandoned in ((0.9 * DAY, False), (1.1 * DAY, True)):
        then = time.time() - age
        os.utime(foreign, (then, then))
        assert is_abandoned(foreign) == abandoned
    assert ABANDONED_SECONDS == DAY


def test_a_file_of_this_machine_may_be_old(temporary):
    os.utime(temporary, (0, 0))
    assert not is_abandoned(temporary)


def test_a_process_of_another_user_is_a_living_one(temporary, monkeypatch):
    def refused(process, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert not is_abandoned(temporary)


@pytest.mark.parametrize("name", [".tmp-notes", ".tmp-1-2-3-a", "a.txt"])
def test_a_file_of_another_name_is_never_abandoned(tmp_path, name):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    assert not is_abandoned(tmp_path / name)


def test_only_abandoned_files_are_removed_at_any_depth(tmp_path, temporary, dead):
    deep = tmp_path / "a" / "b" / named(temporary, process=dead).name
    deep.parent.mkdir(parents=True)
    (tmp_path / deep.name).rename(deep)
    named(temporary, process=dead)
    kept = {tmp_path / ".tmp-notes", deep.parent / "finished.txt", temporary}
    for path in kept:
        path.touch()

    remove_abandoned(tmp_path)

    assert {path for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_the_room_that_is_left_is_said_in_mib(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(5 * 2**30 + 2**19))
    with pytest.raises(WriteError, match=r"\(5,120 MiB are free in "), atomic_path(tmp_path / "a"):
        raise OSError("full")
