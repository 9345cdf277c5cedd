"""Running a validation script, and reading its tables."""

import csv
from pathlib import Path


def run(script, flags):
    """Run a script's `run` with flags that may be paths and numbers; return the summary."""
    return script.run(script.parse_args(list(map(str, flags))))


def rows(path: Path) -> list[dict]:
    """Return the rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def fail_once(monkeypatch, library, name: str, error: Exception) -> None:
    """Let the first call of a library's function raise ``error``."""
    function, errors = getattr(library, name), [error]

    def failing(*args, **kwargs):
        if errors:
            raise errors.pop()
        return function(*args, **kwargs)

    monkeypatch.setattr(library, name, failing)
