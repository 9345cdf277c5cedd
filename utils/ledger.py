"""What a preparation step has done to each case: records, and the manifest made of them (no torch).

Each case has a record, a small JSON file in ``<output folder>/.records/<step>/``: its sources with
size and SHA-256, the settings, what was found (shape, spacing, classes), the outputs with size and
CRC-32, and what became of it. All of that follows from inputs, their places and settings alone, so
that an interrupted run that is started again, or several shards, leave the same records as one run.
``manifest_<step>.csv`` is the table of all records.

A case is *current*, and skipped, if its record has the same sources and settings, its outputs are
there with the recorded sizes, and no source was touched (modified, replaced or moved in) since
shortly before the record's work began. That takes no reading; if it fails, equal SHA-256 still make
the case current.

Records are written ahead: one that says "begun" names the outputs before the first of them is
written. So after a kill every file in the tree is known to be ours or not, and a file that is not
ours, or that someone has changed since, is never overwritten or removed.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from isal import isal_zlib

from utils.atomic import WriteError, atomic_path
from utils.errors import InputError
from utils.safe_read import open_regular, reading

RECORDS = ".records"
BEGUN, DONE, FAILED = "begun", "done", "failed"
CLOCK_MARGIN_NS = 2 * 10**9  # file systems' clocks run coarsely, and servers' a little apart
BLOCK = 2**20
COLUMNS = (
    *("case", "data_set", "source", "bytes", "sha256", "shape_dhw", "spacing_xyz_mm", "classes"),
    *("outcome", "outputs", "notes"),
)


@dataclass(frozen=True)
class Job:
    """A case to work on."""

    case_id: str  # unique in the step
    dataset: str
    sources: dict[str, Path]  # role -> file that decides the outputs; the first is the main one
    settings: dict = field(default_factory=dict)  # what beside the files decides; JSON-able
    problem: str = ""  # why the case cannot be worked on, where that is known beforehand


@dataclass(frozen=True)
class Found:
    """What a step found in a case; goes into its record."""

    shape: tuple[int, int, int] | None = None  # (D, H, W)
    spacing_xyz: tuple[float, float, float] | None = None  # mm
    classes: dict[str, int] = field(default_factory=dict)  # class -> voxels
    notes: tuple[str, ...] = ()  # what was dropped, and why


@dataclass(frozen=True)
class Record:
    """The state of one case after a step."""

    case_id: str
    dataset: str
    outcome: str
    sources: dict[str, dict]  # role -> path below the input folder, real path, bytes, sha256
    settings: dict
    outputs: dict[str, list | None]  # path below the output folder -> [bytes, CRC-32]
    message: str = ""  # why it failed
    found: dict = field(default_factory=dict)


class Ledger:
    """The records of one step in one output folder.

    Args:
        folder: the step's output folder.
        step: name of the step.
        roots: folders that the sources' paths are recorded relative to.
    """

    def __init__(self, folder: Path, step: str, roots: Iterable[Path]) -> None:
        self.folder, self.step = Path(folder), step
        self.roots = [Path(root) for root in roots]
        self.records = self.folder / RECORDS / step

    @property
    def manifest(self) -> Path:
        """The table of all records."""
        return self.folder / f"manifest_{self.step}.csv"

    def read(self, case_id: str) -> Record | None:
        """Return the record of a case; None where there is none, or none that can be read."""
        try:
            return Record(**json.loads(self.path_of(case_id).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def is_current(self, job: Job) -> bool:
        """Tell from the records and the files' sizes and times whether a case is done."""
        record = self.read(job.case_id)
        if record is None or not self.matches(record, job) or not self.outputs_there(record):
            return False
        try:
            began = self.path_of(job.case_id).stat().st_mtime_ns
            stats = [path.stat() for path in job.sources.values()]
        except OSError:
            return False
        known = [record.sources[role] for role in job.sources]
        paths = list(map(os.path.realpath, job.sources.values()))
        return (
            [source["bytes"] for source in known] == [stat.st_size for stat in stats]
            and [source["real_path"] for source in known] == paths
            and all(max(stat.st_mtime_ns, stat.st_ctime_ns) < began for stat in stats)
        )

    def open(self, job: Job) -> "Entry":
        """Hash the sources of a case that is not current and return its entry."""
        began = time.time_ns() - CLOCK_MARGIN_NS
        sources = {}
        for role, path in job.sources.items():
            size, sha256 = _sha256_of(path)
            sources[role] = {**self._place_of(path), "bytes": size, "sha256": sha256}
        return Entry(self, job, sources, began)

    def write(self, record: Record, began_ns: int) -> None:
        """Write a record whose file time is the time when its sources were read."""
        content = json.dumps(asdict(record), sort_keys=True, ensure_ascii=False)
        with atomic_path(self.path_of(record.case_id)) as temporary:
            temporary.write_text(content + "\n", "utf-8")
            os.utime(temporary, ns=(began_ns, began_ns))

    def fail(self, job: Job, message: str, sources: dict[str, dict] | None = None) -> None:
        """Record that a case failed; outputs of an earlier success stay, and stay known."""
        old = self.read(job.case_id)
        sources = sources or {role: self._place_of(path) for role, path in job.sources.items()}
        outputs = old.outputs if old else {}
        record = Record(job.case_id, job.dataset, FAILED, sources, job.settings, outputs, message)
        self.write(record, 0)

    def write_manifest(self, known: Iterable[str]) -> None:
        """Write the table of all records, of other shards too, sorted by case.

        Failures of cases that are not ``known`` any more, and left nothing, are forgotten. Another
        shard that ends at the same time writes the table too; whoever is last has seen all records,
        since it is made again if records appeared while it was made.
        """
        known = set(known)
        for case_id in self._listing():
            record = None if case_id in known else self.read(case_id)
            if record and record.outcome == FAILED and not record.outputs:
                _remove(self.path_of(case_id))
        seen = None
        while seen != (seen := self._listing()):
            rows = [_row(record) for record in map(self.read, seen) if record]
            table = io.StringIO(newline="")
            writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            content = table.getvalue().encode()
            if not self.manifest.exists() or self.manifest.read_bytes() != content:
                with atomic_path(self.manifest) as temporary:
                    temporary.write_bytes(content)

    def _listing(self) -> list[str]:
        """Return the case ids of all records."""
        names = (path.relative_to(self.records) for path in self.records.rglob("*.json"))
        return sorted(n.as_posix().removesuffix(".json") for n in names if n.name[0] != ".")

    def path_of(self, case_id: str) -> Path:
        """Return where the record of a case is."""
        return self.records / f"{case_id}.json"

    def matches(self, record: Record, job: Job) -> bool:
        """Tell whether a record is of the job as it is now, but for the content of its files."""
        return (
            record.outcome == DONE
            and record.dataset == job.dataset
            and record.settings == json.loads(json.dumps(job.settings))
            and record.sources.keys() == job.sources.keys()
        )

    def _place_of(self, path: Path) -> dict[str, str]:
        """Return where a source is: as the manifest says it, and without links and dots."""
        inside = (path.relative_to(root) for root in self.roots if path.is_relative_to(root))
        return {"path": next(inside, path).as_posix(), "real_path": os.path.realpath(path)}

    def outputs_there(self, record: Record) -> bool:
        """Tell whether all outputs of a record are there with the recorded sizes."""
        try:
            return all(
                (self.folder / name).stat().st_size == state[0]
                for name, state in record.outputs.items()
            )
        except (OSError, TypeError):
            return False


