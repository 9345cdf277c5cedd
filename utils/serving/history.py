"""The prompts of all targets, and every earlier state of them: undo and redo of any depth."""

from collections.abc import Mapping

from utils.prompts.kinds import Prompt

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
