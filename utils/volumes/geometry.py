"""Voxel grids: spacing, affines, and the network's crop with its inverse.

Conventions used in the whole repository:

* Arrays are indexed ``(D, H, W)``, that is ``(z, y, x)``; a name that depends on the order says so
  (``spacing_zyx``, ``click_zyx``). Challenge files store ``spacing`` as ``(x, y, z)``.
* Lengths are millimetres; voxel counts are plain ints.
* An affine is NIfTI's: it maps ``(x, y, z)`` voxel centres to RAS+ world millimetres.
* The *network's frame* is the closest canonical (RAS+) orientation of the volume's own axes at one
  isotropic spacing: its three axes grow towards patient right, anterior and superior, in this
  order. Released SAM-Med3D weights were trained in it (torchio's ``ToCanonical``). Clicks for the
  network are in this frame too. Only `CropGrid` converts between a volume and this frame.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations

import numpy as np

from utils.errors import InputError, require_number

Triple = tuple[float, float, float]

MAX_CROP_SIZE = 1024  # voxels along each axis of a network's input: 4 GiB a crop
SPACING_RANGE_MM = (1e-3, 1e3)  # of a network's input


class GeometryError(InputError):
    """Two grids that should be equal differ, or a grid cannot be used."""


def affine_from_spacing(spacing_xyz: np.ndarray) -> np.ndarray:
    """Return the affine of a challenge case, which stores spacing but neither origin nor direction.

    The axes grow towards patient left, posterior and superior (LPS), SimpleITK's identity
    direction, which is how the challenge's files were made; hence the two minus signs.
    """
    x, y, z = (float(s) for s in spacing_xyz)
    return np.diag([-x, -y, z, 1.0])


def spacing_zyx(affine: np.ndarray) -> Triple:
    """Return the voxel size in mm in array order: the affine's column norms, reversed."""
    x, y, z = (float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return which array axis runs along R, A and S, and with which sign.

    Returns:
        axes: for each of R, A, S the axis of the (D, H, W) array closest to it.
        signs: 1 where that array axis grows towards R, A or S, -1 where it grows away from it.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # One of the six permutations, not three separate argmaxes, so that an oblique scan uses each
    # axis once.
    world = range(3)
    voxel = max(permutations(world), key=lambda v: np.abs(cosines[world, v]).sum())
    signs = np.where(cosines[world, voxel] < 0, -1, 1)
    return tuple(2 - v for v in voxel), tuple(int(s) for s in signs)


@dataclass(frozen=True)
class CropRule:
    """The size of the network's input: a cube of ``size``³ voxels of ``spacing_mm``.

    With ``fit`` the spacing becomes finer where the whole volume fits into a smaller cube, so that
    a scan of one small organ fills the network's input. The spacing depends on the volume's extent
    alone, never on the truth. Released SAM-Med3D weights expect 1.5 mm without ``fit``.

    >>> CropRule(fit=True).spacing_for((40, 64, 64), (1.0, 1.0, 1.0))    # 64 mm over 128 voxels
    0.5

    Raises:
        InputError: a field is out of its range.
    """

    size: int = 128
    spacing_mm: float = 1.5
    fit: bool = False

    def __post_init__(self) -> None:
        require_number("size of the crop", self.size, 1, MAX_CROP_SIZE, whole=True)
        require_number("spacing of the crop in mm", self.spacing_mm, *SPACING_RANGE_MM)
        if not isinstance(self.fit, bool):
            raise InputError(f"fit of the crop: found {self.fit!r}, expected true or false.")

    @classmethod
    def read(cls, stored: object, size: int, file: object) -> "CropRule":
        """Return the rule that a ``file`` holds for a network with inputs of ``size``³ voxels.

        Args:
            stored: the fields, as `to_dict` returned them; fields that are missing get defaults,
                and None stands for no field.

        Raises:
            InputError: a field is unknown or out of its range, or ``size`` is another; the message
                names the file.
        """
        try:
            stored = {} if stored is None else stored
            if not isinstance(stored, dict):
                raise InputError(f"found {str(stored)[:99]}, expected a table of fields.")
            rule = cls(**{"size": size} | stored)
            if rule.size != size:
                raise InputError(f"size of the crop: found {rule.size}, expected {size}.")
            return rule
        except (InputError, TypeError) as error:
            raise InputError(
                f"{file}: its crop rule cannot be used: {error}\n"
                "Use a file that this version of the project wrote, or write it again."
            ) from error

    def to_dict(self) -> dict:
        """Return the fields, as checkpoints and indices store them."""
        return asdict(self)

    def spacing_for(self, volume_shape: tuple[int, ...], voxel_mm: Triple) -> float:
        """Return the crop's spacing in mm for a volume of this shape and voxel size."""
        if not self.fit:
            return self.spacing_mm
        extent_mm = max(n * s for n, s in zip(volume_shape, voxel_mm, strict=True))
        return min(self.spacing_mm, extent_mm / self.size)


@dataclass(frozen=True)
class CropGrid:
    """A cube in the network's frame, placed on a volume; the part outside the volume is padding.

    Crop voxel ``i`` along network axis ``n`` lies at array coordinate ``origin[n] + steps[n] * i``
    along array axis ``axes[n]``. The cube is parallel to the volume's axes, so resampling is one
    small matrix for each axis.
    """

    volume_shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    steps: Triple
    origin: Triple
    size: int

    @classmethod
    def around(
        cls,
        centre_zyx: Triple,
        volume_shape: tuple[int, int, int],
        affine: np.ndarray,
        rule: CropRule,
    ) -> "CropGrid":
        """Place the cube of ``rule`` so that its middle is at array coordinate ``centre_zyx``."""
        spacing_mm = rule.spacing_for(volume_shape, spacing_zyx(affine))
        return cls.at(centre_zyx, volume_shape, affine, spacing_mm, rule.size)

    @classmethod
    def at(
        cls,
        centre_zyx: Triple,
        volume_shape: tuple[int, int, int],
        affine: np.ndarray,
        spacing_mm: float,
        size: int,
    ) -> "CropGrid":
        """Place a cube of ``size``³ voxels of ``spacing_mm`` around an array coordinate."""
        axes, signs = canonical_axes(affine)
        voxel_mm = spacing_zyx(affine)
        steps = tuple(
            float(sign * spacing_mm / voxel_mm[axis])
            for axis, sign in zip(axes, signs, strict=True)
        )
        return cls._about(centre_zyx, volume_shape, axes, steps, size)

    @classmethod
    def in_frame(
        cls,
        centre: Triple,
        volume_shape: tuple[int, int, int],
        voxel_mm: Triple,
        spacing_mm: float,
        size: int,
    ) -> "CropGrid":
        """Place a cube around ``centre`` on a volume that is in the network's frame already."""
        steps = tuple(float(spacing_mm / mm) for mm in voxel_mm)
        return cls._about(centre, volume_shape, (0, 1, 2), steps, size)

    @classmethod
    def _about(cls, centre, volume_shape, axes, steps, size) -> "CropGrid":
        middle = (size - 1) / 2
        origin = tuple(
            float(centre[axis] - step * middle) for axis, step in zip(axes, steps, strict=True)
        )
        return cls(tuple(volume_shape), axes, steps, origin, size)

    def on_part(self, start: tuple[int, ...], shape: tuple[int, ...]) -> "CropGrid":
        """Return the same cube placed on a part of the volume.

        Args:
            start: first voxel of the part.
            shape: shape of the part.
        """
        origin = tuple(o - start[axis] for o, axis in zip(self.origin, self.axes, strict=True))
        return replace(self, volume_shape=tuple(shape), origin=origin)

    def flipped(self, axes: Sequence[int]) -> "CropGrid":
        """Return the same cube, flipped along these network axes."""
        origin, steps = list(self.origin), list(self.steps)
        for n in axes:
            origin[n] += steps[n] * (self.size - 1)
            steps[n] = -steps[n]
        return replace(self, origin=tuple(origin), steps=tuple(steps))

    def crop(self, volume: np.ndarray) -> np.ndarray:
        """Resample ``volume`` (D, H, W) linearly to (size, size, size) float32; padding is 0.

        Only the voxels that the cube needs are read, which matters for a memory-mapped volume.
        """
        if volume.shape != self.volume_shape:
            raise GeometryError(
                f"the crop was placed on a volume of shape {self.volume_shape}, got {volume.shape}"
            )
        z, y, x = (self._neighbours(n) for n in np.argsort(self.axes))
        # Plane by plane, so that what was read is still in the processor's cache. Products with
        # matrices are slower here: they need copies of the whole volume, in float32.
        planes, places = np.unique([z.low, z.high], return_inverse=True)
        small = np.stack([x.interpolate(y.interpolate(volume[k], 0), 1) for k in planes])
        low, high = places.reshape(2, self.size)
        out = replace(z, low=low, high=high).interpolate(small, 0)
        return np.ascontiguousarray(np.transpose(out, self.axes))

    def paste(self, values: np.ndarray, outside: float) -> np.ndarray:
        """Resample ``values`` on this cube linearly to the volume's grid.

        Args:
            values: (s, s, s) float array over the whole cube, in the network's frame. ``s`` may be
                below ``size``, as for low-resolution logits: a cell covers (size / s)³ crop voxels.
            outside: value of the volume's voxels beyond the cube.

        Returns:
            (D, H, W) float32.
        """
        whole = np.full(self.volume_shape, outside, dtype=np.float32)
        box = self.covered_box()
        whole[box] = self.paste_box(values, box)
        return whole

    def paste_box(self, values: np.ndarray, box: tuple[slice, slice, slice]) -> np.ndarray:
        """Resample as `paste` does, but only to a box of voxels inside the cube."""
        cell = self.size / values.shape[0]
        neighbours = []
        for n in np.argsort(self.axes):
            voxels = np.arange(box[self.axes[n]].start, box[self.axes[n]].stop)
            positions = (voxels - self.origin[n]) / self.steps[n]
            neighbours.append(_Neighbours.of((positions + 0.5) / cell - 0.5, len(values)))
        out = np.transpose(values, np.argsort(self.axes)).astype(np.float32)
        needed = tuple(each.needed for each in neighbours)
        out = np.ascontiguousarray(out[needed])
        for axis, (each, part) in enumerate(zip(neighbours, needed, strict=True)):
            out = _along(out, axis, each.matrix(len(values))[:, part])
        return out

    def carry(self, values: np.ndarray, other: "CropGrid", outside: float) -> np.ndarray:
        """Resample ``values`` on this cube linearly to another cube on the same volume.

        Args:
            values: (s, s, s) float array over this cube, as for `paste`.
            other: a cube along the same axes.
            outside: value of the other cube outside of this one.

        Returns:
            (s, s, s) float32 over the other cube.
        """
        cell = self.size / values.shape[0]
        out = np.asarray(values, dtype=np.float32) - outside
        for n in range(3):
            middles = (np.arange(values.shape[0]) + 0.5) * cell - 0.5  # in voxels of `other`
            voxels = other.origin[n] + other.steps[n] * middles
            positions = (voxels - self.origin[n]) / self.steps[n]
            cells = (positions + 0.5) / cell - 0.5
            out = _along(out, n, _Neighbours.of(cells, len(values)).matrix(len(values)))
        return out + outside

    def covered_box(self) -> tuple[slice, slice, slice]:
        """Return the box of the volume's voxels that lie in the cube, in array order."""
        ranges = [self._covered_range(n) for n in range(3)]
        return tuple(ranges[n] for n in np.argsort(self.axes))

    def covered(self) -> np.ndarray:
        """Return which voxels of the volume lie in the cube: (D, H, W) bool."""
        inside = np.zeros(self.volume_shape, bool)
        inside[self.covered_box()] = True
        return inside

    def covered_crop(self) -> tuple[slice, slice, slice]:
        """Return the box of the crop's voxels that lie on the volume, in the network's order."""
        ranges = []
        for n, axis in enumerate(self.axes):
            positions = self.origin[n] + self.steps[n] * np.arange(self.size)
            on = np.flatnonzero((positions >= -0.5) & (positions <= self.volume_shape[axis] - 0.5))
            ranges.append(slice(int(on[0]), int(on[-1]) + 1) if len(on) else slice(0, 0))
        return tuple(ranges)

    def _covered_range(self, n: int) -> slice:
        """Return the voxels in the cube along network axis ``n``."""
        voxels = np.arange(self.volume_shape[self.axes[n]])
        positions = (voxels - self.origin[n]) / self.steps[n]
        covered = np.flatnonzero((positions >= -0.5) & (positions <= self.size - 0.5))
        return slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)

    def _neighbours(self, n: int) -> "_Neighbours":
        """Return the voxels between which the crop's lie along network axis ``n``."""
        positions = self.origin[n] + self.steps[n] * np.arange(self.size)
        return _Neighbours.of(positions, self.volume_shape[self.axes[n]])

    def to_crop(self, point_zyx: Triple) -> Triple:
        """Map an array coordinate of the volume to crop voxels in the network's axis order."""
        return tuple(
            (point_zyx[axis] - start) / step
            for axis, start, step in zip(self.axes, self.origin, self.steps, strict=True)
        )

    def to_volume(self, point_crop: Triple) -> Triple:
        """Map crop voxels (network's axis order) to the volume's array coordinate (z, y, x)."""
        point = [0.0, 0.0, 0.0]
        for n, axis in enumerate(self.axes):
            point[axis] = self.origin[n] + self.steps[n] * point_crop[n]
        return tuple(point)


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """Return start and stop (2, 3) of the tight box around the True voxels; one must be True."""
    plane = mask.any(axis=0)  # read once for two axes
    used = [np.flatnonzero(rows) for rows in (mask.any(axis=(1, 2)), plane.any(1), plane.any(0))]
    return np.transpose([(rows[0], rows[-1] + 1) for rows in used])


