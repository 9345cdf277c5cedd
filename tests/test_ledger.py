"""Records: what is skipped, what is done again, whose files are left alone."""

import csv
import os
import time

import pytest

from utils.errors import InputError
from utils.files.atomic import atomic_path, checked_by
from utils.preparation.ledger import CaseJob, Ledger
from utils.preparation.records import CaseFacts


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in" / "a.txt"
    path.parent.mkdir()
    path.write_text("one")
    return path


@pytest.fixture
def ledger(tmp_path, source):
    return Ledger(tmp_path / "out", "copy", [source.parent], ["*"])


def job_of(source, **changes):
    return CaseJob("CT/a", "CT", {"text": source}, **changes)


def copy(ledger, job, name="a"):
    """Do a step's work by hand: copy the source to the output ``name``."""
    entry = ledger.open(job)
    if entry.confirm():
        return "skipped"
    output = ledger.folder / name
    entry.claim([output])
    write(entry, output, job.sources["text"].read_bytes())
    entry.finish(CaseFacts((1, 2, 3), (0.5, 0.5, 2.0), {"Liver": 7}, ("2 of 3 components",)))
    return "done"


def write(entry, output, content):
    """Write an output as a step does."""
    with checked_by(entry.record_written), atomic_path(output) as temporary:
        temporary.write_bytes(content)


def settle(record):
    """Date a record as if its work had begun just now, well after the sources' last change."""
    time.sleep(0.02)
    os.utime(record)


def test_unchanged_case_is_current_without_reading_its_sources(ledger, source, monkeypatch):
    copy(ledger, job_of(source))
    settle(ledger.path_of("CT/a"))
    monkeypatch.setattr("utils.preparation.ledger.sha256_of", None)  # would raise

    assert ledger.is_current(job_of(source))


def test_touched_source_of_the_same_content_is_not_done_again(ledger, source):
    copy(ledger, job_of(source))
    written = (ledger.folder / "a").stat().st_mtime_ns
    source.touch()

    assert not ledger.is_current(job_of(source))
    assert copy(ledger, job_of(source)) == "skipped"
    assert (ledger.folder / "a").stat().st_mtime_ns == written


def test_source_replaced_by_an_older_file_of_the_same_size_is_done_again(ledger, source):
    copy(ledger, job_of(source))
    settle(ledger.path_of("CT/a"))
    began = ledger.path_of("CT/a").stat().st_mtime
    other = source.with_name("b.txt")
    other.write_text("two")
    os.utime(other, (0, 0))
    other.replace(source)
    os.utime(ledger.path_of("CT/a"), (time.time() - 1, began))  # its clock is not in the future
    os.utime(ledger.path_of("CT/a"), (time.time() - 1, time.time() - 1))

    assert not ledger.is_current(job_of(source))
    assert copy(ledger, job_of(source)) == "done"
    assert (ledger.folder / "a").read_text() == "two"


@pytest.mark.parametrize(
    "changes",
    [{"settings": {"keep": 3}}, {"dataset": "MR"}, {"sources": "one more"}],
    ids=["settings", "data set", "sources"],
)
def test_other_job_for_the_same_case_is_done_again(ledger, source, changes):
    copy(ledger, job_of(source))
    settle(ledger.path_of("CT/a"))
    fields = {"case_id": "CT/a", "dataset": "CT", "sources": {"text": source}} | changes
    if "sources" in changes:
        fields["sources"] = {"text": source, "more": source}

    assert not ledger.is_current(CaseJob(**fields))
    assert not ledger.open(CaseJob(**fields)).confirm()


@pytest.mark.parametrize("content", [None, "shorter or longer"])
def test_missing_or_cut_output_is_made_again(ledger, source, content):
    copy(ledger, job_of(source))
    settle(ledger.path_of("CT/a"))
    output = ledger.folder / "a"
    output.unlink()
    if content:
        output.write_text(content)

    assert not ledger.is_current(job_of(source))


def test_damaged_record_counts_as_none(ledger, source):
    copy(ledger, job_of(source))
    for content in ("", "[]", '{"case_id": 3}', "\0"):
        ledger.path_of("CT/a").write_text(content)
        assert ledger.read("CT/a") is None
        assert not ledger.is_current(job_of(source))


