"""Who may ask: checks of host, origin and token before any request reaches the app.

A page of another site that is open in the user's browser can send requests to a local server, also
ones that need no permission of the server (forms, plain text). A name of another site can be made
to point to this machine (DNS rebinding). So a request must name this server by a name that it has,
and must not come from another page, unless the user has allowed that page.
"""

import base64
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self' data: blob:; style-src 'self'; script-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PREFIX = re.compile(r"/t/([^/]*)(/.*)?", re.S)
#: Paths that take the cookie's token: those of the page alone.
OF_THE_PAGE = re.compile(r"/|/(?:api|static)/.*", re.S)
#: What a browser needs to show the page that asks for the token.
WITHOUT_TOKEN = (".css", ".svg")


class Guard:
    """An ASGI app around another that refuses requests of strangers.

    Args:
        host: the address that the server listens on.
        names: further names by which clients may call it.
        token: a secret that every client must show; empty: none.
        cookie: the name of the cookie that holds the token.
        framed_by: origins of pages that may show this server's page inside of theirs.
        origins: of other pages that may send requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        names: Iterable[str] = (),
        token: str = "",
        cookie: str,
        framed_by: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        self._app, self._token, self.cookie = app, token, cookie
        self._origins = frozenset(origins)
        self._headers = framed_headers(framed_by)
        own = () if is_loopback(host) else (socket.gethostname(), socket.getfqdn())
        self._names = {name.lower() for name in (*LOOPBACK_NAMES, host, *own, *names) if name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on; see `Guard`."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return None  # no WebSockets here: uvicorn then refuses the handshake
        given, match = scope["path"], PREFIX.fullmatch(scope["path"])
        if match:
            path = match[2] or "/"
            scope = {**scope, "path": path, "raw_path": path.encode(), "path_token": match[1]}
        fault = self._fault(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if scope.get("sets_cookie"):
                    headers.append("Set-Cookie", self._set_cookie())
            await send(message)

        if fault is not None:
            return await _refuse(send_with_headers, *fault)
        if match and not match[2] and scope["path"] == "/":
            # The page's relative addresses need the slash.
            response = RedirectResponse(f"{given}/", 307)
            return await response(scope, receive, send_with_headers)
        return await self._app(scope, receive, send_with_headers)

    def _fault(self, scope: Scope) -> tuple[int, str, str] | None:
        """Return status, code and message of a request that is refused."""
        headers, is_page = Headers(scope=scope), scope["path"] == "/" and scope["method"] == "GET"
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return (
                403, "host",
                f"the request is for the host {hosts[0][:80] if hosts else ''!r}. Expected a name "
                "of this server: start it with --allow-host NAME, or use its address.",
            )  # fmt: skip
        is_allowed = headers.getlist("origin") in [[origin] for origin in self._origins]
        if not (is_page or is_allowed) and _is_foreign(headers, hosts[0]):
            return (
                403, "origin",
                "the request comes from a page of another site. Expected the server's own page or "
                "a program: open the server's address itself.",
            )  # fmt: skip
        if self._is_known(scope, headers):
            return None
        if is_page:
            scope["path"] = "/login"  # the page that asks for the token
            return None
        is_public = PurePosixPath(scope["path"]).suffix in WITHOUT_TOKEN
        if scope["path"] == "/healthz" or (is_public and scope["path"].startswith("/static/")):
            return None
        return (
            401, "token",
            "the request shows no token, or a wrong one. Expected the one that the server printed "
            "at its start: give it as the client's API key, or open the address with it.",
        )  # fmt: skip

    def _is_own(self, host: str) -> bool:
        """Tell whether a Host header names this server; an address is no name that can be bent."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            _ = urlsplit(f"//{host}").port
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_known(self, scope: Scope, headers: Headers) -> bool:
        """Tell whether a request shows the token; in the page's address it sets a cookie."""
        if not self._token:
            return True
        shown = [scope.get("path_token", ""), _authorized(headers)]
        if OF_THE_PAGE.fullmatch(scope["path"]):
            shown.append(self._cookie(headers))
        if any(self._is_right(text) for text in shown):
            return True
        scope["sets_cookie"] = scope["path"] == "/" and self._is_right(_in_query(scope))
        return scope["sets_cookie"]

    def _is_right(self, shown: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "replace"), self._token.encode())

    def _cookie(self, headers: Headers) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found else ""

    def _set_cookie(self) -> str:
        return f"{self.cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"


def framed_headers(origins: Iterable[str]) -> dict[str, str]:
    """Return the headers of every answer where pages of these origins may frame the server's."""
    if not (allowed := " ".join(origins)):
        return HEADERS
    headers = dict(HEADERS)
    del headers["X-Frame-Options"]  # which can name no origin
    policy = headers["Content-Security-Policy"].replace("ancestors 'none'", f"ancestors {allowed}")
    return headers | {"Content-Security-Policy": policy}


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_foreign(headers: Headers, host: str) -> bool:
    """Tell whether a browser says that another page makes the request."""
    sites = [site.strip().lower() for site in headers.getlist("sec-fetch-site")]
    if any(site not in ("same-origin", "none") for site in sites):
        return True
    origins = headers.getlist("origin")
    return any(not _is_origin_of(origin, host) for origin in origins)


def _is_origin_of(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and rest.lower() == host.lower()


def _in_query(scope: Scope) -> str:
    """Return the token in a request's address."""
    try:
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
    except ValueError:  # too many fields
        return ""
    return query.get("token", [""])[0]


def _authorized(headers: Headers) -> str:
    """Return the secret of the header Authorization: a bearer's, or the password after a name."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}, "detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    # The body of the request is not read: the connection cannot be used for another request.
    headers += [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
