"""The work on one case: what it may write, what it has written, and the record of it."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import InputError
from utils.files.names import require_inside
from utils.preparation.file_states import fingerprint_of, pairs_of
from utils.preparation.records import BEGUN, DONE, CaseFacts, Record, SourceFacts

if TYPE_CHECKING:
    from utils.preparation.ledger import Ledger

OUTSIDE = (
    "Expected outputs in this folder: nothing was written; move the link's target in its place."
)


@dataclass(frozen=True)
class CaseJob:
    """One case to work on."""

    case_id: str  # unique in the step
    dataset: str
    sources: dict[str, Path]  # role -> input file; the first is the main one
    settings: dict = field(default_factory=dict)  # the outputs depend on them; JSON values only
    problem: str = ""  # error message if the job could not be planned; else empty
    trace: str = ""  # traceback of that error if it is a defect of this program


class Entry:
    """The record of one case during the work on it.

    Attributes:
        removed: names of outputs that the case no longer has.
        kept: those of them that are kept, since nothing proves that this step wrote them.
    """

    def __init__(
        self, ledger: "Ledger", job: CaseJob, sources: dict[str, SourceFacts], began_ns: int
    ) -> None:
        self.ledger, self.job, self.sources, self._began = ledger, job, sources, began_ns
        self._old = ledger.read(job.case_id)
        self._old_outputs = self._old.outputs if self._old else {}
        self._claimed: dict[str, list[int] | None] = {}  # name -> states, as in a record
        self._written: dict[str, list[int]] = {}  # name -> state
        self._states: dict[tuple[int, ...], list[int]] = {}  # by file: hard links are read once
        self.removed: list[str] = []
        self.kept: list[str] = []

    def confirm(self) -> bool:
        """Tell whether the sources have the recorded SHA-256; if so, update times and places."""
        old = self._old
        same = old is not None and self.ledger.matches(old, self.job)
        if not same or not self.ledger.outputs_there(old):
            return False
        if self._hashes(old.sources) != self._hashes():
            return False
        self.ledger.write(replace(old, sources=self.sources), self._began)
        return True

    def claim(self, outputs: Iterable[Path]) -> None:
        """Record which files are going to be written, before the first of them is.

        Raises:
            InputError: one of them exists and was not written by this step, or was changed since.
        """
        outputs = list(outputs)
        if len({os.path.realpath(path) for path in outputs}) < len(outputs):
            raise InputError(
                f"{outputs[0]}: two outputs of {self.job.case_id} would be one file. Expected a "
                "folder for each organ: remove the link from one organ's folder to another's."
            )
        names = [path.relative_to(self.ledger.folder).as_posix() for path in outputs]
        states = {name: self._require_ours(name) for name in (*names, *self._old_outputs)}
        self._claimed = {name: states[name] for name in names}
        self._write(BEGUN, {**self._old_outputs, **self._claimed}, {})

    def record_written(self, temporary: Path, path: Path) -> None:
        """Record the state of a claimed output that is complete and still has its temporary name.

        Raises:
            InputError: a file is in its place that was not written by this step.
        """
        if not path.is_relative_to(self.ledger.folder):
            return
        name = path.relative_to(self.ledger.folder).as_posix()
        if name not in self._claimed:
            return
        state, before = self._state_of(temporary), self._claimed[name]
        if os.path.lexists(path) and before is None and fingerprint_of(path) != state:
            raise InputError(
                f"{path}: exists, and nothing proves that this step wrote it before an earlier "
                "run was killed. Expected no file of another origin: nothing was "
                "overwritten; move it away, then run again."
            )
        self._written[name] = state
        self._claimed[name] = state if before in (None, state) else before + state
        self._write(BEGUN, {**self._old_outputs, **self._claimed}, {})

    def drop(self, output: Path) -> None:
        """Remove the claim of a file that will not be written."""
        del self._claimed[output.relative_to(self.ledger.folder).as_posix()]

    def finish(self, found: CaseFacts) -> None:
        """Record that the case is done, and remove outputs that it no longer has."""
        outputs = {
            name: self._written.get(name) or self._state_of(self.ledger.folder / name)
            for name in self._claimed
        }
        gone = {name: old for name, old in self._old_outputs.items() if name not in outputs}
        self.removed, self.kept = self.ledger.remove(gone)
        self._write(DONE, outputs, asdict(found))

    def outputs_after_failure(self) -> dict[str, list[int] | None]:
        """Remove stale outputs of failed work; return the remaining ones with their states."""
        known = {**self._old_outputs, **self._claimed}
        ours = {name: state for name, state in known.items() if self.ledger.is_ours(name, state)}
        same_content = self._old is not None and self._hashes(self._old.sources) == self._hashes()
        if not same_content:
            removed, _ = self.ledger.remove(ours)
            self.removed += removed
            known = {name: state for name, state in known.items() if name not in removed}
        return {
            name: state
            for name, state in sorted(known.items())
            if os.path.lexists(self.ledger.folder / name) and (state or name in self._old_outputs)
        }

    def _hashes(self, sources: dict[str, SourceFacts] | None = None) -> dict[str, str | None]:
        sources = self.sources if sources is None else sources
        return {role: source.get("sha256") for role, source in sources.items()}

    def _state_of(self, path: Path) -> list[int]:
        status = path.stat()
        file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        state = self._states[file] = self._states.get(file) or fingerprint_of(path)
        return state

    def _write(self, outcome: str, outputs: dict[str, list[int] | None], found: dict) -> None:
        job, ledger = self.job, self.ledger
        record = Record(
            *(job.case_id, job.dataset, outcome, self.sources, job.settings, outputs),
            found=found,
        )
        ledger.write(record, self._began)

    def _require_ours(self, name: str) -> list[int] | None:
        """Return the state of an output that may be replaced; None if no state is recorded."""
        path, known = self.ledger.folder / name, self._old_outputs.get(name)
        require_inside(path, self.ledger.folder, OUTSIDE)
        if not os.path.lexists(path) or (name in self._old_outputs and known is None):
            return None
        if known is None:
            raise InputError(
                f"{path}: exists and was not written by this step for {self.job.case_id}. "
                "Expected no file of another origin: nothing was overwritten; move it away, or "
                "choose another output folder."
            )
        state = fingerprint_of(path)
        if state not in pairs_of(known):
            raise InputError(
                f"{path}: was changed after this step wrote it, and its source has changed too. "
                "Expected at most one change: nothing was overwritten; move the file away, then "
                "run again."
            )
        return state