def bounding_box_centre(mask: np.ndarray) -> Triple:
    """Return the middle of the tight box around the True voxels, in array coordinates."""
    if not mask.any():
        raise GeometryError("cannot centre a crop on an empty mask")
    start, stop = bounding_box(mask)
    return tuple(float(c) for c in (start + stop - 1) / 2)


@dataclass(frozen=True)
class _Neighbours:
    """The two voxels of an axis that each of n positions lies between."""

    low: np.ndarray  # (n,) int
    high: np.ndarray  # (n,) int
    weights: np.ndarray  # (2, n) float32 of low and high; both are 0 beyond the axis

    @classmethod
    def of(cls, positions: np.ndarray, length: int) -> "_Neighbours":
        """Find the neighbours on an axis of this length.

        A voxel reaches half its width beyond its centre: positions in [-0.5, length - 0.5] are
        inside.
        """
        inside = (positions >= -0.5) & (positions <= length - 0.5)
        clamped = np.clip(positions, 0, length - 1)
        low = np.floor(clamped).astype(int)
        fraction = (clamped - low).astype(np.float32)
        weights = np.where(inside, [1 - fraction, fraction], np.float32(0))
        return cls(low, np.minimum(low + 1, length - 1), weights)

    @property
    def needed(self) -> slice:
        """All voxels that have a weight; none where there are no positions."""
        if not len(self.low):
            return slice(0, 0)
        return slice(self.low.min(), self.high.max() + 1)

    def interpolate(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Interpolate ``array`` linearly along ``axis``; float32."""
        low, high = self.weights.reshape(2, -1, *(1,) * (array.ndim - 1 - axis))
        out = array.take(self.low, axis).astype(np.float32, copy=False)
        out *= low
        out += array.take(self.high, axis).astype(np.float32, copy=False) * high
        return out

    def matrix(self, length: int) -> np.ndarray:
        """Return the weights as a matrix (n, length), to be multiplied into an axis."""
        matrix = np.zeros((len(self.low), length), dtype=np.float32)
        rows = np.arange(len(self.low))
        np.add.at(matrix, (rows, self.low), self.weights[0])
        np.add.at(matrix, (rows, self.high), self.weights[1])
        return matrix


def _along(array: np.ndarray, axis: int, weights: np.ndarray) -> np.ndarray:
    """Multiply ``weights`` (new, old) into ``axis`` of ``array``."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    if not after:
        return array @ weights.T
    rows = array.reshape(*before, array.shape[axis], math.prod(after))
    return (weights @ rows).reshape(*before, len(weights), *after)
