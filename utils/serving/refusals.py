"""A request that is not fulfilled: the HTTP status, a code for programs and a text for people."""

from collections.abc import Mapping

from utils.errors import InputError


class Refusal(InputError):
    """A request that cannot be fulfilled; the session stays as it was.

    Args:
        status: of HTTP, 4xx, or 503 where the server has no room.
        code: one word for programs.
        message: for people, in plain text.
        headers: further headers of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


def full(message: str) -> Refusal:
    """Return the refusal of a server that has no room now; the client may try again."""
    return Refusal(503, "full", message, {"Retry-After": "10"})
