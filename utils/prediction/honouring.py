"""Logits corrected so that masks agree with every click.

The network may leave a clicked voxel on the wrong side of the mask. Around such a click a spot of
the logits is changed. The values before are kept, so that a target's logits need not be computed
again where a click of another target comes or goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utils.prediction.masks import SURE_LOGIT, Box, LogitBox, within
from utils.prompts.kinds import Click
from utils.volumes.geometry import Triple

#: Standard deviation of a corrected spot: cells of the low-resolution mask, and voxels at least.
SPOT_CELLS, SPOT_VOXELS = 1.0, 1.0
#: Radius at which a spot ends, in standard deviations.
SPOT_REACH = 2.5


class ForegroundClicks:
    """The foreground clicks of all targets, to be searched by place; there may be thousands.

    Args:
        clicks: pairs (target id, click).
    """

    def __init__(self, clicks: list[tuple[int, Click]]) -> None:
        self._clicks = [click for _, click in clicks]
        self._targets = np.array([target for target, _ in clicks])
        self._places = np.array([click.zyx for click in self._clicks]).reshape(-1, 3)

    def of_others(self, target: int, box: Box) -> list[Click]:
        """Return the clicks of other targets that lie in a box."""
        start, stop = ([getattr(side, end) for side in box] for end in ("start", "stop"))
        inside = (self._places >= start) & (self._places < stop)
        found = np.flatnonzero(inside.all(axis=1) & (self._targets != target))
        return [self._clicks[number] for number in found]


def honour_clicks(
    logits: LogitBox,
    clicks: Sequence[Click],
    clicks_of_others: Sequence[Click],
    voxel_mm: Triple,
    cell_mm: float,
    shape: tuple[int, int, int],
) -> "Honoured":
    """Change a mask so that it contains foreground clicks and excludes background clicks.

    A click that agrees with the mask changes nothing. Around every other click the logits are
    blended into `SURE_LOGIT` by a Gaussian, which is narrower where a click of the opposite kind is
    near. If one voxel has clicks of both kinds, the last click counts.

    Args:
        logits: of a target; their values are changed in place, and `Honoured.undone` restores them.
        clicks: the target's own, in the order clicked.
        clicks_of_others: foreground clicks of other targets; they are background of this one.
        voxel_mm: the image's voxel size (z, y, x).
        cell_mm: edge of a cell of the low-resolution mask.
        shape: of the image, (D, H, W).

    Returns:
        the logits, in a larger box where a click lies outside of theirs, and how to restore them.
    """
    own = {click.zyx: click.is_foreground for click in clicks}
    # Sorted by voxel, so that the numbering of targets does not matter; own clicks keep order.
    elsewhere = {click.zyx for click in clicks_of_others} - own.keys()
    places = dict.fromkeys(sorted(elsewhere), False) | own
    of_kind = {
        kind: np.array([zyx for zyx, is_foreground in places.items() if is_foreground == kind])
        for kind in (True, False)
    }
    width = np.maximum(SPOT_CELLS * cell_mm, SPOT_VOXELS * np.array(voxel_mm))
    reach = np.ceil(SPOT_REACH * width / voxel_mm).astype(int)
    given, before = logits.box, {}
    for zyx, is_foreground in places.items():
        if not _agrees(logits, zyx, is_foreground):
            logits = logits.extended_to(zyx, reach, shape)
            spot = _spot(logits, zyx, is_foreground, of_kind[not is_foreground], width, voxel_mm)
            before[spot] = logits.values[spot.within(logits)].copy()
            _blend(logits, spot, voxel_mm)
    # The spot of a neighbouring click may have put a clicked voxel on the wrong side.
    for zyx, is_foreground in places.items():
        if logits.holds(zyx) and not _agrees(logits, zyx, is_foreground):
            spot = Spot(zyx, is_foreground, (0.0,) * 3, zyx, tuple(c + 1 for c in zyx))
            before[spot] = logits.values[spot.within(logits)].copy()
            logits.values[spot.within(logits)] = _sure(is_foreground)
    return Honoured(logits, given, before)


class Spot(NamedTuple):
    """Voxels around a click whose logits are changed."""

    zyx: tuple[int, int, int]  # of the click
    is_foreground: bool
    width_mm: Triple  # standard deviation of the Gaussian (z, y, x); 0: this voxel alone
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def box(self) -> Box:
        """The voxels of the image."""
        return tuple(map(slice, self.start, self.stop))

    def within(self, logits: LogitBox) -> Box:
        """Return the same voxels as a part of the logits' array."""
        return within(self.box, logits.box)


@dataclass(frozen=True)
class Honoured:
    """Logits that agree with all clicks, and what they were before."""

    logits: LogitBox
    given: Box  # the box before it was extended
    before: dict[Spot, np.ndarray]  # the spots in the order changed -> the logits there until then

    @property
    def spots(self) -> frozenset[Spot]:
        """The spots that were changed."""
        return frozenset(self.before)

    @property
    def nbytes(self) -> int:
        """Bytes of the logits, and of what they were before."""
        return self.logits.values.nbytes + sum(each.nbytes for each in self.before.values())

    def undone(self) -> LogitBox:
        """Restore the logits as they were given; the honoured ones are then no longer valid."""
        logits = self.logits
        for spot, values in reversed(self.before.items()):
            logits.values[spot.within(logits)] = values
        return LogitBox(self.given, logits.values[within(self.given, logits.box)])


def _agrees(logits: LogitBox, zyx: tuple[int, int, int], is_foreground: bool) -> bool:
    is_inside = logits.holds(zyx) and logits.values[tuple(zyx - logits.start)] > 0
    return bool(is_inside) == is_foreground


def _sure(is_foreground: bool) -> float:
    return SURE_LOGIT if is_foreground else -SURE_LOGIT


def _spot(
    logits: LogitBox,
    zyx: tuple[int, int, int],
    is_foreground: bool,
    opposite: np.ndarray,
    width_mm: np.ndarray,
    voxel_mm: Triple,
) -> Spot:
    """Return the spot of a click.

    Args:
        opposite: (n, 3) voxels of the clicks of the other kind.
        width_mm: the Gaussian's standard deviation (z, y, x) where no such click is near.
    """
    if len(opposite):
        apart = np.linalg.norm((opposite - zyx) * voxel_mm, axis=1).min()
        width_mm = np.minimum(width_mm, max(apart, 1e-3) / 3)
    reach = np.ceil(SPOT_REACH * width_mm / voxel_mm).astype(int)
    low = np.maximum(zyx - reach, logits.start)
    high = np.minimum(zyx + reach + 1, logits.stop)
    return Spot(zyx, is_foreground, *(tuple(each.tolist()) for each in (width_mm, low, high)))


def _blend(logits: LogitBox, spot: Spot, voxel_mm: Triple) -> None:
    """Blend logits into `SURE_LOGIT` around a click, in place."""
    weight = np.ones((1, 1, 1), np.float32)
    for axis in range(3):
        mm = (np.arange(spot.start[axis], spot.stop[axis]) - spot.zyx[axis]) * voxel_mm[axis]
        along = np.exp(-((mm / spot.width_mm[axis]) ** 2) / 2).astype(np.float32)
        weight = weight * along.reshape([-1 if a == axis else 1 for a in range(3)])
    values = logits.values[spot.within(logits)]
    # Clipped first: a very confident wrong logit would shrink the spot.
    before = np.clip(values, -SURE_LOGIT, SURE_LOGIT)
    after = before + weight * (_sure(spot.is_foreground) - before)
    values[...] = np.where(weight > np.exp(-(SPOT_REACH**2) / 2), after, values)
