"""The one exception type that a script turns into a message and an exit code.

Its message has four parts: which file or case, what was found, what was expected, what to do. Any
other exception that ends a script is a bug and keeps its traceback.
"""

import errno
import functools
import math
import sys
import unicodedata
from collections.abc import Callable
from numbers import Integral, Real

#: Parts of the messages by which PyTorch, CUDA and ONNX Runtime say that memory ran out.
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "failed to allocate memory",
    "alloc_failed",
)
LESS_MEMORY = (
    "Expected room for the network and its input: run with a smaller --batch-size or fewer "
    "--workers where the script has them, or take a machine or device with more memory."
)


class InputError(ValueError):
    """Something the user gave (file, folder, flag, checkpoint) cannot be used."""


def exit_on_input_error(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wrap a script's ``main``: print an `InputError` or an OS error as one message, exit with 1.

    So it does where memory runs out.
    ``main`` may return an exit code; ``None`` means 0.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            sys.exit(main() or 0)
        except (InputError, OSError) as error:
            print(printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
            sys.exit(1)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found = " ".join(str(error).split())[:200] or type(error).__name__
            print(printable(f"out of memory ({found}). {LESS_MEMORY}"), file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted; finished work is kept", file=sys.stderr)
            sys.exit(130)

    return wrapped


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in NO_MEMORY)


def require_number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Raise an `InputError` unless ``value`` is a finite number from ``low`` to ``high``.

    Args:
        name: of the value, for the message: a flag, or a field of a file.
        whole: only whole numbers are allowed.
        above: ``low`` itself is not allowed.
    """
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if is_number and low <= value <= high and value < math.inf and not (above and value == low):
        return
    kind = "a whole number" if whole else "a number"
    lower = f"above {low:g}" if above else f"from {low:g}"
    upper = f" to {high:g}" if high < math.inf else "" if above else " up"
    raise InputError(f"{name}: found {str(value)[:99]}, expected {kind} {lower}{upper}.")


#: Unicode's categories of characters that can colour, hide, reorder or overwrite a terminal's text,
#: and of bytes in a file's name that are no UTF-8 (Cs), which cannot be printed at all.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    """Return a text for a terminal or a log: unprintable characters become escapes.

    Line ends stay. The name of a file may hold any of these characters.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in UNPRINTABLE:
        return character
    return character.encode("unicode_escape").decode("ascii")
