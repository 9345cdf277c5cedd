"""Parse JSON and refuse repeated keys; `json` alone silently keeps a key's last value."""

import json


class RepeatedKeyError(ValueError):
    """One object of a JSON text has a key twice; ``keys`` holds all such keys, in their order."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(f"an object has {keys} twice")
        self.keys = keys


def parse_json(text: str | bytes) -> object:
    """Return what a JSON text holds.

    Raises:
        RepeatedKeyError: an object has a key twice.
        ValueError, RecursionError: it is not JSON, or is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise RepeatedKeyError([key for key in dict.fromkeys(keys) if keys.count(key) > 1])
    return dict(pairs)
