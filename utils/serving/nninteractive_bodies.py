"""The JSON that clients of nnInteractive send, in bodies and in the header ``X-Meta``."""

import math
from typing import TypeVar

import msgspec
from starlette.requests import Request

from utils.files.npz import SPACING_MM
from utils.files.strict_json import JsonError, parse_json
from utils.serving.refusals import Refusal
from utils.serving.uploads import read_body

Triple = tuple[float, float, float]
Side = tuple[float, float]


class Interaction(msgspec.Struct, kw_only=True):
    """What every prompt says; the keys that are left out have the client's defaults."""

    include_interaction: bool = True
    run_prediction: bool = True
    override_capability_checks: bool = False


class AddPoint(Interaction):
    """A click at a voxel of the array."""

    coordinates: Triple


class AddBox(Interaction):
    """A half-open box of the array; it may reach beyond it."""

    bbox_coords: tuple[Side, Side, Side]


class MaskMeta(Interaction):
    """A drawing, in a box of the array."""

    interaction_bbox: tuple[Side, Side, Side] | None = None


class SegMeta(msgspec.Struct):
    """A segmentation to start from."""

    run_prediction: bool = False
    override_capability_checks: bool = False


class ImageMeta(msgspec.Struct):
    """What is said about the image; ``spacing`` is in the array's order, in mm."""

    image_properties: dict[str, object] = {}


class TargetBuffer(msgspec.Struct):
    """Shape and dtype of the client's mask."""

    shape: tuple[int, int, int]
    dtype: str


class AutoZoom(msgspec.Struct):
    """Whether the reference follows large targets."""

    do_autozoom: bool


class Predict(msgspec.Struct):
    """A wish of the reference that is not needed here."""

    force_full_refine: bool = False


Body = TypeVar("Body")


async def body_of(request: Request, kind: type[Body]) -> Body:
    """Return a request's JSON body; unknown keys are left out, as newer clients may send them.

    Raises:
        Refusal: it is too large, no JSON, or of other types.
    """
    return _converted(await read_body(request) or b"{}", kind, "body")


def meta_of(request: Request, kind: type[Body]) -> Body:
    """Return the JSON of a request's header ``X-Meta``; see `body_of`."""
    return _converted(request.headers.get("x-meta", "{}"), kind, "header X-Meta")


def spacing_of(meta: ImageMeta) -> Triple:
    """Return the voxel size in mm, in array order; 1 mm where the client does not say it.

    Raises:
        Refusal: it is no voxel size.
    """
    given = meta.image_properties.get("spacing", (1.0, 1.0, 1.0))
    numbers = given if isinstance(given, (list, tuple)) and len(given) == 3 else ()
    low, high = SPACING_MM
    if not numbers or not all(_is_number(mm) and low <= mm <= high for mm in numbers):
        raise Refusal(
            400, "bad_image",
            f"the spacing is {str(given)[:80]}. Expected three numbers above 0, in mm, in the "
            "order of the array's axes.",
        )  # fmt: skip
    return tuple(map(float, numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _converted(text: str | bytes, kind: type[Body], what: str) -> Body:
    try:
        found = msgspec.convert(parse_json(text), kind)
    except (JsonError, msgspec.ValidationError) as error:
        raise Refusal(
            400, "bad_request",
            f"the request's {what} cannot be used: {str(error)[:200]}. Expected JSON as "
            "nninteractive-client 2.5 or newer sends it: update the client.",
        ) from error  # fmt: skip
    for name in ("coordinates", "bbox_coords"):
        numbers = getattr(found, name, ())
        flat = [n for part in numbers for n in (part if isinstance(part, tuple) else (part,))]
        if not all(math.isfinite(number) and abs(number) < 2**31 for number in flat):
            raise Refusal(400, "bad_prompt", f"{name} holds numbers that are no voxels.")
    return found
