"""Where the voxels of a volume lie, and whether an image and its label share one grid.

Arrays are ``(D, H, W)``, that is ``(z, y, x)``. Affines map ``(x, y, z)`` voxel centres to RAS+ mm.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.volumes import geometry

# Headers in float32 keep seven digits; some tools round the spacing to five. All are relative.
AXIS_TOLERANCE = 1e-4  # of a voxel's side, for each voxel along the axis
ORIGIN_TOLERANCE = 1e-2  # of the smallest voxel's side
FLOAT32_TOLERANCE = 1e-6  # of the largest coordinate of the origin


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a volume, without its voxels: what a header alone holds."""

    shape: tuple[int, int, int]  # (D, H, W)
    affine: np.ndarray  # (4, 4) float64, (x, y, z) voxel centres to RAS+ mm

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Voxel size in mm, in array order."""
        return geometry.spacing_zyx(self.affine)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie."""

    array: np.ndarray  # (D, H, W)
    affine: np.ndarray  # (4, 4) float64, (x, y, z) voxel centres to RAS+ mm

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.array.shape

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Voxel size in mm, in array order."""
        return geometry.spacing_zyx(self.affine)


def require_same_grid(
    image: Volume | Grid, label: Volume | Grid, image_path: Path, label_path: Path
) -> None:
    """Raise `GeometryError` unless image and label have one shape and one affine.

    No file is read: the message names the two paths and takes the case id from ``label_path``.
    """
    if image.shape == label.shape and _is_same_affine(image.affine, label.affine):
        return
    case_id = Path(label_path).name.removesuffix(".nii.gz")
    hint = ""
    if image.shape == label.shape and np.allclose(image.spacing_zyx, label.spacing_zyx):
        hint = "Shape and spacing agree, origin or direction of the axes do not.\n"
    raise geometry.GeometryError(
        f"{case_id}: label and image are on different grids.\n"
        f"  label  {label_path}  {_describe(label)}\n"
        f"  image  {image_path}  {_describe(image)}\n{hint}"
        f"Expected one grid: prepare {case_id} again from files that belong together, or leave it "
        "out."
    )


def _is_same_affine(first: np.ndarray, second: np.ndarray) -> bool:
    """Compare two affines relative to their voxels, which may be nanometres or centimetres."""
    voxel = np.linalg.norm(first[:3, :3], axis=0)
    axes = np.abs(first[:3, :3] - second[:3, :3]) <= AXIS_TOLERANCE * voxel
    tolerance = ORIGIN_TOLERANCE * voxel.min() + FLOAT32_TOLERANCE * np.abs(first[:3, 3]).max()
    return bool(axes.all() and (np.abs(first[:3, 3] - second[:3, 3]) <= tolerance).all())


def _describe(grid: Volume | Grid) -> str:
    spacing = ", ".join(f"{s:.6g}" for s in grid.spacing_zyx)
    return f"shape (D, H, W) {tuple(grid.shape)}, spacing_zyx ({spacing}) mm"
