"""Tables as CSV files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.files.atomic import atomic_path


def write_csv(path: Path, rows: Sequence[Mapping], digits: int) -> None:
    """Write a table with the first row's columns; floats get ``digits`` decimals."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {key: f"{v:.{digits}f}" if isinstance(v, float) else v for key, v in row.items()}
            for row in rows
        )
