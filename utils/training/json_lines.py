"""Logs as JSON lines, each row with its ``step``; a resumed run appends. Only rank 0 writes."""

import json
import logging
import uuid
from pathlib import Path

from utils.files.append import open_append
from utils.files.atomic import atomic_path
from utils.files.safe_read import open_regular, reading
from utils.files.strict_json import JsonError, parse_json
from utils.run.ranks import rank

CUT = b'{"step": '  # how a row begins, also one that a kill has cut short

logger = logging.getLogger(__name__)


def resume_rows(path: Path, start: int, score: str) -> list[dict]:
    """Return the rows up to step ``start``, and remove later ones from the file.

    Later rows are from a run that was killed after its last checkpoint. Lines that cannot be read
    are left out of the log, with a warning; the file with them is kept under another name. Only a
    last line that a kill has cut short is dropped without one.

    Args:
        score: the key beside ``step`` that each row needs, with a number.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.exists():
        return []
    content = _content(path)
    lines = content.split(b"\n")
    rows = [_row_of(line, score) for line in lines]
    if lines[-1].startswith(CUT):
        lines.pop()
    unread = (n for n, (_, row) in enumerate(zip(lines, rows, strict=False), 1) if row is None)
    damaged = [n for n in unread if lines[n - 1].strip()]
    kept = [row for row in rows if row is not None and row["step"] <= start]
    if rank() == 0:
        if damaged:
            beside = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
            with atomic_path(beside) as temporary:
                temporary.write_bytes(content)
            logger.warning(
                "%s: %d lines cannot be read, line %d first. Expected a JSON object with step and "
                "%s on each: the other lines are kept, and the file as it was is now %s",
                *(path, len(damaged), damaged[0], score, beside.name),
            )
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return kept


def append_row(path: Path, row: dict) -> None:
    """Add a row at the end of the file."""
    if rank() == 0:
        with open_append(path) as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines; lines that hold none are left out.

    Raises:
        InputError: the file cannot be read.
    """
    rows = []
    for line in _content(path).split(b"\n") if path.exists() else []:
        try:
            rows.append(parse_json(line, dict))
        except JsonError:
            continue
    return rows


def _content(path: Path) -> bytes:
    with reading(path, "a file of JSON lines"), open_regular(path) as file:
        return file.read()


def _row_of(line: bytes, score: str) -> dict | None:
    """Return the row on a line of a log, or None if the line holds none."""
    try:
        row = parse_json(line, dict[str, int | float])
    except JsonError:
        return None
    is_row = type(row.get("step")) is int and score in row
    return row if is_row else None
