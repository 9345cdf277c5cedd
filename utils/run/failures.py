"""One failed case does not end a run: its message, and its traceback in a log file."""

import gc
import sys
import time
import traceback
from pathlib import Path

from utils.errors import InputError, is_out_of_memory
from utils.files.atomic import atomic_path

MORE_MEMORY = "crop or resample it, run fewer workers, or take a machine or device with more memory"
SHOWN = 200  # characters of an error in a message


def explain(case: str, error: Exception, log: Path) -> str:
    """Return one line about a failed case; log the traceback unless its input is to blame.

    Args:
        case: its file or name.
        log: the file that the traceback is added to.
    """
    out_of_memory = is_out_of_memory(error)
    if isinstance(error, (InputError, OSError)) and not out_of_memory:
        return str(error) if case in str(error) else f"{case}: {error}"
    where = _log_traceback(log, case, error)
    found = f"{type(error).__name__}: {' '.join(str(error).split())}"[:SHOWN]
    if out_of_memory:
        return (
            f"{case}: there is not enough memory for it ({found}). Expected enough for one case: "
            f"{MORE_MEMORY}. {where}"
        )
    return f"{case}: failed by a defect of this program ({found}). {where}: please report it."


def release_memory() -> None:
    """Give back memory that a failed case held, also on a GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def new_log(folder: Path) -> Path:
    """Return a path for a log of this run that no file has yet."""
    name = f"errors_{time.strftime('%Y%m%d-%H%M%S')}"
    paths = (folder / f"{name}{f'_{n}' if n else ''}.log" for n in range(10**6))
    return next(path for path in paths if not path.exists() and not path.is_symlink())


def _log_traceback(log: Path, case: str, error: Exception) -> str:
    """Add the traceback to the log; return a sentence that says where it is."""
    text = "".join(traceback.format_exception(error))
    try:
        earlier = log.read_text("utf-8", "replace") if log.is_file() else ""
        with atomic_path(log) as temporary:
            temporary.write_text(f"{earlier}{case}\n{text}\n", "utf-8", "backslashreplace")
    except (InputError, OSError):
        return "The traceback could not be written"
    return f"The traceback is in {log}"
