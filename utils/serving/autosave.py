"""Every session's prompts on disk after each change, so that a crash or restart loses no mask.

A file holds targets and prompts, from which the same network computes the same masks. It does not
hold the image: a session is taken up again where the same image is opened. Files are named by the
digest of the image and the id of the session, so that no other file is ever replaced.
"""

import base64
import json
import logging
import re
import secrets
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.strict_json import read_json
from utils.prompts.kinds import BoxPrompt, MaskPrompt, Prompt, checked_box, checked_click
from utils.serving.history import Snapshot
from utils.serving.label_map import MOST_TARGETS, Change, box_of
from utils.serving.prompt_file import prompt_entry
from utils.serving.refusals import Refusal
from utils.serving.session import MOST_PROMPTS, Session, Target

NAME = re.compile(r"([0-9a-f]{32})_([0-9a-f]{32})\.json")  # digest of the image, id of the session
ID = re.compile("[0-9a-f]{32}")
MOST_LISTED = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """One autosave, as the list of a session's earlier work shows it."""

    path: Path
    id: str
    saved: str  # time in UTC, ISO 8601
    targets: int
    prompts: int


class Autosaves:
    """The folder of autosaves.

    Args:
        folder: made with the first file.
        network: a text that tells the network from others, such as a digest of its file.
    """

    def __init__(self, folder: Path, network: str) -> None:
        self.folder, self.network = folder, network
        self._warned = False

    def write(self, session_id: str, session: Session) -> None:
        """Write a session's prompts; a failure is logged once and does not stop the session."""
        path = self._path(session.scan.digest, session_id)
        try:
            if not any(session.prompts.values()):
                path.unlink(missing_ok=True)
                return
            with atomic_path(path) as temporary:
                temporary.write_bytes(_content(session, self.network))
        except (InputError, OSError, MemoryError) as error:
            if not self._warned:
                logger.warning("prompts are not saved: %s", error)
            self._warned = True

    def find(self, digest: str) -> list[Saved]:
        """Return the autosaves of an image, the newest first; unreadable ones are left out."""
        paths = self.folder.glob(f"{digest}_*.json") if self.folder.is_dir() else []
        named = sorted((p for p in paths if NAME.fullmatch(p.name)), key=_age, reverse=True)
        found = []
        for path in named[:MOST_LISTED]:
            try:
                content = read_json(path, "an autosave", dict)
                targets = content["targets"]
                prompts = sum(len(target["prompts"]) for target in targets)
                saved = str(content["saved"])[:32]
            except (InputError, LookupError, TypeError) as error:
                logger.warning("%s: left out (%s)", path.name, error)
                continue
            session_id = NAME.fullmatch(path.name)[2]
            found.append(Saved(path, session_id, saved, len(targets), prompts))
        return found

    def has(self, digest: str, session_id: str) -> bool:
        """Tell whether there is an autosave of this image and session."""
        return bool(ID.fullmatch(session_id)) and self._path(digest, session_id).is_file()

    def set_aside(self, digest: str, session_id: str) -> None:
        """Give another id to a session's autosave that the session would write over."""
        if self.has(digest, session_id):
            other = self._path(digest, secrets.token_hex(16))
            self._path(digest, session_id).replace(other)

    def restore(self, session_id: str, session: Session) -> tuple[Change, list[str]]:
        """Replace a session's targets and prompts by those of an autosave of its image.

        Undo then takes back the restored prompts, the last one first.

        Returns:
            What changed, and notes for the user.

        Raises:
            InputError: there is no such autosave of this image, or it is damaged.
        """
        session.require_image()
        if not ID.fullmatch(session_id):
            raise Refusal(404, "no_such_path", "there is no such autosave. Choose one of the list.")
        path = self._path(session.scan.digest, session_id)
        content = read_json(path, "an autosave of this image", dict)
        try:
            targets, prompts = _targets_of(content, session.scan.shape)
            order = [int(target) for target in content.get("order", [])]
        except (AttributeError, LookupError, TypeError, ValueError, zlib.error) as error:
            raise InputError(
                f"{path.name}: is damaged ({error}). Expected an autosave of this program: start "
                "afresh."
            ) from error
        change = session.restore(targets, prompts, order)
        if content.get("network") == self.network:
            return change, []
        return change, ["These prompts were saved with another network, so the masks may differ."]

    def _path(self, digest: str, session_id: str) -> Path:
        return self.folder / f"{digest}_{session_id}.json"


def _content(session: Session, network: str) -> bytes:
    targets = [
        {
            "id": number,
            "name": session.targets[number].name,
            "color": session.targets[number].color,
            "prompts": [_entry(prompt) for prompt in prompts],
        }
        for number, prompts in session.prompts.items()
    ]
    saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = {"version": 1, "image": session.scan.name, "saved": saved, "network": network}
    return json.dumps(content | {"targets": targets, "order": session.history.order()}).encode()


def _entry(prompt: Prompt) -> dict:
    if not isinstance(prompt, MaskPrompt):
        return prompt_entry(prompt)
    mask = prompt.mask
    box = box_of(mask)
    bits = zlib.compress(np.packbits(mask[box]).tobytes(), 1)
    sides = [[side.start, side.stop] for side in box]
    return {"mask": {"box": sides, "bits": base64.b64encode(bits).decode()}}


def _targets_of(content: dict, shape: tuple[int, ...]) -> tuple[dict[int, Target], Snapshot]:
    targets, snapshot = {}, {}
    for entry in content["targets"]:
        number = entry["id"]
        if type(number) is not int or not 0 < number <= MOST_TARGETS or number in targets:
            raise ValueError(f"target {number!r:.20}")
        targets[number] = Target(str(entry["name"])[:64], str(entry["color"])[:7])
        snapshot[number] = tuple(_prompt(each, shape) for each in entry["prompts"])
    if not targets or sum(map(len, snapshot.values())) > MOST_PROMPTS:
        raise ValueError(f"{len(targets)} targets")
    return targets, snapshot


def _prompt(entry: dict, shape: tuple[int, ...]) -> Prompt:
    if "at" in entry:
        return checked_click(entry["at"], entry["positive"], shape)
    if "mask" in entry:
        return _mask(entry["mask"], shape)
    return _box(entry["box"], shape)


def _box(box: dict, shape: tuple[int, ...]) -> BoxPrompt:
    stop = [number + 1 for number in box["to"]]
    return checked_box(box["from"], stop, shape, middle_slice=box.get("middle_slice", False))


def _mask(entry: dict, shape: tuple[int, ...]) -> MaskPrompt:
    sides = entry["box"]
    inside = all(
        type(a) is int and type(b) is int and 0 <= a < b <= n
        for (a, b), n in zip(sides, shape, strict=True)
    )
    if not inside:
        raise ValueError("a mask outside of the image")
    mask = np.zeros(shape, bool)
    part = mask[tuple(slice(a, b) for a, b in sides)]
    stream = zlib.decompressobj()
    bits = stream.decompress(base64.b64decode(entry["bits"], validate=True), part.size // 8 + 2)
    part[...] = np.unpackbits(np.frombuffer(bits, np.uint8), count=part.size).reshape(part.shape)
    return MaskPrompt(mask)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
