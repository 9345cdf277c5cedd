"""Change fields of a network's configuration on the command line: --set PART.FIELD=VALUE."""

from collections.abc import Sequence

from segment_anything import ConfigError, SamConfig
from utils.errors import InputError
from utils.files.strict_json import JsonError, parse_json


def changed(config: SamConfig, fields: Sequence[str]) -> SamConfig:
    """Return ``config`` with fields changed.

    Args:
        fields: "PART.FIELD=VALUE" each, such as "encoder.depth=6" or "prompt.dense_pe_axes=0,1,2".

    Raises:
        InputError: there is no such field, or no network can be built with these values.
    """
    values = config.to_dict()
    parts = {part: fields for part, fields in values.items() if isinstance(fields, dict)}
    for text in fields:
        name, _, value = text.partition("=")
        part, _, name = name.partition(".")
        if name not in parts.get(part, ()):
            raise InputError(
                f"--set {text}: there is no such field; expected PART.FIELD=VALUE with one of "
                f"{', '.join(f'{part}.{field}' for part in parts for field in parts[part])}."
            )
        values[part][name] = _parsed(value)
    try:
        return SamConfig.from_dict(values)
    except ConfigError as error:
        raise InputError(f"--set {' '.join(fields)}: cannot be built: {error}.") from error


def _parsed(text: str) -> object:
    """Parse a number, a list with commas or in brackets, or a word."""
    if "," in text or text.startswith("["):
        return [_parsed(entry) for entry in text.strip("[]").split(",") if entry]
    try:
        return parse_json(text)
    except JsonError:
        return text
