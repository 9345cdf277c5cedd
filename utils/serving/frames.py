"""Answers in JSON, and frames: a JSON text, then the labels of the box that changed.

A frame is ``u32 n | n bytes JSON (UTF-8) | u32 lengths of runs | uint8 labels of runs``, integers
little-endian. A run is a number of equal labels in the box's C order (z, y, x). A mask of millions
of voxels has ten thousands of runs, which are written and read faster than the voxels.
"""

import json
import struct
from collections.abc import Mapping

import numpy as np
from isal import igzip
from starlette.requests import Request
from starlette.responses import Response

from utils.serving.label_map import Change

#: Larger answers are compressed, which takes less time than a fast network needs for them.
COMPRESSED_FROM = 2**16


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer in JSON, in ASCII alone, so that any text in it can be sent."""
    headers = {"Cache-Control": "no-store"} | dict(headers or {})
    return Response(json.dumps(content), status, headers, "application/json")


def frame(content: dict, change: Change) -> bytes:
    """Return JSON with ``box`` [[z0, z1], [y0, y1], [x0, x1]], or null, and the labels in it."""
    sides = change.box and [[side.start, side.stop] for side in change.box]
    text = json.dumps(content | {"box": sides}).encode()
    return struct.pack("<I", len(text)) + text + _runs(change.labels)


def _runs(labels: np.ndarray) -> bytes:
    """Return the lengths and the labels of the runs of an array in C order."""
    flat = labels.reshape(-1)
    starts = np.append(np.zeros(min(1, flat.size), int), np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    lengths = np.diff(starts, append=flat.size).astype("<u4")
    return lengths.tobytes() + flat[starts].tobytes()


def frame_response(request: Request, body: bytes, status: int = 200) -> Response:
    """Return the answer with a frame, compressed where it is large and the client accepts it."""
    headers = {"Cache-Control": "no-store"}
    if len(body) >= COMPRESSED_FROM and accepts_gzip(request):
        body = igzip.compress(body, 1)
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(body, status, headers, "application/octet-stream")


def accepts_gzip(request: Request) -> bool:
    """Tell whether a client inflates gzip by itself, as browsers do."""
    coded = [part.strip() for part in request.headers.get("accept-encoding", "").split(",")]
    return any(part.split(";")[0] == "gzip" and not part.endswith("q=0") for part in coded)
