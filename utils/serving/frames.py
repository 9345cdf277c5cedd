"""Answers in JSON, and frames: a JSON text, then the labels of the box that changed.

A frame is ``u32 little-endian n | n bytes JSON (UTF-8) | labels, uint8, C order of (z, y, x)``.
"""

import json
import struct
from collections.abc import Mapping

from isal import igzip
from starlette.requests import Request
from starlette.responses import Response

from utils.serving.label_map import Change

#: Larger answers are compressed, which takes less time than even a fast network needs for them.
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
    return struct.pack("<I", len(text)) + text + change.labels.tobytes()


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
