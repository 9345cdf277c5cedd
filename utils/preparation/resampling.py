"""Resample volumes to another voxel size; axes and first corner stay.

Voxels are cells: a volume reaches from half a voxel before its first centre to half a voxel behind
its last, so its first corner has index -0.5. That corner stays. The far sides move by at most half
a new voxel, since the volume has a whole number of new voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from utils.volumes.grid import Grid, Volume

SAME_SPACING = 1e-5  # relative: headers hold seven digits


@dataclass(frozen=True, eq=False)
class Resampling:
    """A change from one grid to another with the same axes and the same first corner."""

    grid: Grid  # the new grid
    steps_zyx: np.ndarray  # source voxels per new voxel; 1 where an axis is unchanged

    @classmethod
    def of(cls, source: Grid | Volume, spacing_xyz: Sequence[float] | None) -> "Resampling":
        """Plan the change from a grid to a spacing in mm; None keeps the grid."""
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
        """Whether the new grid differs from the source's."""
        return bool((self.steps_zyx != 1).any())

    def apply(self, array: np.ndarray, order: int) -> np.ndarray:
        """Resample (D, H, W) and keep the dtype; ``order`` 0 is nearest neighbour, 1 linear."""
        if not self.changes:
            return array
        return ndimage.affine_transform(  # computed in double, rounded for whole dtypes
            array,
            self.steps_zyx,
            offset=(self.steps_zyx - 1) / 2,
            output_shape=self.grid.shape,
            output=array.dtype,
            order=order,
            mode="nearest",
        )
