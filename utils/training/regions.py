"""Training targets cut from the image itself: regions of similar intensity about a random seed.

A network trained on labelled targets alone can learn where organs usually lie and how clicks place
them. A region has no such habit: only the image says where it ends. Regions therefore teach a
network to look at the image, and they need no labels.

Regions grow on cells, the crop averaged over 2 x 2 x 2 voxels and smoothed. Every random choice
comes from the generator that the caller passes in. This module does not import torch.
"""

import numpy as np
from scipy import ndimage

from utils.training.cell_masks import (
    dilated,
    doubled,
    eroded,
    filled,
    halved,
    largest,
    opened,
    rounded,
    smoothed,
)
from utils.volumes.components import face_components

#: Volume of a region as a share of the crop, drawn evenly on a log scale between these.
SHARES = (0.002, 0.15)
#: Limits of what is accepted, as shares of the crop: 200 of 64³ cells, and 30 %.
LEAST, MOST = 200 / 64**3, 0.3
#: What becomes of a region, and how often: it is the target, joins it, or is taken from it.
KINDS, KIND_SHARES = ("alone", "united", "without"), (0.4, 0.3, 0.3)
#: A union or difference is accepted if the smaller part is at least this share of both.
LEAST_PART = 0.15
#: A target that a ball about its most interior cell matches with a higher DSC is rejected.
BALL_DSC = 0.7
FALLBACK = 2  # from this seed on, counted from 0, the target is a region alone
SMOOTHING = 1.0  # of the cells, sigma in cells
#: Tolerances that are tried, as shares of twice the mean distance to the seed's intensity.
LEVELS = 2.0 ** np.arange(-5.5, 0.1, 1 / 3)
#: The image must be so many times steeper at a region's border than inside, or it is rejected.
SHARPNESS = 2.0
#: It must also be so many times as steep there as it is in the crop on average: one number for each
#: seed that is tried, which falls.
STEEP = (1.2, 1.2, 1.0, 0.8, 0.6)
LEAST_INNER = 8  # cells off the border; where there are fewer, all cells count as inside
SPREAD = 3  # a region may be so many times smaller or larger than drawn, to end at an edge
#: A region is rejected if a level set up to ``BEYOND`` times too large has a border that is
#: ``STEEPER`` times as steep: it would be some part of a homogeneous organ.
BEYOND, STEEPER = 2, 2
#: Cells that are drawn for a seed; of these, so many with about a random intensity are compared.
SEEDS, FLATTEST_OF = 64, 4

Place = tuple[int, int, int]  # of a cell


