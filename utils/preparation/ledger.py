"""The ledger of a preparation step: one record per case, and the manifest made of all records.

Each case has a record, a small JSON file in ``<output folder>/.records/<step>/``: its sources with
size and SHA-256, the settings, the facts (shape, spacing, classes), the outputs with size and
CRC-32, and the outcome. A record depends only on the inputs, their places and the settings. So a
run that was interrupted and resumed, or several shards, leave the same records as one run (except
for the inodes of sources that an earlier step wrote). ``manifest_<step>.csv`` is the table of all
records.

A case is *current*, and skipped, if its record has the same sources and settings, its outputs exist
with the recorded sizes, and the sources have the recorded sizes, places and times, the last of
which lies well before the work on the record began. This test does not read the sources, and it
fails for a record from the future, since a clock was wrong then. If the test fails, the case is
still current if the sources have the recorded SHA-256.

Before the first output of a case is written, its record gets the outcome "begun" and lists all
outputs. Before an output gets its name, its size and CRC-32 go into the record. So even after a
kill the records prove which files this step wrote. A file without this proof is never overwritten
or removed. Neither is a file behind a link that leads out of the output folder.
"""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.names import is_inside
from utils.files.safe_read import open_regular, reading, sha256_of
from utils.files.strict_json import JsonError, parse_json
from utils.preparation.entry import CaseJob, Entry
from utils.preparation.file_states import (
    fingerprint_of,
    identity_of,
    pairs_of,
    remove_file,
)
from utils.preparation.records import (
    COLUMNS,
    DONE,
    FAILED,
    Record,
    SourceFacts,
    read_record,
    table_of,
)

RECORDS = ".records"
CLOCK_MARGIN_NS = 2 * 10**9  # clocks of file systems are coarse, and those of servers differ


