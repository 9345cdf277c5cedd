"""The logits of an image's targets, kept between calls within a bound on memory.

A target's logits change in full with its own prompts. A foreground click of another target changes
them in a spot around the click alone, in place. So a label map of many targets is renewed where
something changed, and nowhere else (utils/serving/label_map.py).
"""

from typing import NamedTuple

from utils.prediction.honouring import ForegroundClicks, Honoured, Spot, honour_clicks
from utils.prediction.masks import Box, LogitBox
from utils.prediction.session import ImageSession, State
from utils.prompts.kinds import Click

#: Bytes of logits that are kept, enough for hundreds of small targets.
LOGIT_BYTES = 2**29


class LogitsVersion(NamedTuple):
    """Which logits a target has. They differ from others of the same mark in the spots alone."""

    box: Box  # that they fill
    mark: object  # of the target's own prompts
    spots: frozenset[Spot]  # changed so that clicks are honoured


class Asked(NamedTuple):
    """A target and the prompts that its logits are computed from."""

    target: int
    state: State
    clicks: list[Click]  # the target's own, in the order clicked


class LogitCache:
    """Logits in which all clicks are honoured.

    Args:
        session: computes logits from a target's state.
    """

    def __init__(self, session: ImageSession) -> None:
        self.most_bytes: int | None = None  # None: `LOGIT_BYTES`
        self._session = session
        self._kept: dict[int, _Kept] = {}
        self._calls = 0

    def forget(self, target: int | None = None) -> None:
        """Forget the logits of a target, or of all if none is named."""
        if target is None:
            self._kept.clear()
        else:
            self._kept.pop(target, None)

    def new_call(self) -> None:
        """Begin a call of the user: what earlier calls used may be dropped from now on."""
        self._calls += 1

    def version(self, asked: Asked, foreground: ForegroundClicks) -> LogitsVersion:
        """Return which logits a target has.

        Args:
            foreground: the foreground clicks of all targets.
        """
        kept = self._current(asked, foreground)
        self._drop_some(kept)
        return kept.version

    def logits(self, asked: Asked, foreground: ForegroundClicks) -> LogitBox:
        """Return a target's logits; a later call may change them in place."""
        kept = self._current(asked, foreground)
        if kept.honoured is None:
            self._compute(asked.target, kept, foreground)
        kept.used, logits = self._calls, kept.honoured.logits
        self._drop_some(kept)
        return logits

    @property
    def nbytes(self) -> int:
        """Bytes of all logits that are kept."""
        return sum(kept.nbytes for kept in self._kept.values())

    def _current(self, asked: Asked, foreground: ForegroundClicks) -> "_Kept":
        """Return a target's logits of its present prompts; their values may be dropped."""
        target, state, clicks = asked
        kept = self._kept.get(target)
        # A click outside of the region leaves the state as it is, but is honoured all the same.
        if kept is None or kept.state is not state or kept.clicks != clicks:
            kept = self._kept[target] = _Kept(state, clicks)
        if kept.version is None or kept.others != foreground.of_others(target, kept.raw_box):
            self._compute(target, kept, foreground)
        return kept

    def _compute(self, target: int, kept: "_Kept", foreground: ForegroundClicks) -> None:
        before, kept.honoured = kept.honoured, None  # no longer valid, whatever happens next
        raw = before.undone() if before else self._session.logits(kept.state)
        others, honoured = foreground.of_others(target, raw.box), Honoured(raw, raw.box, {})
        if self._session.options.honour_clicks:
            scene, cell_mm = self._session.scene, self._session.cell_mm(kept.state)
            honoured = honour_clicks(
                raw, kept.clicks, others, tuple(scene.voxel_mm), cell_mm, scene.shape
            )
        mark = kept.version.mark if kept.version else object()
        kept.version = LogitsVersion(honoured.logits.box, mark, honoured.spots)
        kept.raw_box, kept.others = raw.box, others
        kept.honoured, kept.used = honoured, self._calls

    def _drop_some(self, newest: "_Kept") -> None:
        """Drop logits until the others have room: unused ones of earlier calls, then the newest.

        A call that needs more logits than there is room for computes the same few anew each time.
        Were the oldest dropped, it would compute all of them.
        """
        too_many = self.nbytes - (LOGIT_BYTES if self.most_bytes is None else self.most_bytes)
        unused = [kept for kept in self._kept.values() if kept.used < self._calls]
        for kept in (*sorted(unused, key=lambda kept: kept.used), newest):
            if too_many <= 0:
                break
            too_many -= kept.nbytes
            kept.honoured = None


class _Kept:
    """A target's logits; their values are dropped to save memory, and then computed again."""

    def __init__(self, state: State, clicks: list[Click]) -> None:
        self.state, self.clicks = state, clicks  # that they are computed from
        self.honoured: Honoured | None = None  # None: dropped
        self.raw_box: Box | None = None  # of the network's logits
        self.others: list[Click] | None = None  # foreground clicks of other targets in that box
        self.version: LogitsVersion | None = None  # None: never computed
        self.used = 0  # the call that used the values last

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.honoured.nbytes if self.honoured else 0
