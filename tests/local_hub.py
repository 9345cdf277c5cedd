"""A server that answers as the Hugging Face hub does when a file is downloaded."""

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

COMMIT = "1a2b3c4d" * 5
SECRET = "hf_letNobodyReadThis"  # the token that may read private repositories


class Asked(NamedTuple):
    """A request that the server got."""

    method: str
    path: str
    authorization: str | None


@dataclass
class LocalHub:
    """Model repositories on a port of this machine; a context manager that starts and stops it.

    Each repository has one commit, `COMMIT`, and the branch ``main``.
    """

    files: dict[str, bytes]  # "OWNER/REPO/FILE" -> content
    private: frozenset[str] = frozenset()  # "OWNER/REPO"
    gated: frozenset[str] = frozenset()
    status: int = 200  # of every answer, if it is another
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> "LocalHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.answer(self)

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer /OWNER/REPO/resolve/REVISION/FILE."""
        authorization = request.headers.get("Authorization")
        self.asked.append(Asked(request.command, request.path, authorization))
        repo, _, rest = request.path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        code, fault, content = self._look_up(repo, revision, name, authorization)
        request.send_response(code)
        if fault:
            request.send_header("X-Error-Code", fault)
        else:
            # As for a large file: the ETag is the content's SHA-256.
            request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            content = self.sent(content)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    def sent(self, content: bytes) -> bytes:
        """Return the bytes that are sent for a content; a subclass may damage them."""
        return content

    def _look_up(self, repo: str, revision: str, name: str, authorization: str | None):
        """Return the status, the hub's error code and the content."""
        if self.status != 200:
            return self.status, "Unavailable", b""
        admitted = authorization == f"Bearer {SECRET}"
        if repo in self.private and authorization and not admitted:
            return 401, "InvalidToken", b""
        if not any(path.startswith(f"{repo}/") for path in self.files):
            return 404, "RepoNotFound", b""
        if repo in self.private and not admitted:
            return 401, "RepoNotFound", b""  # the hub does not tell that it exists
        if repo in self.gated and not admitted:
            return 403, "GatedRepo", b""
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound", b""
        if f"{repo}/{name}" not in self.files:
            return 404, "EntryNotFound", b""
        return 200, "", self.files[f"{repo}/{name}"]