def region_target(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Cut a random target out of a crop: a region, the label with one, or the label without one.

    A region holds the cells that are connected with its seed and differ from it in intensity by no
    more than a tolerance. Its size is drawn; near this size, the tolerance is chosen that puts the
    border where the image is steepest. Regions without such an edge are rejected. Holes are filled,
    and bridges of one cell are removed.

    Args:
        image: (S, S, S) float32, normalised; S is even.
        label: (S, S, S) bool, the labelled target; may be empty.

    Returns:
        (S, S, S) bool, or None where a few seeds gave no region of a useful size and shape. A
        region alone is connected by faces. Its volume is a share `LEAST` to `MOST` of the crop.
    """
    cells, target = smoothed(halved(image), SMOOTHING), halved(label.view(np.uint8)) >= 4
    body = _body(cells)
    kind = str(rng.choice(KINDS, p=KIND_SHARES)) if target.any() else "alone"
    for attempt, steep in enumerate(STEEP):
        if attempt == FALLBACK:
            kind = "alone"
        made = _MAKERS[kind](cells, body, target, steep, rng)
        if made is None:
            continue
        region, whole = made
        if is_size_of_target(whole) and not explained_by_ball(whole):
            region = doubled(region)
            joined = {"alone": region, "united": label | region, "without": label & ~region}[kind]
            return joined if joined.any() else None
    return None


def _alone(
    cells: np.ndarray,
    body: np.ndarray,
    target: np.ndarray,
    steep: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a region, twice; None if there is none."""
    wanted = body.sum() * np.exp(rng.uniform(*np.log(SHARES)))
    region = _region(cells, eroded(eroded(body)), body, wanted, steep, rng)
    return None if region is None else (region, region)


def _united(
    cells: np.ndarray,
    body: np.ndarray,
    target: np.ndarray,
    steep: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a region that touches the target, and the union of both; None if there is none."""
    wanted = target.sum() * np.exp(rng.uniform(*np.log((2 * LEAST_PART, 2.0))))
    near = eroded(eroded(body)) & dilated(target, 3) & ~target
    region = _region(cells, near, body, min(wanted, SHARES[1] * cells.size), steep, rng)
    if region is None or not (dilated(target, 1) & region).any():
        return None
    whole = region | target
    parts = (whole.sum() - target.sum(), target.sum())
    return (region, whole) if min(parts) >= LEAST_PART * whole.sum() else None


def _without(
    cells: np.ndarray,
    body: np.ndarray,
    target: np.ndarray,
    steep: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a part that is cut off the target, and the rest; None if there is none."""
    size = int(target.sum())
    region = _region(cells, target, target, size * rng.uniform(0.2, 0.6), steep, rng)
    if region is None:
        return None
    rest = largest(opened(target & ~region))
    if rest is None or min(rest.sum(), size - rest.sum()) < LEAST_PART * size:
        return None
    removed = target & ~rest
    return removed | (dilated(removed, 1) & ~target), rest


_MAKERS = {"alone": _alone, "united": _united, "without": _without}


def _region(
    cells: np.ndarray,
    seeds: np.ndarray,
    within: np.ndarray,
    wanted: float,
    steep: float,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Grow a region of about ``wanted`` cells from one of ``seeds``; None if that fails.

    Args:
        cells: (C, C, C) float32.
        seeds: (C, C, C) bool, where the seed may lie.
        within: (C, C, C) bool, where the region may lie.
        steep: of `STEEP`.
    """
    seed = _seed(cells, seeds, rng)
    if seed is None:
        return None
    least = max(wanted / SPREAD, LEAST * cells.size)
    most = min(wanted * SPREAD, 0.7 * np.count_nonzero(within))
    region = _grown(cells, within, seed, (least, most), steep)
    return None if region is None else largest(rounded(filled(region)))


def _grown(
    cells: np.ndarray,
    within: np.ndarray,
    seed: Place,
    limits: tuple[float, float],
    steep: float,
) -> np.ndarray | None:
    """Return the level set about ``seed`` whose border is the steepest in the image.

    Args:
        cells: (C, C, C) float32.
        within: (C, C, C) bool, where the level set may lie.
        seed: at even places.
        limits: least and most cells that it may have.
        steep: of `STEEP`.

    Returns:
        (C, C, C) bool, or None if no level set of this size ends at an edge.
    """
    coarse = (slice(None, None, 2),) * 3  # tolerances are compared on every second cell
    start = tuple(i // 2 for i in seed)
    limits = tuple(size / 8 for size in limits)
    level = _level_at_edge(cells[coarse], within[coarse], start, limits, steep)
    if level is None:
        return None
    return _component((np.abs(cells - cells[seed]) <= level) & within, seed)


def _level_at_edge(
    cells: np.ndarray,
    within: np.ndarray,
    seed: Place,
    limits: tuple[float, float],
    steep: float,
) -> float | None:
    """Return the tolerance of the level set with the steepest border; see `_grown`."""
    (least, most), cells = limits, np.ascontiguousarray(cells)
    distance, slopes = np.abs(cells - cells[seed]), _slopes(cells)
    highest = 2 * float(distance[within].mean())
    distance[~within] = np.inf
    steepest, beyond, chosen = steep * float(slopes[within].mean()), 0.0, None
    for level in highest * LEVELS:
        inside = distance <= level
        if np.count_nonzero(inside) < least:
            continue
        region = _component(inside, seed)
        size = np.count_nonzero(region)
        if size > BEYOND * most:
            break
        if size < least:
            continue
        border, inner = _steepness(rounded(filled(region)), slopes)
        if size > most:
            beyond = max(beyond, border)
        elif border > max(steepest, SHARPNESS * inner):
            steepest, chosen = border, float(level)
    return chosen if beyond <= STEEPER * steepest else None


def _steepness(region: np.ndarray, slopes: np.ndarray) -> tuple[float, float]:
    """Return the mean slope of the image at the border of a region, and inside of it."""
    if not region.any():
        return 0.0, 0.0
    inner = eroded(region)
    border = float(slopes[dilated(region, 1) & ~inner].mean())
    inner = inner if np.count_nonzero(inner) >= LEAST_INNER else region
    return border, float(slopes[inner].mean())


def _slopes(cells: np.ndarray) -> np.ndarray:
    """Return the sum of the absolute differences of each cell's neighbours along the axes."""
    slopes = np.zeros_like(cells)
    for axis in range(3):
        values, out = np.moveaxis(cells, axis, 0), np.moveaxis(slopes, axis, 0)
        out[1:-1] += np.abs(values[2:] - values[:-2])
    return slopes


def _component(mask: np.ndarray, seed: Place) -> np.ndarray:
    """Return the cells of a mask that are connected by faces with one of its cells."""
    labels, _ = face_components(mask)
    return labels == labels[seed]


def _seed(cells: np.ndarray, seeds: np.ndarray, rng: np.random.Generator) -> Place | None:
    """Draw a cell at even places, in flat surroundings; None if there is none to draw from.

    Intensities are drawn evenly, so that small structures get seeds beside large ones.
    """
    places = np.flatnonzero(seeds[::2, ::2, ::2])
    if not places.size:
        return None
    side = seeds.shape[0] // 2
    drawn = 2 * np.array(np.unravel_index(rng.choice(places, SEEDS), (side, side, side)))
    values = cells[tuple(drawn)]
    nearest = np.argsort(np.abs(values - rng.uniform(values.min(), values.max())))
    drawn = drawn[:, nearest[:FLATTEST_OF]]
    steps = np.eye(3, dtype=int)[:, :, None]
    last = seeds.shape[0] - 1
    ahead, behind = (tuple(np.clip(drawn + s, 0, last).swapaxes(0, 1)) for s in (steps, -steps))
    slope = np.abs(cells[ahead] - cells[behind]).sum(axis=0)
    return tuple(int(i) for i in drawn[:, slope.argmin()])


def _body(cells: np.ndarray) -> np.ndarray:
    """Return where cells are brighter than padding and air outside of a body."""
    low, high = float(cells.min()), float(np.quantile(cells[::4, ::4, ::4], 0.99))
    return cells > low + 0.05 * (high - low)


def is_size_of_target(mask: np.ndarray) -> bool:
    """Tell whether a mask (C, C, C) is neither too small nor too large: `LEAST` to `MOST`."""
    return LEAST * mask.size <= np.count_nonzero(mask) <= MOST * mask.size


def explained_by_ball(mask: np.ndarray) -> bool:
    """Tell whether a ball about the mask's most interior cell matches it: DSC > `BALL_DSC`.

    A network that draws balls around clicks already finds such a target.

    Args:
        mask: (C, C, C) bool, not empty; every second cell is looked at.
    """
    if mask[::2, ::2, ::2].sum() >= 30:
        mask = mask[::2, ::2, ::2]
    depth = ndimage.distance_transform_cdt(np.pad(mask, 1), "taxicab")[1:-1, 1:-1, 1:-1]
    centre = np.unravel_index(depth.argmax(), mask.shape)
    squares = [(np.arange(n) - c) ** 2 for n, c in zip(mask.shape, centre, strict=True)]
    radius = squares[0][:, None, None] + squares[1][:, None] + squares[2]
    inside = np.bincount(radius[mask])
    ball = np.bincount(radius.ravel())[: len(inside)].cumsum()
    dsc = 2 * inside.cumsum() / (ball + inside.sum())
    return bool(dsc.max() > BALL_DSC)
