"""A server that answers as the Hugging Face hub does when a file is downloaded."""

import hashlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from preparation_helpers import ROOT

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
        self.stop()

    def stop(self) -> None:
        """Stop answering."""
        self.server.shutdown()
        self.server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def downloads(self) -> list[Asked]:
        """The requests for a file's content."""
        return [
            asked for asked in self.asked if asked.method == "GET" and "/resolve/" in asked.path
        ]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer /OWNER/REPO/resolve/REVISION/FILE."""
        authorization = request.headers.get("Authorization")
        self.asked.append(Asked(request.command, request.path, authorization))
        repo, _, rest = request.path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        code, fault, content = self._look_up(repo, revision, name, authorization)
        request.send_response(code)
        if fault:
            request.send_header("X-Error-Message" if " " in fault else "X-Error-Code", fault)
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
        """Return the status, the hub's error code or message, and the content."""
        if self.status != 200:
            return self.status, "Unavailable", b""
        admitted = authorization == f"Bearer {SECRET}"
        if repo in self.private and authorization and not admitted:
            return 401, "Invalid credentials in Authorization header", b""
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


def run_with_hub(
    hub: LocalHub, home: Path, *words: object, **environment: str
) -> subprocess.CompletedProcess:
    """Run Python with a hub and a cache in ``home``, and nothing of this process's environment.

    A new process is needed, since huggingface_hub reads the environment when it is imported. The
    variables of this one, and the files at its home, may hold a token.
    """
    kept = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home / "cache")}
    kept |= {"HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT, env=kept | environment,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
