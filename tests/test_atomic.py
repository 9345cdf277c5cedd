"""Files appear whole or not at all, and nothing of the user's is touched on the way."""

import multiprocessing
import os

import pytest

from utils.files.atomic import WriteError, atomic_path, make_folder, remove_abandoned


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_often(folder, times, failures):
    for _ in range(times):
        try:
            make_folder(folder)
        except Exception as error:
            failures.put(repr(error))
            return
    failures.put(None)


def test_making_a_folder_leaves_all_files_in_it(tmp_path):
    for name in ("probe", ".tmp-probe", "new"):
        (tmp_path / name).write_text(name)
    before = contents(tmp_path)

    make_folder(tmp_path)

    assert contents(tmp_path) == before


def test_a_folder_is_made_with_its_parents(tmp_path):
    make_folder(tmp_path / "a/b")

    assert list((tmp_path / "a/b").iterdir()) == []


def test_processes_that_make_one_folder_at_once_all_succeed(tmp_path):
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [
        context.Process(target=make_often, args=(tmp_path / "out", 300, failures)) for _ in range(4)
    ]
    for process in processes:
        process.start()

    assert [failures.get(timeout=60) for _ in processes] == [None] * 4
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_where_the_folder_should_be_is_an_error_and_stays(tmp_path):
    (tmp_path / "out").write_text("mine")

    with pytest.raises(WriteError, match="out: cannot be written"):
        make_folder(tmp_path / "out")

    assert (tmp_path / "out").read_text() == "mine"


def test_two_writers_of_one_path_have_two_temporary_files(tmp_path):
    with atomic_path(tmp_path / "a.txt") as first, atomic_path(tmp_path / "a.txt") as second:
        first.write_text("first")
        second.write_text("second")

    assert contents(tmp_path) == {"a.txt": b"first"}


def write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    with pytest.raises(ValueError, match="stop"):
        write_half(tmp_path / "a.txt")

    assert contents(tmp_path) == {"a.txt": b"old"}


def test_only_half_written_files_of_ended_processes_are_removed(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        ended = temporary.name.replace(f"-{os.getpid():x}-", f"-{process.pid:x}-")
        (tmp_path / ended).write_text("half")
        (tmp_path / ".tmp-notes.txt").write_text("of the user")

        remove_abandoned(tmp_path)

        assert set(contents(tmp_path)) == {temporary.name, ".tmp-notes.txt"}


def test_links_and_folders_are_not_followed_out_of_the_folder_when_removing(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    half = tmp_path / "elsewhere/.tmp-00000000-1-00000000-a"
    half.write_text("half")
    os.utime(half, (0, 0))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to("../elsewhere")

    remove_abandoned(tmp_path / "tree")

    assert half.exists()
