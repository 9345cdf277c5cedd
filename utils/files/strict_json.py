"""Read JSON that may be damaged, hostile or of another program, and check all of it.

`json` alone keeps the last value of a repeated key, fails with `RecursionError` on deep nesting,
and does not check types. Every JSON file of this project is read here.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TypeVar

import msgspec

from utils.errors import InputError
from utils.files.safe_read import open_regular, reading

T = TypeVar("T")


class JsonError(ValueError):
    """A text is not JSON, has a key twice, is nested too deeply, or has a value of a wrong type."""


class RepeatedKeyError(JsonError):
    """One object of a JSON text has a key twice; ``keys`` holds all such keys, in their order."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"an object has {keys} twice")
        self.keys = keys


def parse_json(text: str | bytes, kind: type[T] = object) -> T:
    """Return what a JSON text holds, as ``kind``.

    Args:
        text: bytes are UTF-8; a byte order mark at the start is skipped.
        kind: a type that the value is converted to and checked against, such as ``dict[str, int]``
            or a dataclass. An object's keys that a dataclass lacks are ignored.

    Raises:
        RepeatedKeyError: an object has a key twice.
        JsonError: the text is no JSON, is nested too deeply, or its value is not of this kind.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        content = json.loads(text, object_pairs_hook=_object_of)
        return content if kind is object else msgspec.convert(content, kind)
    except JsonError:
        raise
    except RecursionError as error:
        raise JsonError("it is nested too deeply") from error
    except ValueError as error:  # json's, UTF-8's and msgspec's errors are ValueErrors
        raise JsonError(str(error)) from error


def read_json(path: Path, expected: str, kind: type[T] = object) -> T:
    """Return what a JSON file holds, as ``kind``; see `parse_json`.

    Args:
        expected: what the file should be, for the message.

    Raises:
        InputError: the file is missing or unreadable, or its content is refused by `parse_json`.
    """
    with reading(path, expected), open_regular(path) as file:
        text = file.read()
    try:
        return parse_json(text, kind)
    except JsonError as error:
        raise InputError(
            f"{path}: cannot be used as JSON: {error}.\nExpected {expected}: repair the file, or "
            "write it again."
        ) from error


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        count = Counter(key for key, _ in pairs)
        raise RepeatedKeyError([key for key in content if count[key] > 1])
    return content


def short_json(value: object, most: int = 60) -> str:
    """Return a JSON value as text for a message, in ASCII, cut to ``most`` characters."""
    try:
        text = json.dumps(value)
    except RecursionError:  # the parser goes deeper than the writer
        return "a value that is nested too deeply"
    return text if len(text) <= most else f"{text[: most - 3]}..."
