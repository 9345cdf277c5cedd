"""Where the network looks: the cube about a target, found from prompts alone (no torch).

A box says where the target is, a click only where a part of it is. So a region starts from the
prompts and follows the mask: it grows where the mask touches its border, and closes in where the
mask fills too little of it, as a reader zooms. Lengths are mm, places array coordinates (z, y, x).
"""

from dataclasses import dataclass, field

import numpy as np

from utils.prompts.kinds import BoxPrompt
from utils.volumes.geometry import CropGrid, CropRule, Triple, bounding_box, spacing_zyx

#: The least share of a cube's edge that the longest side of the whole image takes.
LEAST_IMAGE = 0.125


@dataclass(frozen=True)
class ZoomRule:
    """How regions follow targets. Shares are of the region's edge."""

    fill: float = 0.5  # the target's longest side in a region made for it
    least_fill: float = 0.15  # a mask that fills less is looked at closer
    growth: float = 1.5  # of the mask's extent, on each side where it touches the border
    passes: int = 2  # moves of the region after each prompt, at most
    in_plane: float = 1.2  # the target's extent over that of its middle slice's box
    finest: float = 0.5  # spacing over the image's finest voxel: closer shows nothing new
    coarsest: float = 4.0  # spacing over the network's own, unless the image needs a larger one
    same: float = 0.1  # regions whose spacings and centres differ by less are one


@dataclass(frozen=True)
class Region:
    """A cube on the image: its middle and its voxels' side."""

    centre_zyx: Triple
    spacing_mm: float


@dataclass(frozen=True)
class Extent:
    """A box in array coordinates, floats; voxel ``i`` reaches from ``i - 0.5`` to ``i + 0.5``."""

    low: np.ndarray
    high: np.ndarray

    def joined(self, points: np.ndarray) -> "Extent":
        """Return the extent that also holds voxels (n, 3)."""
        low = np.minimum(self.low, points.min(axis=0, initial=np.inf) - 0.5)
        return Extent(low, np.maximum(self.high, points.max(axis=0, initial=-np.inf) + 0.5))


