"""A session's prompts as the JSON file that predict.py reads, and back.

The file holds the prompts of every target in their order, so that predict.py computes the same
masks, voxel by voxel.
"""

import json

from utils.errors import InputError
from utils.prompts.files import parse_prompts
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt, Prompt
from utils.serving.history import Snapshot
from utils.serving.label_map import MOST_TARGETS
from utils.serving.refusals import Refusal
from utils.serving.scan import Scan
from utils.serving.session import Session, Target


def prompts_json(session: Session) -> bytes:
    """Return the prompts file of a session; targets without prompts are left out.

    Raises:
        Refusal: a target starts from a mask, which such a file cannot hold.
    """
    targets = []
    for number, prompts in session.prompts.items():
        if any(isinstance(prompt, MaskPrompt) for prompt in prompts):
            raise Refusal(
                409, "not_expressible",
                f"target {number} starts from a mask. Expected points and boxes alone, which is "
                "what a file of prompts holds: save the masks instead.",
            )  # fmt: skip
        if prompts:
            entry = {"id": number, "name": session.targets[number].name}
            targets.append(entry | _listed(prompts))
    return json.dumps({"coordinates": "zyx", "targets": targets}, indent=1).encode()


def read_prompts_json(text: bytes, scan: Scan) -> tuple[dict[int, Target], Snapshot]:
    """Return names and prompts of the targets in a prompts file for an image.

    Raises:
        Refusal: the text is no such file, or a prompt lies outside of the image.
    """
    volume = scan.volume
    try:
        found = parse_prompts(
            text, "the file of prompts", volume.shape, volume.affine, volume.itk_affine
        )
    except InputError as error:
        raise Refusal(400, "bad_prompts_file", str(error)) from error
    above = [target.id for target in found if target.id > MOST_TARGETS]
    if above or not found:
        given = f"target {above[0]}" if above else "no target"
        raise Refusal(
            400, "bad_prompts_file",
            f"the file of prompts has {given}. Expected at least one, with ids from 1 to "
            f"{MOST_TARGETS}: use predict.py for others.",
        )  # fmt: skip
    targets = {each.id: Target(each.name[:64] or f"target {each.id}") for each in found}
    return targets, {each.id: tuple(each.prompts) for each in found}


def prompt_entry(prompt: Click | BoxPrompt) -> dict:
    """Return one prompt as an entry of the file's list ``prompts``."""
    if isinstance(prompt, Click):
        return {"at": list(prompt.zyx), "positive": prompt.is_foreground}
    box = {
        "from": [_plain(start) for start in prompt.start_zyx],
        "to": [_plain(stop - 1) for stop in prompt.stop_zyx],
    }
    return {"box": box | ({"middle_slice": True} if prompt.middle_slice else {})}


def _listed(prompts: tuple[Prompt, ...]) -> dict:
    """Return the prompts of a target in the file's short form where their order allows it."""
    entries = [prompt_entry(prompt) for prompt in prompts]
    boxes = [number for number, prompt in enumerate(prompts) if isinstance(prompt, BoxPrompt)]
    if boxes not in ([], [0]):
        return {"prompts": entries}
    box = {"box": entries[0]["box"]} if boxes else {}
    return box | {"points": entries[len(boxes) :]}


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number
