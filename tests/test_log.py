"""What scripts print and log: no text from a file can act on a terminal or forge an entry."""

import argparse
import csv
import logging
import subprocess
import sys

import pytest
from preparation_helpers import ROOT

from utils.preparation.check_tree import Kind, TreeFault, TreeReport
from utils.results.csv_table import csv_bytes, write_csv
from utils.run.log import as_entry, start_log

EVIL = "a\x1b[2Jb\n12:00:00 all is well\r\x85\u2028\u202ec"


@pytest.fixture
def own_logging():
    """Give the test the root logger, and put back its handlers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = handlers, level


def test_entry_is_printable_and_its_further_lines_are_indented():
    shown = as_entry(EVIL)
    first, second = shown.split("\n")
    assert first.isprintable()
    assert second.startswith("  12:00:00 all is well\\r\\x85\\u2028\\u202ec")


def test_log_file_holds_one_unindented_line_an_entry(tmp_path, own_logging):
    handler = logging.FileHandler(tmp_path / "run.log", encoding="utf-8")
    start_log(format="%(message)s", more=[handler])
    logging.getLogger("a").info("%s: %s", EVIL, EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("b").exception("failed")

    text = (tmp_path / "run.log").read_text("utf-8")
    assert text.replace("\n", "").isprintable()
    assert [line[:1] for line in text.split("\n") if line[:1] != " "] == ["a", "f", ""]
    assert "ValueError: a\\x1b[2Jb" in text


def test_a_run_logs_so_to_its_file_and_to_the_terminal(tmp_path, own_logging, capfd):
    from utils.run.start import start_run

    start_run(argparse.Namespace(seed=0), tmp_path)
    logging.getLogger("a").warning("%s", EVIL)

    for text in ((tmp_path / "run.log").read_text("utf-8"), capfd.readouterr().err):
        assert text.replace("\n", "").isprintable()
        assert len([line for line in text.splitlines() if not line.startswith("  ")]) == 1


def test_warning_of_a_worker_process_is_printable():
    code = (
        "import logging\n"
        "from utils.run.executor import run_all\n"
        "def work(text): logging.getLogger('a').warning('%s', text)\n"
        "list(run_all(work, ['a\\x1b[2J\\nb'] * 2, workers=2))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stderr == "a\\x1b[2J\n  b\n" * 2


def test_check_of_a_tree_prints_a_line_for_each_fault(tmp_path):
    fault = TreeFault(Kind.STRAY, tmp_path / EVIL, "out of place")
    shown = str(TreeReport(tmp_path, [fault], {})).splitlines()
    lines = [line for line in shown if "out of place" in line]
    assert len(lines) == 1
    assert lines[0].startswith("stray")
    assert all(line.isprintable() for line in shown)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff20"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path, start):
    text = f"{start}cmd|'/c calc'!A1"
    write_csv(tmp_path / "t.csv", [{"name": text, start: -1.5}], digits=3)

    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        header, (name, number) = csv.reader(file)
    assert name == f"'{text}"
    assert header == ["name", f"'{start}"]
    assert number == "-1.500"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_text_after_a_separator_of_some_spreadsheets_gets_one_too(separator):
    table = csv_bytes(["a"], [{"a": f"b{separator}=1+1"}])

    assert table.decode().splitlines()[1] == f"b{separator}'=1+1"


@pytest.mark.parametrize("value", ["a=b", " =1", "1-2", "é", "", "liver; -1"])
def test_other_text_stays_as_it_is(value):
    assert csv_bytes(["a"], [{"a": value}]).decode().splitlines()[1].strip('"') == value


def test_numbers_stay_numbers():
    table = csv_bytes(["a", "b", "c"], [{"a": -3, "b": -0.25, "c": None}], digits=2)
    assert table == b"a,b,c\n-3,-0.25,\n"
    assert csv_bytes(["a"], [{"a": -0.1}]) == b"a\n-0.1\n"
