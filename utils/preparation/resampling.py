"""Volumes on another voxel size, with the same axes and the same first corner (no torch).

Voxels are cells: a volume reaches from half a voxel before its first centre to half a voxel behind
its last, so its corner has index -0.5. That corner stays; the far sides move by half a new voxel at
most, since a whole number of new voxels has to fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.volumes.grid import Grid, Volume

SAME_SPACING = 1e-5  # relative: headers hold seven digits


@dataclass(frozen=True, eq=False)
class Resampling:
    """The way to a grid with the same axes and the same corner."""

    grid: Grid
    steps_zyx: np.ndarray  # voxels of the source per new voxel; 1 where the axis stays as it is

    @classmethod
    def of(cls, source: Grid | Volume, spacing_xyz: Sequence[float] | None) -> "Resampling":
        """Plan the way from a grid to a spacing in mm; None keeps the grid."""
        steps = np.ones(3)
        if spacing_xyz:
            steps = np.array(spacing_xyz[::-1]) / source.spacing_zyx
            steps[np.isclose(steps, 1, rtol=SAME_SPACING, atol=0)] = 1
        shape = tuple(max(1, round(n / step)) for n, step in zip(source.shape, steps, strict=True))
        # The edge at index -0.5 stays, so the first new centre is half a new voxel from it.
        new_to_old = np.diag([*steps[::-1], 1.0])
        new_to_old[:3, 3] = (steps[::-1] - 1) / 2
        return cls(Grid(shape, source.affine @ new_to_old), steps)

    @property
    def changes(self) -> bool:
        """Whether the grid is another one."""
        return bool((self.steps_zyx != 1).any())

    def apply(self, array: np.ndarray, order: int) -> np.ndarray:
        """Resample (D, H, W), dtype kept: ``order`` 0 takes the nearest voxel, 1 is linear."""
        if not self.changes:
            return array
        return ndimage.affine_transform(  # voxel by voxel in double, rounded to whole numbers
            array,
            self.steps_zyx,
            offset=(self.steps_zyx - 1) / 2,
            output_shape=self.grid.shape,
            output=array.dtype,
            order=order,
            mode="nearest",
        )
