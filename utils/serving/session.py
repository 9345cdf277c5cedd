"""One user's work on one image: targets, prompts, masks, undo and redo.

All methods run in the predictor's thread (worker.py). A method that raises an error leaves the
session as it was. The masks are those of `Predictor.segmentation` for the same prompts, and so
those of predict.py, voxel by voxel.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.prediction.predictor import Predictor
from utils.prompts.kinds import MaskPrompt, Prompt, PromptError
from utils.serving.drawings import Drawing, drawing_prompts
from utils.serving.history import History, Snapshot
from utils.serving.label_map import MOST_TARGETS, NO_CHANGE, Change, LabelMap, logits_in
from utils.serving.refusals import Refusal
from utils.serving.scan import Scan

#: The prompts that a session holds at most, of all targets; and the steps back.
MOST_PROMPTS, MOST_STEPS = 2000, 20_000
#: Of the masks to start from in all steps back; the oldest steps are forgotten beyond it.
MASK_BYTES = 2**28
#: Of the image embeddings that a session keeps, tens of cubes; a script on one image may keep more.
EMBEDDING_BYTES = 2**28
#: Of the logits that a session keeps, several large targets.
LOGIT_BYTES = 3 * 2**26


@dataclass(frozen=True)
class Target:
    """What a person sees of a target beside its mask."""

    name: str
    color: str = ""  # "#rrggbb"; empty: the page chooses


class Session:
    """Targets and prompts on an image, every earlier state of them, and the masks.

    Args:
        predictor: of this session alone; sessions may share its network.
        first: name of the first target.
    """

    def __init__(self, predictor: Predictor, first: str = "target 1") -> None:
        self.predictor, self._first = predictor, first
        self.scan: Scan | None = None
        self.revision = 0  # grows with every change
        self.on_change: Callable[[Session], None] = lambda session: None
        self._restart(None)

    def _restart(self, label_map: LabelMap | None) -> None:
        self.targets: dict[int, Target] = {1: Target(self._first)}
        self.history = History({1: ()})
        self._applied: Snapshot = {}  # what the predictor holds
        self._masks = label_map

    @property
    def prompts(self) -> Snapshot:
        """The prompts of each target, empty ones included."""
        return self.history.present

    @property
    def labels(self) -> np.ndarray:
        """The masks as one label map (D, H, W) uint8; do not change it.

        Raises:
            Refusal: there is no image.
        """
        return self._label_map.labels

    @property
    def mask_bytes(self) -> int:
        """Bytes of the masks; the image, which sessions may share, has its own."""
        return 0 if self._masks is None else self._masks.nbytes

    def voxels(self, target: int) -> int:
        """Return the number of voxels of a target's mask."""
        return 0 if self._masks is None else self._masks.voxels(target)

    def whole_mask(self) -> Change:
        """Return the labels in their bounding box."""
        return self._label_map.whole()

    def require_image(self) -> None:
        """Raise `Refusal` if there is no image."""
        if self.scan is None:
            raise Refusal(409, "no_image", "there is no image yet. Open one first.")

    def set_scan(self, scan: Scan) -> None:
        """Open another image. All targets and prompts are dropped, and cannot be brought back.

        Raises:
            InputError: the image cannot be used.
        """
        label_map = LabelMap(scan.shape)  # first: no room for it must change nothing
        self.predictor.set_image(scan.image, affine=scan.volume.affine, hounsfield=scan.hounsfield)
        self.predictor.decoder.embedding_bytes = EMBEDDING_BYTES
        self.predictor.cache.most_bytes = LOGIT_BYTES
        self.scan = scan
        self._restart(label_map)
        self._changed()

    def add(self, target: int, prompt: Prompt, *, run: bool = True) -> Change:
        """Add a prompt to a target; a mask replaces the target's earlier prompts.

        Args:
            run: compute the masks. Without, `refresh` or the next change does it.

        Raises:
            Refusal: there is no such target, or there are too many prompts.
            InputError: the prompt does not fit the image, or the network fails.
        """
        self._require_target(target)
        if not isinstance(prompt, MaskPrompt):
            after = {**self.prompts, target: (*self.prompts[target], prompt)}
            return self._become(after, self.history.push, run)
        change = self._become({**self.prompts, target: (prompt,)}, self.history.push, run)
        self.history.forget_oldest(MASK_BYTES)
        return change

    def draw(self, target: int, drawing: Drawing, *, run: bool = True) -> Change:
        """Add the prompts that a drawing stands for, as one step; the network runs in any case.

        Args:
            run: show the mask. Without, `refresh` or the next change does it.

        Raises:
            Refusal: there is no such target, or there are too many prompts.
            InputError: the drawing does not fit the image, or the network fails.
        """
        self._require_target(target)
        before, earlier = self._applied, self.prompts[target]

        def mask_after(prompts: list[Prompt]) -> np.ndarray:
            self._apply({**self.prompts, target: (*earlier, *prompts)})
            mask = np.zeros(drawing.drawn.shape, bool)
            part = logits_in(self.predictor.shared_logits(target), drawing.box)
            if part is not None:
                mask[part.box] = part.values > 0
            return mask

        try:
            prompts = drawing_prompts(drawing, self.scan.volume, not earlier, mask_after)
            after = {**self.prompts, target: (*earlier, *prompts)}
            return self._become(after, self.history.push, run)
        except BaseException:
            self._apply(before)
            raise

    def refresh(self) -> Change:
        """Compute the masks of prompts that were added with ``run=False``; return what changed."""
        change = self._updated(self._label_map)
        if change.box is not None:
            self._changed()
        return change

    def show(self, labels: np.ndarray) -> Change:
        """Take over a label map (D, H, W) as it is until the masks are computed again."""
        change = self._label_map.show(labels)
        self._changed()
        return change

    def undo(self) -> Change | None:
        """Take back the last step, of whichever target; None if there is none."""
        before = self.history.previous
        return None if before is None else self._become(before, lambda _: self.history.undo())

    def redo(self) -> Change | None:
        """Do the last undone step again; None if there is none."""
        after = self.history.next
        return None if after is None else self._become(after, lambda _: self.history.redo())

    def clear(self, target: int | None = None) -> Change:
        """Remove the prompts of a target, or of all if none is named; the targets stay.

        Raises:
            Refusal: there is no such target.
        """
        self.require_image()
        if target is not None:
            self._require_target(target)
        cleared = self.prompts.keys() if target is None else [target]
        if not any(self.prompts[each] for each in cleared):
            return NO_CHANGE
        return self._become({**self.prompts, **dict.fromkeys(cleared, ())}, self.history.push)

    def forget(self) -> Change:
        """Remove all prompts, and the steps that could be undone; targets and image stay."""
        history = History(dict.fromkeys(self.prompts, ()))

        def start_again(_: Snapshot) -> None:
            self.history = history

        return self._become(history.present, start_again)

    def add_target(self, name: str = "", color: str = "") -> int:
        """Add an empty target at the end of the list; return its id.

        Raises:
            Refusal: there are as many targets as a label map holds.
        """
        self.require_image()
        number = max(self.targets) + 1
        if number > MOST_TARGETS:  # then an id that no target has now
            number = next((n for n in range(1, MOST_TARGETS + 1) if n not in self.prompts), 0)
        if not number:
            raise Refusal(
                409, "full_targets",
                f"there are {MOST_TARGETS} targets. Expected at most as many as a label map "
                "holds: save these masks and clear the list.",
            )  # fmt: skip
        self.replace(
            {number: Target(name or f"target {number}", color)}, {**self.prompts, number: ()}
        )
        return number

    def describe_target(
        self, target: int, name: str | None = None, color: str | None = None
    ) -> None:
        """Change name or colour of a target; this is no step that can be undone.

        Raises:
            Refusal: there is no such target.
        """
        self._require_target(target)
        given = {"name": name, "color": color}
        changes = {key: value for key, value in given.items() if value is not None}
        self.targets[target] = replace(self.targets[target], **changes)
        self._changed()

    def remove_target(self, target: int) -> Change:
        """Remove a target with its prompts; `undo` brings it back. The last one stays, empty.

        Raises:
            Refusal: there is no such target.
        """
        self._require_target(target)
        if len(self.prompts) == 1:
            return self.clear(target)
        rest = {number: prompts for number, prompts in self.prompts.items() if number != target}
        return self._become(rest, self.history.push)

    def replace(self, targets: Mapping[int, Target], prompts: Snapshot) -> Change:
        """Replace all targets and prompts by others, as one step.

        Args:
            targets: name and colour of each id in ``prompts`` that is new.

        Raises:
            Refusal: there are too many prompts.
            InputError: a prompt does not fit the image, or the network fails.
        """
        before, self.targets = self.targets, {**self.targets, **targets}
        try:
            return self._become(dict(prompts), self.history.push)
        except BaseException:
            self.targets = before
            raise

    def restore(
        self, targets: Mapping[int, Target], prompts: Snapshot, order: Sequence[int]
    ) -> Change:
        """Take up earlier work; in a session without any, each prompt is a step to be undone.

        Args:
            targets, prompts: as for `replace`.
            order: the target of each prompt in the order given; see `History.one_by_one`.

        Raises:
            Refusal: there are too many prompts.
            InputError: a prompt does not fit the image, or the network fails.
        """
        if self.history.undo_steps:
            return self.replace(targets, prompts)
        history = History.one_by_one(prompts, order)
        before, self.targets = self.targets, {**self.targets, **targets}

        def take_up(_: Snapshot) -> None:
            self.history = history

        try:
            return self._become(history.present, take_up)
        except BaseException:
            self.targets = before
            raise

    def _become(
        self, snapshot: Snapshot, record: Callable[[Snapshot], None], run: bool = True
    ) -> Change:
        """Make the masks those of a snapshot, then record it; on an error nothing has changed."""
        label_map, before = self._label_map, self._applied
        if sum(map(len, snapshot.values())) > max(MOST_PROMPTS, sum(map(len, before.values()))):
            raise _too_many(f"{MOST_PROMPTS} prompts")
        if record == self.history.push and self.history.undo_steps >= MOST_STEPS:
            raise _too_many(f"{MOST_STEPS} steps")
        try:
            self._apply(snapshot)
            change = self._updated(label_map) if run else NO_CHANGE
        except BaseException:
            self._apply(before)
            raise
        record(snapshot)
        self._changed()
        return change

    def _apply(self, snapshot: Snapshot) -> None:
        """Give the predictor the prompts of a snapshot; equal prompts keep what was computed."""
        applied = {target: list(prompts) for target, prompts in self._applied.items()}
        for target in sorted({*applied, *snapshot}):
            old, new = applied.get(target, []), snapshot.get(target, ())
            same = 0
            while same < min(len(old), len(new)) and old[same] == new[same]:
                same += 1
            if same == 0 and old:
                self.predictor.reset(target)
            for _ in range(len(old) - same if same else 0):
                self.predictor.undo(target=target)
            applied[target] = old[:same]
            self._applied = applied  # true also if the next prompt is refused
            for prompt in new[same:]:
                self.predictor.add(prompt, target=target)
                applied[target].append(prompt)
        self._applied = {target: tuple(prompts) for target, prompts in applied.items() if prompts}

    def _updated(self, label_map: LabelMap) -> Change:
        return label_map.update(self.predictor.versions(), self.predictor.shared_logits)

    def _changed(self) -> None:
        self.revision += 1
        self.on_change(self)

    @property
    def _label_map(self) -> LabelMap:
        self.require_image()
        return self._masks

    def _require_target(self, target: int) -> None:
        self.require_image()
        if target not in self.prompts:
            raise Refusal(
                404, "no_target",
                f"there is no target {target}. Expected one of {sorted(self.prompts)}: choose one "
                "from the list.",
            )  # fmt: skip


def _too_many(most: str) -> PromptError:
    return PromptError(
        f"the session holds {most}, which is the most. Expected fewer: save the masks, and open "
        "the image anew."
    )
