"""Generated training volumes: random shapes of random contrast, one of which is the target.

A volume has a few tissues and up to 14 structures: ellipsoids, tubes along random paths, shells,
sheets, blobs of smooth noise, and ellipsoids cut in two that touch each other. Structures may lie
in each other, and many differ little from what is around them. Blur, texture, a bias field, thick
slices, padding and noise are added. No organ has a usual place or form here, so that a network can
find the target by the image and the prompts alone. The idea is that of SynthSeg (arXiv:2107.09559)
and AnyStar (arXiv:2307.07044).

Structures are painted on cells of 2 x 2 x 2 voxels; noise is added at full size. This module does
not import torch.
"""

from typing import NamedTuple

import numpy as np

from utils.training.cell_masks import (
    dilated,
    doubled,
    interpolated,
    largest,
    smoothed,
)
from utils.training.regions import (
    explained_by_ball,
    is_size_of_target,
)

#: Structures of a volume: at least and at most.
COUNTS = (5, 14)
#: Contrast of a structure to what is around it: low ones, and how many are low. The unit is the
#: range of the tissues' intensities.
LOW_CONTRAST, LOW_SHARE = (0.06, 0.15), 0.4
CONTRAST = (0.15, 0.8)
#: A target's mean differs from that of the cells around it by at least this, in the same unit.
VISIBLE = 0.05
NOISE = (0.01, 0.12)  # standard deviation, in the same unit, drawn evenly on a log scale
BALL_SHARE = 0.1  # of the volumes whose target may be a ball


class _Scene(NamedTuple):
    """What is painted so far, and the smooth fields of unit variance that shape it."""

    values: np.ndarray  # (C, C, C) float32, intensities
    owner: np.ndarray  # (C, C, C) uint8, number of the structure, 0 = tissue
    fields: list[np.ndarray]  # (C, C, C) float32, from coarse to fine


