"""The prompts of all targets, and every earlier state of them: undo and redo of any depth."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

from utils.prompts.kinds import MaskPrompt, Prompt

#: The prompts of each target, in order. A mask stands first or nowhere. Never changed in place.
Snapshot = Mapping[int, tuple[Prompt, ...]]


class History:
    """The present snapshot with those before it and those that were undone."""

    def __init__(self, present: Snapshot) -> None:
        self.present = present
        self._before: list[Snapshot] = []
        self._undone: list[Snapshot] = []
        # Steps whose prompts are in order, the last of them, and the order; see `order`.
        self._ordered: tuple[int, Snapshot, list[tuple[int, int]]] = (0, {}, [])

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

    def order(self) -> list[int]:
        """Return the target of each present prompt, in the order in which they were given."""
        steps = (*self._before, self.present)
        count, last, given = self._ordered
        if not (0 < count <= len(steps) and steps[count - 1] is last):
            count, last, given = 0, {}, []
        for snapshot in steps[count:]:  # after a click, the last one alone
            given = _ordered(given, last, snapshot)
            last = snapshot
        self._ordered = len(steps), last, given
        return [target for target, _ in given]

    @classmethod
    def one_by_one(cls, present: Snapshot, order: Sequence[int]) -> "History":
        """Return a history in which the present prompts were given one after the other.

        Args:
            order: the target of each prompt, as `order` returns it. Where it is of other prompts,
                those of the first target come first.
        """
        if sorted(order) != sorted(_by_target(present)):
            order = _by_target(present)
        history, given = cls(dict.fromkeys(present, ())), dict.fromkeys(present, 0)
        for target in order:
            given[target] += 1
            before = history.present
            history.push({**before, target: present[target][: given[target]]})
        return history

    def forget_oldest(self, mask_bytes: int) -> None:
        """Forget the oldest steps until the masks in all others take at most so many bytes."""
        seen: set[int] = set()  # masks, each counted once: steps share them
        taken = sum(_new_mask_bytes(snapshot, seen) for snapshot in (self.present, *self._undone))
        for number in range(len(self._before) - 1, -1, -1):
            taken += _new_mask_bytes(self._before[number], seen)
            if taken > mask_bytes:
                del self._before[: number + 1]
                return


def _ordered(given: list[tuple[int, int]], old: Snapshot, new: Snapshot) -> list[tuple[int, int]]:
    """Return the order of a snapshot's prompts, from that of the snapshot before it.

    Args:
        given: the target of each prompt, and its place among the target's own.
    """
    for target in {*old, *new}:
        before, after = old.get(target, ()), new.get(target, ())
        if before is after:
            continue
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
        same = sum(1 for _ in pairs)
        if same < len(before):
            given = [each for each in given if each[0] != target or each[1] < same]
        given = given + [(target, place) for place in range(same, len(after))]
    return given


def _by_target(snapshot: Snapshot) -> list[int]:
    """Return the target of each prompt, target after target."""
    return [target for target, prompts in snapshot.items() for _ in prompts]


def _new_mask_bytes(snapshot: Snapshot, seen: set[int]) -> int:
    """Return the bytes of the masks in a snapshot that are not in ``seen``, and add them to it."""
    first = [prompts[0] for prompts in snapshot.values() if prompts]
    masks = [each for each in first if isinstance(each, MaskPrompt) and id(each) not in seen]
    seen.update(map(id, masks))
    return sum(mask.nbytes for mask in masks)
