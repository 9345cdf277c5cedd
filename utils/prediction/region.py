"""The region of a target: the cube of the image that the network gets, found from prompts alone.

A box encloses the whole target; a click marks one voxel of it. So a first region follows from the
prompts, and later ones from the mask: the region grows where the mask touches its border, and
shrinks where the mask fills too little of it. Lengths are mm, places array coordinates (z, y, x).
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from utils.errors import require_number
from utils.prompts.box import IN_PLANE
from utils.prompts.kinds import BoxPrompt
from utils.volumes.geometry import CropGrid, CropRule, Triple, bounding_box, spacing_zyx

#: The least share of a cube's edge that the longest side of the whole image takes.
LEAST_IMAGE = 0.125


@dataclass(frozen=True)
class ZoomRule:
    """How a region is made for a target, and when it moves. Shares are of the region's edge.

    Raises:
        InputError: a field is out of its range.
    """

    fill: float = 0.5  # share that the target's longest side takes of a region made for it
    least_fill: float = 0.15  # a mask of a smaller share gets a smaller region
    growth: float = 1.5  # factor on the mask's extent for each side that touches the border
    passes: int = 2  # moves of the region after each prompt, at most
    in_plane: float = IN_PLANE  # the target's extent along y and x, over the middle slice's
    finest: float = 0.5  # smallest spacing, as a multiple of the image's finest voxel
    coarsest: float = 4.0  # largest spacing, over the network's; more if the image needs it
    same: float = 0.1  # a move that changes spacing and centre by a smaller share is skipped

    def __post_init__(self) -> None:
        require_number("ZoomRule.fill", self.fill, 0.01, 1)
        require_number("ZoomRule.least_fill", self.least_fill, 0, 1)
        require_number("ZoomRule.growth", self.growth, 1, 100)
        require_number("ZoomRule.passes", self.passes, 0, 100, whole=True)
        require_number("ZoomRule.in_plane", self.in_plane, 1, 100)
        require_number("ZoomRule.finest", self.finest, 1e-3, 1e3)
        require_number("ZoomRule.coarsest", self.coarsest, 1e-3, 1e3)
        require_number("ZoomRule.same", self.same, 0, 1)


@dataclass(frozen=True)
class Region:
    """A cube on the image: its middle, and the edge of its voxels."""

    centre_zyx: Triple  # array coordinate
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
    """An image's grid, and the rules by which regions are placed on it."""

    shape: tuple[int, int, int]  # (D, H, W)
    affine: np.ndarray  # NIfTI's
    rule: CropRule
    zoom: ZoomRule = field(default_factory=ZoomRule)

    @cached_property
    def voxel_mm(self) -> np.ndarray:
        """The image's voxel size (z, y, x); read-only."""
        voxel_mm = np.array(spacing_zyx(self.affine))
        voxel_mm.flags.writeable = False
        return voxel_mm

    @property
    def finest_mm(self) -> float:
        """The smallest spacing of a region; below it the image has no more detail."""
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
        """Return the first region for a lone click.

        If the whole image fits into one cube, the region is that cube for every click, so that all
        targets share one image embedding.
        """
        spacing_mm = self.rule.spacing_for(self.shape, tuple(self.voxel_mm))
        # An image far smaller than the cube would fill a few voxels of it only.
        spacing_mm = min(spacing_mm, self._longest_mm / (LEAST_IMAGE * self.rule.size))
        if (np.array(self.shape) * self.voxel_mm <= spacing_mm * self.rule.size * 1.001).all():
            zyx = tuple((n - 1) / 2 for n in self.shape)
        return Region(tuple(map(float, zyx)), spacing_mm)

    def about_box(self, box: BoxPrompt) -> Region:
        """Return the first region for a box."""
        return self.about(self.extent_of_box(box))

    def extent_of_box(self, box: BoxPrompt) -> Extent:
        """Return the target's extent: the box, widened where it was drawn on one slice alone."""
        low, high = np.array(box.start_zyx) - 0.5, np.array(box.stop_zyx) - 0.5
        if box.middle_slice:
            wider = (high - low) * (self.zoom.in_plane - 1) / 2 * [0, 1, 1]
            low, high = low - wider, high + wider
        return Extent(low, high)

    def about(self, extent: Extent, *, at_least_mm: float = 0.0) -> Region:
        """Return a region whose edge the extent's longest side fills by the share ``zoom.fill``.

        Args:
            at_least_mm: the smallest spacing allowed.
        """
        longest_mm = ((extent.high - extent.low) * self.voxel_mm).max()
        wanted = longest_mm / (self.zoom.fill * self.rule.size)
        # A cube twice as long as the image holds all of it, wherever in the image its middle is.
        coarsest = max(
            self.rule.spacing_mm * self.zoom.coarsest, 2 * self._longest_mm / self.rule.size
        )
        spacing_mm = float(
            np.clip(max(wanted, at_least_mm), self.finest_mm, max(coarsest, self.finest_mm))
        )
        return Region(tuple(map(float, (extent.low + extent.high) / 2)), spacing_mm)

    def holds(self, region: Region, zyx: Triple) -> bool:
        """Tell whether a voxel lies in a region."""
        offset_mm = np.abs(np.subtract(zyx, region.centre_zyx)) * self.voxel_mm
        return bool((offset_mm < region.spacing_mm * self.rule.size / 2).all())

    def widened(self, region: Region, extent: Extent | None, points: np.ndarray) -> Region:
        """Return a region that also holds clicks outside of the present one.

        Args:
            region: the present one.
            extent: of the present mask; None if it is empty.
            points: (n, 3) clicked voxels.
        """
        nothing = Extent(np.full(3, np.inf), np.full(3, -np.inf))
        wanted = (extent or nothing).joined(points)
        return self.about(wanted, at_least_mm=region.spacing_mm)

    def next_region(self, region: Region, mask: np.ndarray, points: np.ndarray) -> Region | None:
        """Return the region that fits this mask better; None if the present one fits.

        Args:
            region: the present one.
            mask: (m, m, m) bool, cells of the region's cube.
            points: (n, 3) foreground clicks; the next region holds them too.
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
        """Extend an extent beyond the faces of the cube that the mask touches.

        It ends at the border of the image.

        Returns:
            the extent, and whether the mask touches a face inside of the image.
        """
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
    """Return the extent on the image of a mask (m, m, m) in a cube; None if the mask is empty."""
    if not mask.any():
        return None
    cell = grid.size / mask.shape[0]
    corners = np.array([grid.to_volume(corner) for corner in bounding_box(mask) * cell - 0.5])
    return Extent(corners.min(axis=0), corners.max(axis=0))


def extent_of(mask: np.ndarray) -> Extent:
    """Return the extent of a mask (D, H, W) on the image; at least one voxel is True."""
    low, high = bounding_box(mask)
    return Extent(low - 0.5, high - 0.5)
