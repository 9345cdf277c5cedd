"""Tables as CSV files.

A spreadsheet runs a cell that begins like a formula, and names of cases and classes may come from
files of anyone. So text that begins with one of `FORMULA_STARTS` gets an apostrophe in front, which
spreadsheets do not show. Numbers stay as they are.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.files.atomic import atomic_path

#: The last four are wide forms of the first four, which some spreadsheets treat in the same way.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

#: Where a cell may begin with one. Some spreadsheets begin a new cell at a semicolon or a tab.
BEGINNING = re.compile(rf"(^|[;\t])(?=[{re.escape(''.join(FORMULA_STARTS))}])")


def write_csv(path: Path, rows: Sequence[Mapping], digits: int) -> None:
    """Write a table with the first row's columns; floats get ``digits`` decimals."""
    content = csv_bytes(list(rows[0]), rows, digits=digits, line_end="\r\n")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def csv_bytes(
    columns: Sequence[str],
    rows: Iterable[Mapping],
    *,
    digits: int | None = None,
    line_end: str = "\n",
) -> bytes:
    """Return a table as CSV in UTF-8, with a line of columns first.

    Args:
        digits: decimals of floats; None: as many as they need.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator=line_end)
    writer.writerow([_cell(column, digits) for column in columns])
    writer.writerows([_cell(row.get(column), digits) for column in columns] for row in rows)
    return table.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object, digits: int | None) -> object:
    if isinstance(value, str):
        return BEGINNING.sub(r"\1'", value)
    return f"{value:.{digits}f}" if isinstance(value, float) and digits is not None else value
