"""A session as the page sees it: the JSON of its image, targets and prompts."""

from utils.prompts.kinds import BoxPrompt, Click, Prompt
from utils.serving.context import Context
from utils.serving.prompt_file import prompt_entry
from utils.serving.registry import OpenSession
from utils.serving.scan import Scan
from utils.serving.session import Session


def state_of(context: Context, each: OpenSession, *, anew: bool = False) -> dict:
    """Return the state of a session; its notes are given once.

    Args:
        anew: look for autosaves of the image again.
    """
    session, notes = each.session, list(each.notes)
    each.notes.clear()
    if anew or "earlier" not in each.extra:
        each.extra["earlier"] = _earlier(context, session)
    return {
        "session": each.id,
        "revision": session.revision,
        "image": session.scan and image_entry(session.scan),
        "targets": [target_entry(session, number) for number in session.prompts],
        "undo": session.history.undo_steps,
        "redo": session.history.redo_steps,
        "earlier": each.extra["earlier"],
        "notes": notes,
    }


def image_entry(scan: Scan) -> dict:
    """Return name, grid and values of an image."""
    low, high = scan.range
    view = scan.view_dtype
    return {
        "name": scan.name,
        "shape_zyx": list(scan.shape),
        "spacing_zyx": list(scan.volume.spacing_zyx),
        "affine": scan.volume.affine.tolist(),
        "dtype": view.name,
        "low": low,
        "high": high,
        "is_ct": scan.is_ct,
        "mapping": scan.mapping,
        "warning": scan.warning,
        "view_bytes": scan.volume.array.size * view.itemsize,
        "digest": scan.digest,
    }


def target_entry(session: Session, number: int) -> dict:
    """Return name, colour, size and prompts of a target."""
    target, voxels = session.targets[number], session.voxels(number)
    voxel_ml = 0.0
    if session.scan is not None:
        z, y, x = session.scan.volume.spacing_zyx
        voxel_ml = z * y * x / 1000
    return {
        "id": number,
        "name": target.name,
        "color": target.color,
        "voxels": voxels,
        "ml": round(voxels * voxel_ml, 3),
        "prompts": [_entry(prompt) for prompt in session.prompts[number]],
    }


def _earlier(context: Context, session: Session) -> list[dict]:
    found = context.autosaves.find(session.scan.digest) if session.scan else []
    return [
        {"id": one.id, "saved": one.saved, "targets": one.targets, "prompts": one.prompts}
        for one in found
        if context.registry.is_left(one.id)
    ]


def _entry(prompt: Prompt) -> dict:
    if isinstance(prompt, Click):
        return {"type": "point"} | prompt_entry(prompt)
    if isinstance(prompt, BoxPrompt):
        return {"type": "box"} | prompt_entry(prompt)["box"]
    return {"type": "mask", "voxels": int(prompt.mask.sum())}
