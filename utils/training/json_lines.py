"""Logs as JSON lines, each row with its ``step``; a resumed run appends. Only rank 0 writes."""

import json
from pathlib import Path

from utils.files.atomic import atomic_path
from utils.run.ranks import rank


def resume_rows(path: Path, start: int) -> list[dict]:
    """Return the rows up to step ``start``, and remove later ones from the file.

    Later rows are from a run that was killed after its last checkpoint.
    """
    kept = [row for row in read_rows(path) if row["step"] <= start]
    if rank() == 0 and path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return kept


def append_row(path: Path, row: dict) -> None:
    """Add a row at the end of the file."""
    if rank() == 0:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """Read JSON lines up to the first broken one, which a kill or a full disk has cut short."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
