"""The records of a preparation step (facts and outcome of each case), and their table."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Record:
    """The state of one case after a step."""

    case_id: str
    dataset: str
    outcome: str
    sources: dict[str, dict]  # role -> path below the input folder, real path, bytes, sha256
    settings: dict
    outputs: dict[str, list | None]  # path below the output folder -> [bytes, CRC-32]
    message: str = ""  # why the case failed
    found: dict = field(default_factory=dict)  # `CaseFacts` as a dict


def table_of(records: Iterable[Record]) -> bytes:
    """Return the records as CSV, one row each."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_row, records))
    return table.getvalue().encode("utf-8", "backslashreplace")


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
        "notes": shortened([*found.get("notes", ()), *found.get("remarks", ())]),
    }


def shortened(lines: Sequence[str], most: int = 20) -> str:
    """Join the first ``most`` lines for a message or a cell, and count the others."""
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more
