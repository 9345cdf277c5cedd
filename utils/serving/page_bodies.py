"""The JSON bodies that the page sends, checked for keys and types."""

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from utils.files.names import has_control_characters
from utils.files.strict_json import JsonError, parse_json
from utils.serving.refusals import Refusal
from utils.serving.uploads import read_body

Place = tuple[int, int, int]


class Point(msgspec.Struct, forbid_unknown_fields=True, tag="point"):
    """A click on or beside a target, at voxel (z, y, x)."""

    target: int
    at: Place
    positive: bool = True


class Box(msgspec.Struct, forbid_unknown_fields=True, tag="box", rename={"corner": "from"}):
    """A box around a target; both corners are inside."""

    target: int
    corner: Place
    to: Place


class Resume(msgspec.Struct, forbid_unknown_fields=True):
    """The session to take up again, if any."""

    resume: str = ""


class Earlier(msgspec.Struct, forbid_unknown_fields=True):
    """The autosave to take up."""

    id: str


class NewTarget(msgspec.Struct, forbid_unknown_fields=True):
    """Name and colour of a new target."""

    name: str = ""
    color: str = ""


class ChangedTarget(msgspec.Struct, forbid_unknown_fields=True):
    """A target's new name or colour."""

    name: str | None = None
    color: str | None = None


class Clear(msgspec.Struct, forbid_unknown_fields=True):
    """The target whose prompts are removed; None: all."""

    target: int | None


class Save(msgspec.Struct, forbid_unknown_fields=True):
    """The masks to write into ``--save-dir``."""

    kind: str = "labels"
    format: str = "nifti"


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty object."""


Body = TypeVar("Body")


async def body_of(request: Request, kind: type[Body]) -> Body:
    """Return a request's JSON body.

    Raises:
        Refusal: it is too large, no JSON, or of other keys or types.
    """
    text = await read_body(request)
    try:
        return msgspec.convert(parse_json(text or b"{}"), kind)
    except (JsonError, msgspec.ValidationError) as error:
        raise Refusal(
            400, "bad_request",
            f"the request's body cannot be used: {str(error)[:200]}. Expected JSON as "
            "docs/serving.md describes it.",
        ) from error  # fmt: skip


def checked_name(name: str) -> str:
    """Return a target's name.

    Raises:
        Refusal: it is too long, or holds control characters.
    """
    name = name.strip()
    if len(name) > 64 or has_control_characters(name):
        raise Refusal(
            400, "bad_request", "the name has more than 64 characters, or control characters. "
            "Expected a short name: give another.",
        )  # fmt: skip
    return name


def checked_color(color: str) -> str:
    """Return a colour as "#rrggbb", or nothing.

    Raises:
        Refusal: it is written otherwise.
    """
    if color and not re.fullmatch("#[0-9a-fA-F]{6}", color):
        raise Refusal(400, "bad_request", "the colour is not written as #rrggbb. Give it so.")
    return color


def checked_target(text: str) -> int:
    """Return the id of a target in a request's address.

    Raises:
        Refusal: no target has such an id.
    """
    if not re.fullmatch("[0-9]{1,3}", text):
        raise Refusal(
            404, "no_target", f"there is no target {text[:20]!a}. Choose one of the list."
        )
    return int(text)
