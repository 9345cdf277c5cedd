"""The two forms of a NIfTI header, and where viewers show the voxels that they place.

A header holds an sform, which is an affine, and a qform, which is a rotation with an offset and the
voxel sizes in ``pixdim``. Each has a code; a form with code 0 does not count. Programs choose
differently where the forms differ:

* nibabel, and with it this project, takes the sform, else the qform. Where both codes are 0 it puts
  the middle of the volume at the origin, with x growing to the patient's left.
* ITK 5 (3D Slicer, ITK-SNAP, SimpleITK) takes the sform where that is orthogonal and its code is 1
  or the qform's is 0, else the qform. Voxel sizes are always those of ``pixdim``. Where both codes
  are 0 it puts the first voxel at the origin, along LPS. (It may also take an sform of another code
  that mirrors the qform about one first voxel; that depends on rounding and is left out here.)

So a file on the grid of an input keeps all of the input's fields: then it lies on the input in
every viewer.
"""

from dataclasses import dataclass

import numpy as np

MILLIMETRES = 2  # NIfTI's code
UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's codes for metres, millimetres, micrometres
UNIT_NAMES = {1: "metres", 3: "micrometres"}
SPATIAL_UNITS = 7  # bits of ``xyzt_units`` that hold the unit of length
SCANNER = 1  # the code of scanner coordinates
ORTHOGONAL = 1e-4  # ITK's tolerance for the products of an sform's unit axes
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # turns RAS+ to ITK's and DICOM's LPS+, and back


@dataclass(frozen=True, eq=False)
class Forms:
    """The fields of a NIfTI header that place its voxels, in the header's own units."""

    srow: np.ndarray  # (3, 4): srow_x, srow_y, srow_z
    sform_code: int
    quaternion: np.ndarray  # (3,): quatern_b, quatern_c, quatern_d
    offset: np.ndarray  # (3,): qoffset_x, qoffset_y, qoffset_z
    qform_code: int
    pixdim: np.ndarray  # (8,): the qform's handedness, then voxel sizes x, y, z and others
    xyzt_units: int

    @property
    def unit(self) -> int:
        """NIfTI's code of the unit of length; mm where the header names none."""
        code = self.xyzt_units & SPATIAL_UNITS
        return code if code in UNIT_MM else MILLIMETRES

    def in_mm(self, affine: np.ndarray) -> np.ndarray:
        """Return an affine in the header's unit as one in mm."""
        return np.diag([*[UNIT_MM[self.unit]] * 3, 1.0]) @ affine

    @property
    def qform(self) -> np.ndarray | None:
        """The affine of the qform to RAS+ mm; None where its code is 0."""
        return self._affine_of(self._rotation(), self.offset) if self.qform_code > 0 else None

    @property
    def itk_affine(self) -> np.ndarray | None:
        """The affine (x, y, z) to RAS+ mm by which ITK shows the voxels; None: ITK refuses them."""
        if self.sform_code <= 0 and self.qform_code <= 0:
            return self._affine_of(LPS[:3, :3], np.zeros(3))
        axes = _unit_axes(self.srow[:, :3])
        if axes is not None and (self.sform_code == SCANNER or self.qform_code <= 0):
            return self._affine_of(axes, self.srow[:, 3])
        return self.qform

    def _affine_of(self, axes: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """Join unit axes (3, 3), voxel sizes and an origin, as ITK does; in mm.

        A negative size turns its axis, as in some old files; nibabel drops the sign.
        """
        sizes = np.where(self.pixdim[1:4] == 0, 1.0, self.pixdim[1:4])
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = axes * sizes, origin
        return self.in_mm(affine)

    def _rotation(self) -> np.ndarray:
        """Return the qform's axes (3, 3), the third flipped where ``pixdim[0]`` is negative."""
        b, c, d = self.quaternion
        rest = 1 - (b * b + c * c + d * d)
        if rest < 1e-7:  # half a turn, as NIfTI's own library computes it
            b, c, d = self.quaternion / max(np.linalg.norm(self.quaternion), 1e-7)
        a = np.sqrt(rest) if rest >= 1e-7 else 0.0
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        return rotation * [1, 1, -1 if self.pixdim[0] < 0 else 1]

    def why_views_differ(self) -> str:
        """Say what in the header makes nibabel and ITK place the voxels differently."""
        codes = f"qform (code {self.qform_code}) and sform (code {self.sform_code})"
        if self.sform_code <= 0 and self.qform_code <= 0:
            return f"{codes} both do not count"
        if self.sform_code > 0 and self.qform_code > 0:
            return f"{codes} differ"
        sizes = ", ".join(f"{size:g}" for size in self.pixdim[1:4])
        return f"pixdim names other voxel sizes ({sizes})"


def _unit_axes(matrix: np.ndarray) -> np.ndarray | None:
    """Return the columns of (3, 3) scaled to length 1; None if they are not orthogonal."""
    lengths = np.linalg.norm(matrix, axis=0)
    if not lengths.all():
        return None
    axes = matrix / lengths
    return axes if np.abs(axes @ axes.T - np.eye(3)).max() <= ORTHOGONAL else None  # NaN: None
