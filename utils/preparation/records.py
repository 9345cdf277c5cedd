"""The records of a preparation step (facts and outcome of each case), and their table.

A record may have been copied from another machine or edited. So `read_record` checks all of it, and
a name of an output is taken only if the step could have written that file for that case.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Literal, TypedDict

from utils.files.strict_json import JsonError, parse_json
from utils.results.csv_table import csv_bytes

BEGUN, DONE, FAILED = "begun", "done", "failed"
COLUMNS = (
    *("case", "data_set", "source", "bytes", "sha256", "shape_dhw", "spacing_xyz_mm", "classes"),
    *("outcome", "outputs", "notes"),
)


@dataclass(frozen=True)
class CaseFacts:
    """Facts that a step found out about a case, for its record."""

    shape: tuple[int, int, int] | None = None  # (D, H, W)
    spacing_xyz: tuple[float, float, float] | None = None  # mm
    classes: dict[str, int] = field(default_factory=dict)  # class -> voxels
    notes: tuple[str, ...] = ()  # what cleaning dropped, and why
    remarks: tuple[str, ...] = ()  # what is odd about the sources: rounded values, two places


class SourceFacts(TypedDict, total=False):
    """A source of a case: for the manifest, and to notice that it has changed."""

    path: str  # below the input folder
    real_path: str
    inode: list[int]  # device and inode
    times_ns: list[int]  # of its content's change and of its inode's change
    bytes: int
    sha256: str


class FoundFacts(TypedDict, total=False):
    """`CaseFacts` in a record."""

    shape: tuple[int, int, int] | None
    spacing_xyz: tuple[float, float, float] | None
    classes: dict[str, int]
    notes: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """The state of one case after a step.

    ``outputs`` holds bytes and CRC-32 of each output. While a case is begun, an output has two such
    pairs if it may still be the earlier file, and ``None`` if there was no file.
    """

    case_id: str
    dataset: str
    outcome: Literal["begun", "done", "failed"]
    sources: dict[str, SourceFacts]  # by role
    settings: dict
    outputs: dict[str, list[int] | None]  # by path below the output folder
    message: str = ""  # why the case failed
    found: FoundFacts = field(default_factory=dict)


def read_record(path: Path, case_id: str, places: Sequence[str]) -> Record:
    """Read and check the record of a case.

    Args:
        places: where the step writes; see `is_place`.

    Raises:
        JsonError: the file is no record, is of another case, or names a file that is no output.
        OSError: it cannot be read.
    """
    record = parse_json(path.read_bytes(), Record)
    if record.case_id != case_id:
        raise JsonError("it is the record of another case")
    for name, state in record.outputs.items():
        if not is_place(name, case_id, places):
            raise JsonError(f"it lists {name!a:.80}, which this step never writes for the case")
        if state is not None and (len(state) % 2 or not state):
            raise JsonError(f"it gives {len(state)} numbers for an output")
    return record


def is_place(name: str, case_id: str, places: Sequence[str]) -> bool:
    """Tell whether a step may write the file ``name`` for a case.

    Args:
        name: path below the output folder.
        places: patterns of such paths, in which ``*`` is any name, ``{case}`` the last part of the
            case's id and ``{dataset}`` what stands before it.
    """
    dataset, _, case = case_id.rpartition("/")
    parts = name.split("/")
    if not all(part.isprintable() and part[:1] not in ("", ".") for part in parts):
        return False
    named = [p.format(case=escape(case), dataset=escape(dataset)).split("/") for p in places]
    return any(
        len(pattern) == len(parts) and all(map(fnmatchcase, parts, pattern)) for pattern in named
    )


def table_of(records: Iterable[Record]) -> bytes:
    """Return the records as CSV, one row each."""
    return csv_bytes(COLUMNS, map(_row, records))


def _row(record: Record) -> dict[str, str | int]:
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
        "notes": shortened([*found.get("notes", ()), *found.get("remarks", ())]),
    }


def shortened(lines: Sequence[str], most: int = 20) -> str:
    """Join the first ``most`` lines for a message or a cell, and count the others."""
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more
