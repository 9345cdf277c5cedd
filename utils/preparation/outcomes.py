"""Outcomes of cases: they are counted and printed, and tracebacks are kept."""

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError, is_out_of_memory, printable
from utils.files.append import open_append
from utils.files.atomic import WriteError, unwritable
from utils.preparation.entry import CaseJob
from utils.preparation.ledger import Ledger
from utils.preparation.records import shortened
from utils.run.log import as_entry

TRACES = "defects.log"  # beside the records


@dataclass
class PrepareSummary:
    """The number of cases per outcome; as text, the last line that a script prints."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # a message for each failed case
    dropped: list[str] = field(default_factory=list)  # a message for each cleaned case
    plan: str = ""  # what a dry run would do; empty otherwise

    @property
    def exit_code(self) -> int:
        """1 if any case failed."""
        return 1 if self.failures else 0

    def __str__(self) -> str:
        if self.plan:
            return printable(self.plan)
        return f"done {self.done}, skipped {self.skipped}, failed {len(self.failures)}"


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    job: CaseJob
    kind: str  # "done", "skipped", "failed" or "unwritable"
    message: str = ""
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    trace: str = ""  # of a defect of this program


def add_outcome(records: Path, summary: PrepareSummary, outcome: Outcome) -> None:
    """Count an outcome and print its messages; raise `WriteError` for an unwritable output."""
    if outcome.kind == "unwritable":
        raise WriteError(outcome.message)
    if outcome.trace:
        _keep_trace(records / TRACES, outcome)
    if outcome.kind == "failed":
        report_failure(summary, outcome.message)
    summary.done += outcome.kind == "done"
    summary.skipped += outcome.kind == "skipped"
    if outcome.notes:
        summary.dropped.append(f"{outcome.job.case_id}: {shortened(outcome.notes)}")
        print_entry(f"DROPPED {summary.dropped[-1]}")
    if outcome.remarks:
        print_entry(f"NOTE {outcome.job.case_id}: {shortened(outcome.remarks)}")
    print_removed(outcome.job.case_id, outcome.removed, outcome.kept)


def print_removed(case_id: str, removed: Sequence[str], kept: Sequence[str]) -> None:
    """Print which outputs a case no longer has: those removed, and those kept."""
    if removed:
        print_entry(f"REMOVED {case_id}: {shortened(removed)}")
    if kept:
        print_entry(
            f"KEPT {case_id}: {shortened(kept)}: no longer outputs of the case, and not as this "
            "step wrote them"
        )


def _keep_trace(path: Path, outcome: Outcome) -> None:
    """Add the traceback of a defect to the step's log of defects."""
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    text = as_entry(f"{began} {outcome.job.case_id}\n{outcome.trace}")
    try:
        with open_append(path) as file:
            file.write(f"{text}\n")
    except WriteError:
        raise
    except InputError as error:
        print_entry(str(error))
    except OSError as error:
        raise unwritable(path, error) from error


def message_and_trace(error: Exception) -> tuple[str, str]:
    """Return an error of a case as a message, and the traceback if it is a defect of ours."""
    if is_out_of_memory(error):
        return (
            f"there is too little memory ({error or type(error).__name__}). Expected enough for a "
            "case in each worker: run again with a smaller --workers.",
            "",
        )
    if isinstance(error, InputError | OSError):
        return str(error) or type(error).__name__, ""
    first = next(iter(str(error).splitlines()), "")
    trace = "".join(traceback.format_exception(error))
    return f"a defect of this program, {type(error).__name__}: {first[:200]}", trace


def report_failure(summary: PrepareSummary, message: str) -> None:
    """Count a failed case, and print its message."""
    summary.failures.append(message)
    print_entry(f"FAILED {message}")


def print_entry(line: str) -> None:
    """Print an entry: above the progress bar on a terminal, alone in a log."""
    line = as_entry(line)
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def print_refused(ledger: Ledger) -> None:
    """Print each record that counts as none, once."""
    for path, reason in ledger.refused.items():
        if reason:
            print_entry(f"NOTE {path}: counts as no record: {reason}")
            ledger.refused[path] = ""