@dataclass(frozen=True, eq=False)
class Scene:
    """An image as regions see it: its grid, and the crops that the network was trained on."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    rule: CropRule
    zoom: ZoomRule = field(default_factory=ZoomRule)

    @property
    def voxel_mm(self) -> np.ndarray:
        """Voxel size (z, y, x)."""
        return np.array(spacing_zyx(self.affine))

    @property
    def finest_mm(self) -> float:
        """The smallest spacing that shows anything new."""
        return float(self.voxel_mm.min() * self.zoom.finest)

    @property
    def _longest_mm(self) -> float:
        return float((self.voxel_mm * self.shape).max())

    def grid(self, region: Region) -> CropGrid:
        """Return the cube of a region."""
        return CropGrid.at(
            region.centre_zyx, self.shape, self.affine, region.spacing_mm, self.rule.size
        )

    def about_click(self, zyx: Triple) -> Region:
        """Return where to look at first about a click, when nothing else is known.

        Where the whole image fits into the cube it is the image, so that all its targets share one.
        """
        spacing_mm = self.rule.spacing_for(self.shape, tuple(self.voxel_mm))
        # An image far smaller than the cube would be lost in it.
        spacing_mm = min(spacing_mm, self._longest_mm / (LEAST_IMAGE * self.rule.size))
        if (np.array(self.shape) * self.voxel_mm <= spacing_mm * self.rule.size * 1.001).all():
            zyx = tuple((n - 1) / 2 for n in self.shape)
        return Region(tuple(map(float, zyx)), spacing_mm)

    def about_box(self, box: BoxPrompt) -> Region:
        """Return where to look for what is in a box."""
        return self.about(self.extent_of_box(box))

    def extent_of_box(self, box: BoxPrompt) -> Extent:
        """Return how far a target reaches; beyond the box where that is of one slice."""
        low, high = np.array(box.start_zyx) - 0.5, np.array(box.stop_zyx) - 0.5
        if box.middle_slice:
            wider = (high - low) * (self.zoom.in_plane - 1) / 2 * [0, 1, 1]
            low, high = low - wider, high + wider
        return Extent(low, high)

    def about(self, extent: Extent, *, at_least_mm: float = 0.0) -> Region:
        """Return the region that an extent fills as it should.

        Args:
            at_least_mm: spacing below which not to go.
        """
        longest_mm = ((extent.high - extent.low) * self.voxel_mm).max()
        wanted = longest_mm / (self.zoom.fill * self.rule.size)
        # A cube of twice the image's length about any place in it holds all of the image.
        coarsest = max(
            self.rule.spacing_mm * self.zoom.coarsest, 2 * self._longest_mm / self.rule.size
        )
        spacing_mm = float(
            np.clip(max(wanted, at_least_mm), self.finest_mm, max(coarsest, self.finest_mm))
        )
        return Region(tuple(map(float, (extent.low + extent.high) / 2)), spacing_mm)

    def holds(self, region: Region, zyx: Triple) -> bool:
        """Say whether a voxel lies in a region."""
        offset_mm = np.abs(np.subtract(zyx, region.centre_zyx)) * self.voxel_mm
        return bool((offset_mm < region.spacing_mm * self.rule.size / 2).all())

    def widened(self, region: Region, extent: Extent | None, points: np.ndarray) -> Region:
        """Return a region that also holds clicks (n, 3) outside of the present one.

        Args:
            extent: the mask's so far, None where it is empty.
        """
        nothing = Extent(np.full(3, np.inf), np.full(3, -np.inf))
        wanted = (extent or nothing).joined(points)
        return self.about(wanted, at_least_mm=region.spacing_mm)

    def next_region(self, region: Region, mask: np.ndarray, points: np.ndarray) -> Region | None:
        """Return where to look after this mask; None to stay.

        Args:
            mask: (m, m, m) bool in the region's cube.
            points: (n, 3) foreground clicks, which stay inside.
        """
        extent = extent_in(self.grid(region), mask)
        if extent is None:
            return None
        reach, touched = self._grown(region, extent, mask)
        edge_mm = region.spacing_mm * self.rule.size
        fill = ((extent.high - extent.low) * self.voxel_mm).max() / edge_mm
        if touched:
            new = self.about(reach.joined(points), at_least_mm=region.spacing_mm)
        elif fill < self.zoom.least_fill:
            new = self.about(extent.joined(points))
        else:
            return None
        return None if self._same(region, new) else new

    def _grown(self, region: Region, extent: Extent, mask: np.ndarray) -> tuple[Extent, bool]:
        """Return an extent reaching on beyond the faces that the mask touches, and if it does."""
        grid = self.grid(region)
        low, high, touched = extent.low.copy(), extent.high.copy(), False
        size = high - low
        for n, axis in enumerate(grid.axes):
            along = mask.any(axis=tuple(a for a in range(3) if a != n))
            faces = (
                grid.to_volume((-0.5,) * 3)[axis],
                grid.to_volume((grid.size - 0.5,) * 3)[axis],
            )
            for touches, face in zip((along[0], along[-1]), faces, strict=True):
                if not touches or not 0 < face < self.shape[axis] - 1:
                    continue
                touched = True
                step = (self.zoom.growth - 1) * size[axis]
                if face == min(faces):
                    low[axis] = max(low[axis] - step, -0.5)
                else:
                    high[axis] = min(high[axis] + step, self.shape[axis] - 0.5)
        return Extent(low, high), touched

    def _same(self, old: Region, new: Region) -> bool:
        moved_mm = np.abs(np.subtract(old.centre_zyx, new.centre_zyx)) * self.voxel_mm
        edge_mm = old.spacing_mm * self.rule.size
        ratio = new.spacing_mm / old.spacing_mm
        return bool(abs(ratio - 1) < self.zoom.same and (moved_mm < self.zoom.same * edge_mm).all())


def extent_in(grid: CropGrid, mask: np.ndarray) -> Extent | None:
    """Return the extent on the volume of a mask (m, m, m) in a cube; None where it is empty."""
    if not mask.any():
        return None
    cell = grid.size / mask.shape[0]
    corners = np.array([grid.to_volume(corner) for corner in bounding_box(mask) * cell - 0.5])
    return Extent(corners.min(axis=0), corners.max(axis=0))


def extent_of(mask: np.ndarray) -> Extent:
    """Return the extent of a mask (D, H, W) on the image; at least one voxel is True."""
    low, high = bounding_box(mask)
    return Extent(low - 0.5, high - 0.5)