class Ledger:
    """The records of one step in one output folder.

    Args:
        folder: the step's output folder.
        step: name of the step.
        roots: folders that the sources' paths are recorded relative to.
        places: where the step writes the outputs of a case; see `records.is_place`.
        datasets: data sets whose cases are all in this run; None: all data sets.

    Attributes:
        refused: record's file -> why it counts as none; empty once `print_refused` has printed it.
    """

    def __init__(
        self,
        folder: Path,
        step: str,
        roots: Iterable[Path],
        places: Iterable[str],
        datasets: Iterable[str] | None = None,
    ) -> None:
        self.folder, self.step = Path(folder), step
        self.places, self.refused = tuple(places), {}
        self.datasets = None if datasets is None else set(datasets)
        self.roots = [Path(root) for root in roots]
        self.records = self.folder / RECORDS / step

    @property
    def manifest(self) -> Path:
        """The table of all records."""
        return self.folder / f"manifest_{self.step}.csv"

    def read(self, case_id: str) -> Record | None:
        """Return the record of a case; None if it is missing or refused by `read_record`."""
        path = self.path_of(case_id)
        try:
            return read_record(path, case_id, self.places)
        except FileNotFoundError:
            return None
        except (OSError, JsonError) as error:
            self.refused.setdefault(path, str(error))
            return None

    def require_own_files(self) -> None:
        """Refuse a folder in which the records or the manifest are not those of this step.

        Raises:
            InputError: the records lie behind a link, or the manifest is a file of another origin.
        """
        inner = (Path(at, name) for at, names, _ in os.walk(self.records) for name in names)
        folders = (self.folder / RECORDS, self.records, *inner)
        if link := next((folder for folder in folders if folder.is_symlink()), None):
            raise InputError(
                f"{link}: is a link. Expected a folder that this step made: nothing was "
                "written; remove the link, or choose another output folder."
            )
        if not os.path.lexists(self.manifest):
            return
        with reading(self.manifest, "a manifest"), open_regular(self.manifest) as file:
            is_ours = file.read(len(first_line := table_of([]))) == first_line
        if not is_ours:
            raise InputError(
                f"{self.manifest}: is not the manifest of this step, which would replace it. "
                f"Expected a table that begins with {COLUMNS[0]},{COLUMNS[1]}: move the file away."
            )

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
                found = {"bytes": status.st_size, **identity_of(path, status)}
                is_same = found == {key: known.get(key) for key in found}
                if not is_same or status.st_ctime_ns >= began:
                    return False
        except OSError:
            return False
        return began <= time.time_ns()

    def open(self, job: CaseJob) -> Entry:
        """Hash the sources of a case that is not current; return its entry."""
        began = time.time_ns() - CLOCK_MARGIN_NS
        sources = {}
        for role, path in job.sources.items():
            size, sha256 = sha256_of(path, "a file of the case")
            sources[role] = {**self._place_of(path), "bytes": size, "sha256": sha256}
        return Entry(self, job, sources, began)

    def write(self, record: Record, began_ns: int) -> None:
        """Write a record; the time of its file is ``began_ns``, when reading the sources began."""
        content = json.dumps(asdict(record))  # in ASCII: a folder's name may not be UTF-8
        with atomic_path(self.path_of(record.case_id)) as temporary:
            temporary.write_text(content + "\n", "ascii")
            os.utime(temporary, ns=(began_ns, began_ns))

    def fail(self, job: CaseJob, message: str, entry: Entry | None = None) -> None:
        """Record that a case failed.

        Outputs made from an earlier content of the sources are removed, since these outputs may not
        match files that other steps make from the new content. Outputs that were changed by hand,
        and all outputs if the sources could not be read, are kept and stay in the record.
        """
        if entry is None:
            old = self.read(job.case_id)
            outputs = dict(old.outputs) if old else {}
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

    def forget(self, record: Record) -> tuple[list[str], list[str]]:
        """Remove a record and its proven outputs; return the names of removed and kept outputs."""
        removed, kept = self.remove(record.outputs)
        remove_file(self.path_of(record.case_id))
        return removed, kept

    def remove(self, outputs: dict[str, list[int] | None]) -> tuple[list[str], list[str]]:
        """Remove the outputs that are proven to be of this step.

        Returns:
            The names of the removed files, and of those that exist and were kept.
        """
        removed, kept = [], []
        for name, state in sorted(outputs.items()):
            if self.is_ours(name, state):
                remove_file(self.folder / name)
                removed.append(name)
            elif os.path.lexists(self.folder / name):
                kept.append(name)
        return removed, kept

    def is_ours(self, name: str, state: list[int] | None) -> bool:
        """Tell whether an output exists, lies in the folder, and has one of its recorded states."""
        path = self.folder / name
        if not is_inside(name, self.folder) or not path.is_file():
            return False
        try:
            return fingerprint_of(path) in pairs_of(state)
        except InputError:
            return False

    def write_manifest(self, known: Iterable[str]) -> None:
        """Write the table of all records, also those of other shards, sorted by case.

        Records of failed cases that are not in ``known`` and whose sources are gone are removed.
        Another shard may write the table at the same time. The table is made again if records
        changed meanwhile, so the last one written holds all records.
        """
        for record in self._records_but(known):
            failed = record.outcome == FAILED and not record.outputs and self._is_of_run(record)
            if failed and not any(map(os.path.lexists, _real_paths(record))):
                remove_file(self.path_of(record.case_id))
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
            and record.settings == parse_json(json.dumps(job.settings))
            and record.sources.keys() == job.sources.keys()
        )

    def _place_of(self, path: Path) -> SourceFacts:
        """Return a source's path below its root, for the manifest, and its identity on disk."""
        inside = (path.relative_to(root) for root in self.roots if path.is_relative_to(root))
        try:
            identity = identity_of(path, path.stat())
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


def _real_paths(record: Record) -> list[str]:
    return [source.get("real_path", "") for source in record.sources.values()]
