"""The one exception type that a script turns into a message and an exit code.

Its message has four parts: which file or case, what was found, what was expected, what to do. Any
other exception that ends a script is a bug and keeps its traceback.
"""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave (file, folder, flag, checkpoint) cannot be used."""


def exit_on_input_error(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wrap a script's ``main``: print an `InputError` or an OS error as one message, exit with 1.

    ``main`` may return an exit code; ``None`` means 0.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            sys.exit(main() or 0)
        except (InputError, OSError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("interrupted; finished work is kept", file=sys.stderr)
            sys.exit(130)

    return wrapped
