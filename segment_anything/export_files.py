"""The files of an exported network: their names, and which of them an export may replace."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segment_anything.onnx_encoder import FINGERPRINT, OnnxError, open_session

ENCODER, DECODER, FACTS = "image_encoder.onnx", "prompt_decoder.onnx", "export.json"


def require_own_files(folder: Path) -> None:
    """Raise `OnnxError` if `export` would replace a file that it did not write.

    Its own files have a fingerprint of the network.
    """
    for name in (ENCODER, DECODER, FACTS):
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            is_own = FINGERPRINT in (read_facts(path) if name == FACTS else notes_of(path))
        except (OnnxError, OSError, ValueError, TypeError, RecursionError):
            is_own = False
        if not is_own:
            raise OnnxError(
                f"{path}: was not written by this script, which would replace it. Expected a new "
                "folder, or that of an earlier export: choose another --out."
            )


def notes_of(path: Path) -> Mapping[str, str]:
    """Return the notes in an ONNX file, by name."""
    return open_session(path).get_modelmeta().custom_metadata_map


def read_facts(path: Path) -> dict[str, Any]:
    """Return the content of export.json."""
    return json.loads(path.read_text(), object_pairs_hook=_object_of)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; one that has a key twice is refused."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise OnnxError(f"{FACTS} has a key twice among {sorted(content)[:10]}.")
    return content