def generated_volume(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Generate a volume and a target in it.

    Args:
        size: S, even, 16 at least.
        rng: decides everything.

    Returns:
        image: (S, S, S) float32, normalised as a crop is: by the voxels above 0.
        mask: (S, S, S) bool, never empty, connected by faces.
    """
    while True:  # most first attempts succeed
        scene = _scene(size // 2, rng)
        target = _target(scene, rng)
        if target is not None:
            return _image(scene, target, rng), doubled(target)


def _scene(side: int, rng: np.random.Generator) -> _Scene:
    """Paint tissues and structures."""
    fields = [_smooth_field(rng, side, nodes) for nodes in (4, 7, 12)]
    bounds = np.sort(rng.uniform(-1.5, 1.5, rng.integers(0, 4))).astype(np.float32)
    tissues = rng.uniform(0.3, 1.0, len(bounds) + 1).astype(np.float32)
    scene = _Scene(
        tissues[np.searchsorted(bounds, _turned(fields[0], rng))],
        np.zeros((side,) * 3, np.uint8),
        fields,
    )
    names = list(_PAINTERS)
    for number in range(1, int(rng.integers(*COUNTS, endpoint=True)) + 1):
        mask = _PAINTERS[names[rng.integers(len(names))]](scene, rng)
        if mask.any():
            scene.values[mask] = _level(scene, mask, rng)
            scene.owner[mask] = number
    return scene


def _level(scene: _Scene, mask: np.ndarray, rng: np.random.Generator) -> float:
    """Draw the intensity of a structure: close to what is around it, or further away."""
    around = scene.values[mask].mean()
    span = LOW_CONTRAST if rng.random() < LOW_SHARE else CONTRAST
    level = around + rng.choice((-1, 1)) * rng.uniform(*span)
    return float(level if 0.1 < level < 1.3 else 2 * around - level)


def _target(scene: _Scene, rng: np.random.Generator) -> np.ndarray | None:
    """Choose a structure that can be seen and has a useful size; None if there is none."""
    ball_allowed = rng.random() < BALL_SHARE
    for number in 1 + rng.permutation(COUNTS[1]):
        mask = largest(scene.owner == number)
        if mask is None or not is_size_of_target(mask):
            continue
        around = dilated(mask, 2) & ~mask
        if abs(scene.values[mask].mean() - scene.values[around].mean()) < VISIBLE:
            continue
        if ball_allowed or not explained_by_ball(mask):
            return mask
    return None


def _image(scene: _Scene, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture of a scene: (S, S, S) float32, normalised."""
    side = len(scene.values)
    grain = smoothed(rng.standard_normal(scene.values.shape, np.float32), rng.uniform(0.5, 1.2))
    grain *= rng.uniform(0, 0.2, 1 + COUNTS[1]).astype(np.float32)[scene.owner]
    cells = smoothed(scene.values + grain, rng.uniform(0.3, 0.8))
    cells *= 1 + np.float32(rng.uniform(0, 0.15)) * _turned(scene.fields[0], rng)
    if rng.random() < 0.3:
        cells = _thick_slices(cells, int(rng.integers(2, 5)), int(rng.integers(3)))
    noise, mean = _noise(rng, 2 * side, np.exp(rng.uniform(*np.log(NOISE))))
    cells -= mean
    cells /= 64
    image = interpolated(cells)
    image += noise
    np.maximum(image, 0, out=image)
    if rng.random() < 0.4:
        _pad(image, target, rng)
    known = image[::2, ::2, ::2]
    known = known[known > 0]
    image -= known.mean()
    image /= max(known.std(), 1e-3)
    return image


def _ellipsoid(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    return _form(scene, rng) < 1


def _shell(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    form = _form(scene, rng, least=0.14)
    return (form < 1) & (form > rng.uniform(0.35, 0.75))


def _half(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """Return one side of an ellipsoid; the other side is painted as it is, in other shades."""
    form, field = _form(scene, rng, least=0.14), _turned(scene.fields[0], rng)
    whole = form < 1
    if whole.any():
        scene.values[whole] = _level(scene, whole, rng)
        whole &= field > np.median(field[whole])
    return whole


def _blob(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    field = _turned(scene.fields[rng.integers(1, 3)], rng)
    return field - _form(scene, rng, least=0.2) > rng.uniform(-0.4, 0.4)


def _sheet(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    field = _turned(scene.fields[rng.integers(2)], rng)
    return (np.abs(field) < rng.uniform(0.1, 0.3)) & (_form(scene, rng, least=0.2) < 1)


def _tube(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """Return balls along a random path, close enough to touch; their radius varies a little."""
    side = len(scene.owner)
    mask = np.zeros(scene.owner.shape, bool)
    radius = side * np.exp(rng.uniform(*np.log((0.022, 0.08))))
    place, heading = rng.uniform(0.1, 0.9, 3) * side, _direction(rng)
    step, turn = max(0.6, 0.5 * radius), rng.uniform(0.05, 0.3)
    drift = _direction(rng)
    for _ in range(int(rng.uniform(0.4, 1.5) * side / step)):
        drift = 0.9 * drift + 0.5 * rng.standard_normal(3)
        heading = heading + turn * drift
        heading /= np.linalg.norm(heading)
        place = place + step * heading
        radius *= np.exp(rng.normal(0, 0.03))
        low = np.maximum(np.floor(place - radius).astype(int), 0)
        high = np.minimum(np.ceil(place + radius).astype(int) + 1, side)
        if (low >= high).any():
            break  # the path has left the volume
        squares = [(np.arange(a, b) - p) ** 2 for a, b, p in zip(low, high, place, strict=True)]
        ball = squares[0][:, None, None] + squares[1][:, None] + squares[2] <= radius**2
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] |= ball
    return mask


_PAINTERS = {
    "ellipsoid": _ellipsoid,
    "shell": _shell,
    "half": _half,
    "blob": _blob,
    "sheet": _sheet,
    "tube": _tube,
}


def _form(scene: _Scene, rng: np.random.Generator, least: float = 0.05) -> np.ndarray:
    """Return a function of the cells that is below 1 in an uneven ellipsoid, turned at random.

    Args:
        least: smallest middle radius, as a share of the volume's edge; the largest is 0.35.
    """
    side = len(scene.owner)
    radius = np.exp(rng.uniform(*np.log((least, 0.35)))) * side
    radii = radius * np.exp(rng.uniform(-0.6, 0.6, 3))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    (a, b, c), (_, d, e), (_, _, f) = (turn / radii**2) @ turn.T
    z, y, x = np.meshgrid(
        *(np.arange(side) - p for p in rng.uniform(0.1, 0.9, 3) * side), indexing="ij", sparse=True
    )
    z, y, x = (axis.astype(np.float32) for axis in (z, y, x))
    planes = a * z * z + 2 * b * z * y + d * y * y  # (C, C, 1)
    form = np.float32(2) * (np.float32(c) * z + np.float32(e) * y) * x
    form += planes.astype(np.float32)
    form += np.float32(f) * x * x
    form += np.float32(rng.uniform(0, 0.25)) * _turned(scene.fields[rng.integers(3)], rng)
    return form


def _smooth_field(rng: np.random.Generator, side: int, nodes: int) -> np.ndarray:
    """Return a smooth random field of about unit variance from ``nodes`` random values an axis."""
    field = rng.standard_normal((nodes,) * 3, np.float32)
    places = np.linspace(0, nodes - 1, side, dtype=np.float32)
    weights = np.exp(-((places - np.arange(nodes, dtype=np.float32)[:, None]) ** 2))
    weights /= np.linalg.norm(weights, axis=0)
    for _ in range(3):  # each product resamples the first axis and moves it to the end
        field = np.tensordot(field, weights, axes=(0, 0))
    return field


def _turned(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one of the 96 fields that turns, mirrors and the sign make of a field."""
    field = field.transpose(rng.permutation(3))
    field = field[tuple(slice(None, None, step) for step in rng.choice((-1, 1), 3))]
    return field if rng.random() < 0.5 else -field


def _direction(rng: np.random.Generator) -> np.ndarray:
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _thick_slices(cells: np.ndarray, thickness: int, axis: int) -> np.ndarray:
    """Average every ``thickness`` slices, and interpolate between the means."""
    moved = np.moveaxis(cells, axis, 0)
    side = len(moved)
    starts = np.arange(0, side, thickness)
    weights = np.zeros((side, len(starts)), np.float32)
    weights[np.arange(side), np.arange(side) // thickness] = 1
    weights /= weights.sum(axis=0)
    centres = weights.T @ np.arange(side, dtype=np.float32)
    between = np.array([np.interp(np.arange(side), centres, row) for row in np.eye(len(starts))])
    mixed = (weights @ between).astype(np.float32)
    return np.moveaxis(np.tensordot(mixed, moved, axes=(0, 0)), 0, axis)


def _noise(rng: np.random.Generator, size: int, deviation: float) -> tuple[np.ndarray, float]:
    """Return noise at full size, and its mean.

    The values are sums of two random bytes, which are drawn faster than normal ones.
    """
    drawn = np.frombuffer(rng.bytes(2 * size**3), np.uint8).reshape(2, size, size, size)
    scale = np.float32(deviation / (256 / 6**0.5))
    return np.add(*drawn, dtype=np.uint16) * scale, 255 * scale


def _pad(image: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> None:
    """Set the image to 0 outside of a random box that holds the target, as around small images."""
    for axis in range(3):
        planes = np.flatnonzero(target.any(axis=tuple({0, 1, 2} - {axis})))
        low = int(2 * rng.uniform(0, 1) * planes[0])
        high = int(len(image) - 2 * rng.uniform(0, 1) * (len(target) - 1 - planes[-1]))
        moved = np.moveaxis(image, axis, 0)
        moved[:low] = 0
        moved[high:] = 0
