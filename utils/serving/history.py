"""The prompts of all targets, and every earlier state of them: undo and redo of any depth."""

from collections.abc import Mapping

from utils.prompts.kinds import MaskPrompt, Prompt

#: The prompts of each target, in order. A mask stands first or nowhere. Never changed in place.
Snapshot = Mapping[int, tuple[Prompt, ...]]


class History:
    """The present snapshot with those before it and those that were undone."""

    def __init__(self, present: Snapshot) -> None:
        self.present = present
        self._before: list[Snapshot] = []
        self._undone: list[Snapshot] = []

    @property
    def undo_steps(self) -> int:
        """How many steps can be undone."""
        return len(self._before)

    @property
    def redo_steps(self) -> int:
        """How many undone steps can be done again."""
        return len(self._undone)

    @property
    def previous(self) -> Snapshot | None:
        """The snapshot that `undo` leads to; None if there is none."""
        return self._before[-1] if self._before else None

    @property
    def next(self) -> Snapshot | None:
        """The snapshot that `redo` leads to; None if there is none."""
        return self._undone[-1] if self._undone else None

    def push(self, snapshot: Snapshot) -> None:
        """Make a new snapshot the present one; undone snapshots are dropped."""
        self._before.append(self.present)
        self._undone.clear()
        self.present = snapshot

    def undo(self) -> None:
        """Go back to the previous snapshot; there must be one."""
        self._undone.append(self.present)
        self.present = self._before.pop()

    def redo(self) -> None:
        """Go forward to the snapshot that was undone last; there must be one."""
        self._before.append(self.present)
        self.present = self._undone.pop()

    def forget_oldest(self, mask_bytes: int) -> None:
        """Forget the oldest steps until the masks in all others take at most so many bytes."""
        seen: set[int] = set()  # masks, each counted once: steps share them
        taken = sum(_new_mask_bytes(snapshot, seen) for snapshot in (self.present, *self._undone))
        for number in range(len(self._before) - 1, -1, -1):
            taken += _new_mask_bytes(self._before[number], seen)
            if taken > mask_bytes:
                del self._before[: number + 1]
                return


def _new_mask_bytes(snapshot: Snapshot, seen: set[int]) -> int:
    """Return the bytes of the masks in a snapshot that are not in ``seen``, and add them to it."""
    first = [prompts[0] for prompts in snapshot.values() if prompts]
    masks = [each for each in first if isinstance(each, MaskPrompt) and id(each) not in seen]
    seen.update(map(id, masks))
    return sum(mask.nbytes for mask in masks)