def test_file_of_another_origin_is_not_overwritten(ledger, source):
    (ledger.folder).mkdir()
    (ledger.folder / "a").write_text("mine")

    with pytest.raises(InputError, match="exists and was not written by this step for CT/a"):
        copy(ledger, job_of(source))
    assert (ledger.folder / "a").read_text() == "mine"


def test_output_that_was_edited_is_not_overwritten_by_a_newer_source(ledger, source):
    copy(ledger, job_of(source))
    (ledger.folder / "a").write_text("corrected by hand")
    source.write_text("new")

    with pytest.raises(InputError, match="was changed after this step wrote it"):
        copy(ledger, job_of(source))
    assert (ledger.folder / "a").read_text() == "corrected by hand"


def begin_and_die(ledger, job, *names):
    """Claim outputs, and stop before the first of them is written."""
    ledger.open(job).claim([ledger.folder / name for name in names])


def test_output_of_a_killed_run_is_made_again_also_from_a_newer_source(ledger, source):
    entry = ledger.open(job_of(source))
    entry.claim([ledger.folder / "a"])
    write(entry, ledger.folder / "a", b"one")
    source.write_text("new")

    assert copy(ledger, job_of(source)) == "done"
    assert (ledger.folder / "a").read_text() == "new"


def test_replaced_output_of_a_killed_run_is_known_before_and_after_it_gets_its_name(ledger, source):
    for killed_after in (False, True):
        copy(ledger, job_of(source))
        source.write_text(f"new {killed_after}")
        entry = ledger.open(job_of(source))
        entry.claim([ledger.folder / "a"])
        if killed_after:
            write(entry, ledger.folder / "a", b"half of the work")
        else:
            whole = ledger.folder / "whole"
            whole.write_bytes(b"half of the work")
            entry.record_written(whole, ledger.folder / "a")

        assert copy(ledger, job_of(source)) == "done"
        assert (ledger.folder / "a").read_text() == f"new {killed_after}"


def test_file_put_in_the_place_of_a_killed_runs_output_is_kept(ledger, source):
    begin_and_die(ledger, job_of(source), "a")
    (ledger.folder / "a").write_text("mine")

    with pytest.raises(InputError, match="nothing proves that this step wrote it"):
        copy(ledger, job_of(source))
    assert (ledger.folder / "a").read_text() == "mine"


def test_file_without_proof_that_is_what_the_case_gives_is_taken(ledger, source):
    begin_and_die(ledger, job_of(source), "a")
    (ledger.folder / "a").write_text("one")

    assert copy(ledger, job_of(source)) == "done"


def test_file_without_proof_that_the_case_no_longer_has_is_kept(ledger, source):
    begin_and_die(ledger, job_of(source), "b")
    (ledger.folder / "b").write_text("mine")

    entry = ledger.open(job_of(source))
    entry.claim([ledger.folder / "a"])
    write(entry, ledger.folder / "a", b"one")
    entry.finish(CaseFacts())

    assert (entry.removed, entry.kept) == ([], ["b"])
    assert (ledger.folder / "b").read_text() == "mine"
    assert list(ledger.read("CT/a").outputs) == ["a"]


def test_file_put_in_place_during_failed_work_is_kept(ledger, source):
    entry = ledger.open(job_of(source))
    entry.claim([ledger.folder / "a", ledger.folder / "b"])
    write(entry, ledger.folder / "a", b"one")
    (ledger.folder / "b").write_text("mine")

    ledger.fail(job_of(source), "too little memory", entry)

    assert not (ledger.folder / "a").exists()
    assert (ledger.folder / "b").read_text() == "mine"
    assert ledger.read("CT/a").outputs == {}


def test_record_from_the_future_is_not_current_by_its_time(ledger, source):
    """The clock was set back since, so the time says nothing about a change."""
    copy(ledger, job_of(source))
    settle(ledger.path_of("CT/a"))
    assert ledger.is_current(job_of(source))
    ahead = time.time() + 3600
    os.utime(ledger.path_of("CT/a"), (ahead, ahead))

    assert not ledger.is_current(job_of(source))
    assert copy(ledger, job_of(source)) == "skipped"
    assert ledger.path_of("CT/a").stat().st_mtime < time.time()


