"""The log of a script: every entry is printable, and no text can forge an entry.

Names of files, folders, classes and cases may come from anyone. A control character in them could
colour or overwrite a terminal's text, and a line end could forge an entry.
"""

import logging
import sys
from collections.abc import Iterable

from utils.errors import printable


def as_entry(text: str) -> str:
    """Return a text as one entry of a log: printable, its further lines indented."""
    return printable(text).replace("\n", "\n  ")


class EntryFormatter(logging.Formatter):
    """Formats each record by `as_entry`, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry of a record."""
        return as_entry(super().format(record))


def start_log(
    *,
    level: int = logging.INFO,
    format: str = "%(message)s",
    more: Iterable[logging.Handler] = (),
) -> None:
    """Send the log to stderr, and to ``more`` handlers, in place of the handlers before.

    Args:
        format: of `logging.Formatter`; times are hours, minutes and seconds.
    """
    handlers = [logging.StreamHandler(sys.stderr), *more]
    for handler in handlers:
        handler.setFormatter(EntryFormatter(format, "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=handlers, force=True)


def format_worker_log() -> None:
    """Format by `as_entry` also where no log was started, as in a worker process."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(EntryFormatter())
