"""The ledger of a preparation step: one record per case, and the manifest made of all records.

Each case has a record, a small JSON file in ``<output folder>/.records/<step>/``: its sources with
size and SHA-256, the settings, the facts (shape, spacing, classes), the outputs with size and
CRC-32, and the outcome. A record depends only on the inputs, their places and the settings. So a
run that was interrupted and resumed, or several shards, leave the same records as one run (except
for the inodes of sources that an earlier step wrote). ``manifest_<step>.csv`` is the table of all
records.

A case is *current*, and skipped, if its record has the same sources and settings, its outputs exist
with the recorded sizes, and no source was modified, replaced or moved in since shortly before the
work on the record began. This test does not read the sources. If it fails, the case is still
current if the sources have the recorded SHA-256.

Before the first output of a case is written, its record gets the outcome "begun" and lists all
outputs. So even after a kill the records list every file of the tree that this step wrote. A file
that is not listed, or was changed since it was written, is never overwritten or removed.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from isal import isal_zlib

from utils.errors import InputError
from utils.files.atomic import WriteError, atomic_path
from utils.files.safe_read import open_regular, reading
from utils.preparation.records import BEGUN, DONE, FAILED, CaseFacts, Record, table_of

RECORDS = ".records"
CLOCK_MARGIN_NS = 2 * 10**9  # clocks of file systems are coarse, and those of servers differ
BLOCK = 2**20


@dataclass(frozen=True)
class CaseJob:
    """One case to work on."""

    case_id: str  # unique in the step
    dataset: str
    sources: dict[str, Path]  # role -> input file; the first is the main one
    settings: dict = field(default_factory=dict)  # the outputs depend on them; JSON values only
    problem: str = ""  # error message if the job could not be planned; else empty


class Ledger:
    """The records of one step in one output folder.

    Args:
        folder: the step's output folder.
        step: name of the step.
        roots: folders that the sources' paths are recorded relative to.
        datasets: data sets whose cases are all in this run; None: all data sets.
    """

    def __init__(
        self,
        folder: Path,
        step: str,
        roots: Iterable[Path],
        datasets: Iterable[str] | None = None,
    ) -> None:
        self.folder, self.step = Path(folder), step
        self.datasets = None if datasets is None else set(datasets)
        self.roots = [Path(root) for root in roots]
        self.records = self.folder / RECORDS / step

    @property
    def manifest(self) -> Path:
        """The table of all records."""
        return self.folder / f"manifest_{self.step}.csv"

    def read(self, case_id: str) -> Record | None:
        """Return the record of a case; None if it is missing or unreadable."""
        try:
            record = Record(**json.loads(self.path_of(case_id).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        tables = (record.sources, record.settings, record.outputs, record.found)
        inner = record.sources.values() if isinstance(record.sources, dict) else [None]
        return record if all(isinstance(table, dict) for table in (*tables, *inner)) else None

    def is_current(self, job: CaseJob) -> bool:
        """Tell whether a case is done, from its record and the sizes and times of its files."""
        record = self.read(job.case_id)
        if record is None or not self.matches(record, job) or not self.outputs_there(record):
            return False
        return self.are_untouched(record, job.sources)

    def are_untouched(self, record: Record, sources: dict[str, Path]) -> bool:
        """Tell whether sources are unchanged since their record, from sizes, times and places."""
        try:
            began = self.path_of(record.case_id).stat().st_mtime_ns
            for role, path in sources.items():
                status, known = path.stat(), record.sources.get(role, {})
                found = {"bytes": status.st_size, **_identity_of(path, status)}
                touched_ns = max(status.st_mtime_ns, status.st_ctime_ns)
                if found != {key: known.get(key) for key in found} or touched_ns >= began:
                    return False
        except OSError:
            return False
        return True

    def open(self, job: CaseJob) -> "Entry":
        """Hash the sources of a case that is not current; return its entry."""
        began = time.time_ns() - CLOCK_MARGIN_NS
        sources = {}
        for role, path in job.sources.items():
            size, sha256 = _sha256_of(path)
            sources[role] = {**self._place_of(path), "bytes": size, "sha256": sha256}
        return Entry(self, job, sources, began)

    def write(self, record: Record, began_ns: int) -> None:
        """Write a record; the time of its file is ``began_ns``, when reading the sources began."""
        content = json.dumps(asdict(record))  # in ASCII: a folder's name may not be UTF-8
        with atomic_path(self.path_of(record.case_id)) as temporary:
            temporary.write_text(content + "\n", "ascii")
            os.utime(temporary, ns=(began_ns, began_ns))

    def fail(self, job: CaseJob, message: str, entry: "Entry | None" = None) -> None:
        """Record that a case failed.

        Outputs made from an earlier content of the sources are removed, since these outputs may not
        match files that other steps make from the new content. Outputs that were changed by hand,
        and all outputs if the sources could not be read, are kept and stay in the record.
        """
        old = self.read(job.case_id)
        outputs = dict(old.outputs) if old else {}
        if entry is None:
            sources = {role: self._place_of(path) for role, path in job.sources.items()}
        else:
            sources = entry.sources
            outputs = entry.outputs_after_failure()
        record = Record(job.case_id, job.dataset, FAILED, sources, job.settings, outputs, message)
        self.write(record, 0)

    def orphans(self, known: Iterable[str]) -> list[Record]:
        """Return the records that have outputs and whose case is not in ``known``."""
        records = self._records_but(known)
        return [record for record in records if record.outputs and self._is_of_run(record)]

    def forget(self, record: Record) -> list[str]:
        """Remove a record and its unchanged outputs; return the names of the removed outputs."""
        removed = []
        for name, state in record.outputs.items():
            path = self.folder / name
            if path.is_file() and state in (None, _fingerprint_of(path)):
                _remove(path)
                removed.append(name)
        _remove(self.path_of(record.case_id))
        return removed

    def write_manifest(self, known: Iterable[str]) -> None:
        """Write the table of all records, also those of other shards, sorted by case.

        Records of failed cases that are not in ``known`` and whose sources are gone are removed.
        Another shard may write the table at the same time. The table is made again if records
        changed meanwhile, so the last one written holds all records.
        """
        for record in self._records_but(known):
            failed = record.outcome == FAILED and not record.outputs and self._is_of_run(record)
            if failed and not any(map(os.path.lexists, _real_paths(record))):
                _remove(self.path_of(record.case_id))
        seen = None
        while seen != (seen := self._listing()):
            content = table_of(filter(None, map(self.read, sorted(seen))))
            if not self.manifest.is_file() or self.manifest.read_bytes() != content:
                with atomic_path(self.manifest) as temporary:
                    temporary.write_bytes(content)

    def _records_but(self, known: Iterable[str]) -> list[Record]:
        gone = self._listing().keys() - set(known)
        return list(filter(None, map(self.read, sorted(gone))))

    def _is_of_run(self, record: Record) -> bool:
        return self.datasets is None or record.dataset in self.datasets

    def _listing(self) -> dict[str, tuple[int, int]]:
        """Return case id -> (inode, change time) of each record; a new write changes these."""
        listing = {}
        for path in self.records.rglob("*.json"):
            if path.name[0] != ".":
                status = path.stat()
                name = path.relative_to(self.records).as_posix()
                listing[name.removesuffix(".json")] = (status.st_ino, status.st_ctime_ns)
        return listing

    def path_of(self, case_id: str) -> Path:
        """Return the path of a case's record."""
        return self.records / f"{case_id}.json"

    def matches(self, record: Record, job: CaseJob) -> bool:
        """Tell whether a record is of this job, and done; contents of files are not compared."""
        return (
            record.outcome == DONE
            and record.dataset == job.dataset
            and record.settings == json.loads(json.dumps(job.settings))
            and record.sources.keys() == job.sources.keys()
        )

    def _place_of(self, path: Path) -> dict[str, str]:
        """Return a source's path below its root, for the manifest, and its identity on disk."""
        inside = (path.relative_to(root) for root in self.roots if path.is_relative_to(root))
        try:
            identity = _identity_of(path, path.stat())
        except OSError:
            identity = {"real_path": os.path.realpath(path)}
        return {"path": next(inside, path).as_posix(), **identity}

    def outputs_there(self, record: Record) -> bool:
        """Tell whether all outputs of a record exist with the recorded sizes."""
        try:
            return all(
                (self.folder / name).stat().st_size == state[0]
                for name, state in record.outputs.items()
            )
        except (OSError, TypeError):
            return False