def test_change_in_place_is_seen_whatever_the_clocks_say(ledger, source):
    """A server's clock that is behind dates a change before the work that has read the file."""
    copy(ledger, job_of(source))
    settle(ledger.path_of("CT/a"))
    times = source.stat().st_atime_ns, source.stat().st_mtime_ns
    with source.open("r+") as file:
        file.write("two")
    os.utime(source, ns=times)
    settle(ledger.path_of("CT/a"))  # the record is newer than the change

    assert not ledger.is_current(job_of(source))
    assert copy(ledger, job_of(source)) == "done"


def test_output_that_a_case_no_longer_has_is_removed(ledger, source):
    copy(ledger, job_of(source), "a")
    source.write_text("new")
    copy(ledger, job_of(source), "b")

    assert not (ledger.folder / "a").exists()
    assert (ledger.folder / "b").read_text() == "new"


def test_edited_output_that_a_case_no_longer_has_is_kept(ledger, source):
    copy(ledger, job_of(source), "a")
    (ledger.folder / "a").write_text("corrected by hand")
    source.write_text("new")

    with pytest.raises(InputError, match="was changed after this step wrote it"):
        copy(ledger, job_of(source), "b")
    assert (ledger.folder / "a").read_text() == "corrected by hand"


def test_failure_keeps_the_outputs_of_an_earlier_success_and_knows_them(ledger, source):
    copy(ledger, job_of(source))
    ledger.fail(job_of(source), "unreadable")

    record = ledger.read("CT/a")
    assert (record.outcome, record.message) == ("failed", "unreadable")
    assert not ledger.is_current(job_of(source))
    assert copy(ledger, job_of(source)) == "done"


def test_manifest_is_a_table_of_all_records(ledger, source):
    copy(ledger, job_of(source))
    ledger.fail(CaseJob("CT/b, the second", "CT", {"text": source.with_name("b")}), 'a "bad" one')
    ledger.write_manifest(["CT/a", "CT/b, the second"])

    with ledger.manifest.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "case": "CT/a",
        "data_set": "CT",
        "source": "a.txt",
        "bytes": "3",
        "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        "shape_dhw": "1 2 3",
        "spacing_xyz_mm": "0.5 0.5 2",
        "classes": "Liver 7",
        "outcome": "done",
        "outputs": "a",
        "notes": "2 of 3 components",
    }
    assert second["outcome"] == 'failed: a "bad" one'
    assert second["source"] == "b"


def test_failures_of_cases_that_are_gone_are_forgotten(ledger, source):
    copy(ledger, job_of(source))
    ledger.fail(CaseJob("gone", "CT", {}), "unreadable")
    ledger.write_manifest([])

    assert ledger.read("gone") is None
    assert ledger.read("CT/a") is not None


def test_file_of_the_same_name_and_size_in_another_folder_is_done_again(ledger, source, tmp_path):
    copy(ledger, job_of(source))
    other = tmp_path / "other" / "a.txt"
    other.parent.mkdir()
    other.write_text("two")
    settle(ledger.path_of("CT/a"))
    elsewhere = Ledger(ledger.folder, "copy", [other.parent], ["*"])

    assert not elsewhere.is_current(job_of(other))
    assert copy(elsewhere, job_of(other)) == "done"
    assert (ledger.folder / "a").read_text() == "two"


def test_sources_that_were_moved_are_not_done_again(ledger, source, tmp_path):
    copy(ledger, job_of(source))
    source.parent.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "a.txt"
    ledger = Ledger(ledger.folder, "copy", [moved.parent], ["*"])

    assert copy(ledger, job_of(moved)) == "skipped"
    settle(ledger.path_of("CT/a"))
    assert ledger.is_current(job_of(moved))


def test_manifest_and_outputs_hold_no_time_and_no_folder_of_this_machine(ledger, source, tmp_path):
    copy(ledger, job_of(source))
    ledger.write_manifest([])

    assert str(tmp_path) not in ledger.manifest.read_text()
    assert list(ledger.read("CT/a").outputs) == ["a"]


def test_source_that_changed_just_before_the_work_is_read_again(ledger, source):
    """A further change within one tick of the clock would leave its times as they are."""
    copy(ledger, job_of(source))

    assert not ledger.is_current(job_of(source))
    assert copy(ledger, job_of(source)) == "skipped"
