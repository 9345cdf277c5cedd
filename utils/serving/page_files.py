"""The files of the page, read once at start: no path of a request leads out of their folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from utils.serving.refusals import Refusal

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
VIEWER = "vendor/niivue.js"
MISSING = (
    "<!doctype html><title>FastSAM3D</title><p>The server runs, and its page is not set up. "
    "Type <code>make page</code>, then start the server again."
)


@dataclass(frozen=True)
class PageFile:
    """A file's bytes, its type and its tag for caches."""

    content: bytes
    kind: str
    tag: str


class PageFiles:
    """All files of the page's folder, by their path in it."""

    def __init__(self, folder: Path = PAGE) -> None:
        paths = sorted(folder.rglob("*")) if folder.is_dir() else []
        self.files = {
            path.relative_to(folder).as_posix(): _page_file(path)
            for path in paths
            if path.is_file() and path.suffix in TYPES and not _is_hidden(path, folder)
        }

    @property
    def is_ready(self) -> bool:
        """Whether the page and its viewer are there."""
        return {"index.html", VIEWER} <= self.files.keys()

    async def index(self, request: Request) -> Response:
        """Answer with the page."""
        return self._answer(request, "index.html") or Response(MISSING, media_type="text/html")

    async def login(self, request: Request) -> Response:
        """Answer with the page that asks for the token."""
        text = "<!doctype html><title>FastSAM3D</title><form><input name=token></form>"
        found = self._answer(request, "login.html", tagged=False)
        response = found or Response(text, media_type="text/html")
        response.status_code = 401
        return response

    async def static(self, request: Request) -> Response:
        """Answer with one of the files."""
        found = self._answer(request, request.path_params["path"])
        if found is None:
            raise Refusal(404, "no_such_path", "there is no such file of the page.")
        return found

    def _answer(self, request: Request, name: str, *, tagged: bool = True) -> Response | None:
        file = self.files.get(name)
        if file is None:
            return None
        headers = {"Cache-Control": "no-cache"}
        if tagged:
            headers["ETag"] = file.tag
            if file.tag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
        return Response(file.content, 200, headers, file.kind)


def _page_file(path: Path) -> PageFile:
    content = path.read_bytes()
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    return PageFile(content, TYPES[path.suffix], tag)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_symlink()