class Entry:
    """The record of one case during the work on it."""

    def __init__(
        self, ledger: Ledger, job: CaseJob, sources: dict[str, dict], began_ns: int
    ) -> None:
        self.ledger, self.job, self.sources, self._began = ledger, job, sources, began_ns
        self._old = ledger.read(job.case_id)
        self._claimed: list[str] = []
        self.removed: list[str] = []  # outputs that the case no longer has

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
        old = self._old.outputs if self._old else {}
        outputs = list(outputs)
        if len({os.path.realpath(path) for path in outputs}) < len(outputs):
            raise InputError(
                f"{outputs[0]}: two outputs of {self.job.case_id} would be one file. Expected a "
                "folder for each organ: remove the link from one organ's folder to another's."
            )
        names = [path.relative_to(self.ledger.folder).as_posix() for path in outputs]
        for name in (*names, *old):
            self._require_ours(name, old)
        self._claimed = names  # only after the check: a failure removes claimed files
        self._write(BEGUN, {**old, **dict.fromkeys(self._claimed)}, {})

    def drop(self, output: Path) -> None:
        """Remove the claim of a file that will not be written."""
        self._claimed.remove(output.relative_to(self.ledger.folder).as_posix())

    def finish(self, found: CaseFacts) -> None:
        """Record that the case is done, and remove outputs that it no longer has."""
        states: dict[tuple[int, int], list[int]] = {}  # by inode: hard links are read once
        outputs = {}
        for name in self._claimed:
            path = self.ledger.folder / name
            status = path.stat()
            inode = (status.st_dev, status.st_ino)
            outputs[name] = states[inode] = states.get(inode) or _fingerprint_of(path)
        for name in sorted((self._old.outputs if self._old else {}).keys() - outputs.keys()):
            if os.path.lexists(self.ledger.folder / name):
                _remove(self.ledger.folder / name)
                self.removed.append(name)
        self._write(DONE, outputs, asdict(found))

    def outputs_after_failure(self) -> dict[str, list | None]:
        """Remove stale outputs of failed work; return the remaining ones with fingerprints."""
        old = self._old.outputs if self._old else {}
        if self._claimed:  # `claim` has checked that they are ours
            ours = {*old, *self._claimed}
        else:
            ours = {name for name in old if self._is_ours(name, old)}
        same_content = self._old is not None and self._hashes(self._old.sources) == self._hashes()
        stale = set() if same_content else ours
        for name in sorted(stale):
            if (self.ledger.folder / name).is_file():
                _remove(self.ledger.folder / name)
                self.removed.append(name)
        there = [n for n in ours - stale if (self.ledger.folder / n).is_file()]
        known = {name: state for name, state in old.items() if name not in ours}
        return known | {name: _fingerprint_of(self.ledger.folder / name) for name in sorted(there)}

    def _hashes(self, sources: dict[str, dict] | None = None) -> dict[str, str | None]:
        sources = self.sources if sources is None else sources
        return {role: source.get("sha256") for role, source in sources.items()}

    def _is_ours(self, name: str, old: dict[str, list | None]) -> bool:
        try:
            self._require_ours(name, old)
        except InputError:
            return False
        return True

    def _write(self, outcome: str, outputs: dict[str, list | None], found: dict) -> None:
        job, ledger = self.job, self.ledger
        record = Record(
            *(job.case_id, job.dataset, outcome, self.sources, job.settings, outputs),
            found=found,
        )
        ledger.write(record, self._began)

    def _require_ours(self, name: str, old: dict[str, list | None]) -> None:
        path = self.ledger.folder / name
        if not os.path.lexists(path):
            return
        if name not in old:
            raise InputError(
                f"{path}: exists and was not written by this step for {self.job.case_id}. "
                "Expected no file of another origin: nothing was overwritten; move it away, or "
                "choose another output folder."
            )
        if old[name] is not None and old[name] != _fingerprint_of(path):
            raise InputError(
                f"{path}: was changed after this step wrote it, and its source has changed too. "
                "Expected at most one change: nothing was overwritten; move the file away, then "
                "run again."
            )


def _identity_of(path: Path, status: os.stat_result) -> dict:
    """Return real path and inode of a file; they change if it or its folder is replaced."""
    return {"real_path": os.path.realpath(path), "inode": [status.st_dev, status.st_ino]}


def _real_paths(record: Record) -> list[str]:
    return [source.get("real_path", "") for source in record.sources.values()]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be removed ({error}), though its case no longer has it. Expected a "
            "folder that can be written to: fix the permissions, then run again."
        ) from error


def _sha256_of(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with reading(path, "a file of the case"), open_regular(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _fingerprint_of(path: Path) -> list[int]:
    """Return size and CRC-32 of a file."""
    size, crc = 0, 0
    with reading(path, "an output of this step"), open_regular(path) as file:
        while block := file.read(BLOCK):
            crc = isal_zlib.crc32(block, crc)
            size += len(block)
    return [size, crc]
