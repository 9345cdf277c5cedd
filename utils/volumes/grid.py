"""Where the voxels of a volume lie, and whether an image and its label share one grid.

Arrays are ``(D, H, W)``, that is ``(z, y, x)``. Affines map ``(x, y, z)`` voxel centres to RAS+ mm.
A volume from a NIfTI file also has its header's `Forms`, by which ITK may place the voxels
elsewhere than ``affine``, which is nibabel's.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.volumes import geometry
from utils.volumes.forms import MILLIMETRES, UNIT_NAMES, Forms

# Headers in float32 keep seven digits; some tools round the spacing to five. All are relative.
AXIS_TOLERANCE = 1e-4  # of a voxel's side, for each voxel along the axis
ORIGIN_TOLERANCE = 1e-2  # of the smallest voxel's side
FLOAT32_TOLERANCE = 1e-6  # of the largest coordinate of the origin
GAP_VOXELS = 0.5  # voxels: forms that differ by less lead to the same nearest voxel


class _Placed:
    """What follows from shape, affine and forms of a volume, with or without its voxels."""

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """Voxel size in mm, in array order."""
        return geometry.spacing_zyx(self.affine)

    @property
    def unit(self) -> int:
        """NIfTI's code of the header's unit of length, which nibabel ignores; mm without forms."""
        return MILLIMETRES if self.forms is None else self.forms.unit

    @property
    def itk_affine(self) -> np.ndarray:
        """The affine by which ITK (3D Slicer, ITK-SNAP) places the voxels.

        It is ``affine`` where the volume has no forms, or forms that ITK refuses.
        """
        affine = None if self.forms is None else self.forms.itk_affine
        return self.affine if affine is None or not np.isfinite(affine).all() else affine

    @property
    def places(self) -> list[np.ndarray]:
        """The affines by which some program may place the voxels, nibabel's first."""
        qform = None if self.forms is None else self.forms.qform
        return [self.affine, self.itk_affine, *([] if qform is None else [qform])]

    @property
    def gap_mm(self) -> float:
        """The largest distance between a voxel's places by nibabel and by ITK, in mm."""
        return largest_gap_mm(self.affine, self.itk_affine, self.shape)

    @property
    def views_differ(self) -> bool:
        """Whether nibabel and ITK place voxels more than half a voxel apart."""
        return self.gap_mm > GAP_VOXELS * min(self.spacing_zyx)

    @property
    def notes(self) -> list[str]:
        """A line for each oddity of the header that decides where the voxels lie."""
        lines = []
        if self.forms is None:
            return lines
        if self.unit != MILLIMETRES:
            lines.append(f"the header's unit is {UNIT_NAMES[self.unit]}: {_voxel_size(self)}")
        if self.forms.itk_affine is None:
            lines.append("ITK (3D Slicer, ITK-SNAP) refuses it: sform not orthogonal, no qform")
        elif self.views_differ:
            lines.append(
                f"{self.forms.why_views_differ()}: nibabel and ITK (3D Slicer, ITK-SNAP) show its "
                f"voxels up to {self.gap_mm:.4g} mm apart"
            )
        return lines


@dataclass(frozen=True, eq=False)
class Grid(_Placed):
    """Shape and affine of a volume, without its voxels: what a header alone holds."""

    shape: tuple[int, int, int]  # (D, H, W)
    affine: np.ndarray  # (4, 4) float64, (x, y, z) voxel centres to RAS+ mm
    forms: Forms | None = None  # of the NIfTI header; None where ``affine`` is all there is


@dataclass(frozen=True, eq=False)
class Volume(_Placed):
    """Voxels and where they lie."""

    array: np.ndarray  # (D, H, W)
    affine: np.ndarray  # (4, 4) float64, (x, y, z) voxel centres to RAS+ mm
    forms: Forms | None = None  # of the NIfTI header; None where ``affine`` is all there is

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.array.shape

    @property
    def grid(self) -> Grid:
        """The volume's place, without its voxels."""
        return Grid(self.shape, self.affine, self.forms)


class Agreement(NamedTuple):
    """How an image and its label share one grid."""

    everywhere: bool  # nibabel and ITK both show the label on the image
    notes: list[str]  # what is odd about the headers, file by file


def require_same_grid(
    image: Volume | Grid, label: Volume | Grid, image_path: Path, label_path: Path
) -> Agreement:
    """Raise `GeometryError` unless image and label have one shape, and one place.

    They have one place if a form of the label is one of the image's: a label drawn in 3D Slicer has
    the form that ITK reads, one drawn with nibabel another. No file is read: the message names the
    two paths and takes the case id from ``label_path``.
    """
    notes = [
        f"{role} {Path(path).name}: {line}"
        for role, path, grid in (("label", label_path, label), ("image", image_path, image))
        for line in grid.notes
    ]
    is_shared = [is_same_affine(a, b) for a, b in product(image.places, label.places)]
    if image.shape == label.shape and any(is_shared):
        views = {
            "nibabel": image.unit == label.unit and is_same_affine(image.affine, label.affine),
            "ITK": is_same_affine(image.itk_affine, label.itk_affine),
        }
        notes += [
            "label and image lie on one grid by one of their forms, but "
            f"{view} shows the label beside the image"
            for view, agrees in views.items()
            if not agrees
        ]
        return Agreement(all(views.values()), notes)
    case_id = Path(label_path).name.removesuffix(".nii.gz")
    hint = "".join(f"  {note}\n" for note in notes)
    if image.shape == label.shape and np.allclose(image.spacing_zyx, label.spacing_zyx):
        hint += "Shape and spacing agree, origin or direction of the axes do not.\n"
    raise geometry.GeometryError(
        f"{case_id}: label and image are on different grids.\n"
        f"  label  {label_path}  {_describe(label)}\n"
        f"  image  {image_path}  {_describe(image)}\n{hint}"
        f"Expected one grid: prepare {case_id} again from files that belong together, or leave it "
        "out."
    )


def largest_gap_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Return the largest distance in mm between a voxel's places by two affines.

    Args:
        shape: (D, H, W) of the volume.
    """
    ends = [(0, n - 1) for n in shape[::-1]]
    corners = np.array([[*corner, 1] for corner in product(*ends)])
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def is_same_affine(first: np.ndarray, second: np.ndarray) -> bool:
    """Compare two affines relative to their voxels, which may be nanometres or centimetres."""
    voxel = np.linalg.norm(first[:3, :3], axis=0)
    axes = np.abs(first[:3, :3] - second[:3, :3]) <= AXIS_TOLERANCE * voxel
    tolerance = ORIGIN_TOLERANCE * voxel.min() + FLOAT32_TOLERANCE * np.abs(first[:3, 3]).max()
    return bool(axes.all() and (np.abs(first[:3, 3] - second[:3, 3]) <= tolerance).all())


def _describe(grid: Volume | Grid) -> str:
    return f"shape (D, H, W) {tuple(grid.shape)}, {_voxel_size(grid)}"


def _voxel_size(grid: Volume | Grid) -> str:
    return f"spacing_zyx ({', '.join(f'{s:.6g}' for s in grid.spacing_zyx)}) mm"