class Entry:
    """One case while it is worked on."""

    def __init__(self, ledger: Ledger, job: Job, sources: dict[str, dict], began_ns: int) -> None:
        self.ledger, self.job, self.sources, self._began = ledger, job, sources, began_ns
        self._old = ledger.read(job.case_id)
        self._claimed: list[str] = []

    def confirm(self) -> bool:
        """Tell whether the content is as recorded although times or places are not; note that."""
        old = self._old
        same = old is not None and self.ledger.matches(old, self.job)
        if not same or not self.ledger.outputs_there(old):
            return False
        if any(old.sources[role]["sha256"] != self.sources[role]["sha256"] for role in old.sources):
            return False
        self.ledger.write(replace(old, sources=self.sources), self._began)
        return True

    def claim(self, outputs: Iterable[Path]) -> None:
        """Say which files are going to be written, before the first of them is.

        Raises:
            InputError: one of them is there and was not written by this step, or was changed since.
        """
        old = self._old.outputs if self._old else {}
        self._claimed = [path.relative_to(self.ledger.folder).as_posix() for path in outputs]
        for name in (*self._claimed, *old):
            self._require_ours(name, old)
        self._write(BEGUN, {**old, **dict.fromkeys(self._claimed)}, {})

    def drop(self, output: Path) -> None:
        """Take back a claim: the file is not going to be written."""
        self._claimed.remove(output.relative_to(self.ledger.folder).as_posix())

    def finish(self, found: Found) -> None:
        """Record that the case is done, and remove outputs that it no longer has."""
        states: dict[tuple[int, int], list[int]] = {}  # hard links are read once
        outputs = {}
        for name in self._claimed:
            path = self.ledger.folder / name
            status = path.stat()
            inode = (status.st_dev, status.st_ino)
            outputs[name] = states[inode] = states.get(inode) or _fingerprint_of(path)
        for name in (self._old.outputs if self._old else {}).keys() - outputs.keys():
            _remove(self.ledger.folder / name)
        self._write(DONE, outputs, asdict(found))

    def _write(self, outcome: str, outputs: dict[str, list | None], found: dict) -> None:
        job, ledger = self.job, self.ledger
        record = Record(
            *(job.case_id, job.dataset, outcome, self.sources, job.settings, outputs),
            found=found,
        )
        ledger.write(record, self._began)

    def _require_ours(self, name: str, old: dict[str, list | None]) -> None:
        path = self.ledger.folder / name
        if not path.exists():
            return
        if name not in old:
            raise InputError(
                f"{path}: is there, and not written by this step for {self.job.case_id}. Expected "
                "no file of another origin: nothing was overwritten; move it away, or choose "
                "another output folder."
            )
        if old[name] is not None and old[name] != _fingerprint_of(path):
            raise InputError(
                f"{path}: was changed after this step wrote it, and its source has changed too. "
                "Expected one of both: nothing was overwritten; move the file away, then run again."
            )


def _row(record: Record) -> dict[str, str]:
    first = next(iter(record.sources.values()), {})
    found = {key: value for key, value in record.found.items() if value}
    return {
        "case": record.case_id,
        "data_set": record.dataset,
        "source": first.get("path", ""),
        "bytes": first.get("bytes", ""),
        "sha256": first.get("sha256", ""),
        "shape_dhw": " ".join(map(str, found.get("shape", ()))),
        "spacing_xyz_mm": " ".join(f"{s:.6g}" for s in found.get("spacing_xyz", ())),
        "classes": "; ".join(f"{name} {n}" for name, n in found.get("classes", {}).items()),
        "outcome": record.outcome + (f": {record.message}" if record.message else ""),
        "outputs": "; ".join(sorted(record.outputs)),
        "notes": "; ".join(found.get("notes", ())),
    }


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
