"""NIfTI files whose headers place the voxels in every way that is in use, and where viewers do."""

import struct

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.eulerangles import euler2mat

ZOOMS = (1.5, 1.25, 2.0)
LPS = np.diag([-1, -1, 1, 1])


def affine_of(angles=(0, 0, 0), zooms=ZOOMS, origin=(40, 35, -30)):
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*angles) @ np.diag(zooms)
    affine[:3, 3] = origin
    return affine


STRAIGHT = affine_of(zooms=(-1.5, -1.25, 2))
OBLIQUE = affine_of((0.3, -0.2, 0.5))
LEFT_HANDED = affine_of((0.3, -0.2, 0.5), (-1.5, 1.25, 2))
MNI = affine_of((0.1, 0, 0), (-1.35, -1.2, 1.8), (43, 28, -25))  # another place and other sizes
SHEARED = OBLIQUE @ [[1, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]

#: name -> sform, its code, qform, its code, and other fields of the header
KINDS = {
    "both codes 0": (None, 0, None, 0, {}),
    "both codes 0, forms filled in": (MNI, 0, OBLIQUE, 0, {}),
    "qform only": (None, 0, OBLIQUE, 1, {}),
    "qform only, left-handed": (None, 0, LEFT_HANDED, 1, {}),
    "qform only, half a turn": (None, 0, STRAIGHT, 2, {}),
    "sform only": (OBLIQUE, 1, None, 0, {}),
    "sform only, of MNI": (LEFT_HANDED, 4, None, 0, {}),
    "sform only, other sizes": (MNI, 1, None, 0, {}),
    "scanner and MNI": (MNI, 4, STRAIGHT, 1, {}),
    "differing, both scanner": (OBLIQUE, 1, STRAIGHT, 1, {}),
    "differing, sform aligned": (OBLIQUE, 2, STRAIGHT, 1, {}),
    "left and right swapped": (
        affine_of(zooms=(1.5, -1.25, 2), origin=(-50, 35, -30)),
        2,
        STRAIGHT,
        1,
        {},
    ),
    "one form, codes 2 and 1": (STRAIGHT, 2, STRAIGHT, 1, {}),
    "one form, left-handed": (LEFT_HANDED, 1, LEFT_HANDED, 1, {}),
    "sheared sform with qform": (SHEARED, 1, OBLIQUE, 1, {}),
    "micrometres": (OBLIQUE, 1, OBLIQUE, 1, {"xyzt_units": 3}),
    "micrometres, both codes 0": (None, 0, None, 0, {"xyzt_units": 3}),
    "metres": (OBLIQUE / 1000, 1, OBLIQUE / 1000, 1, {"xyzt_units": 1}),
    "metres, qform only": (None, 0, OBLIQUE / 1000, 1, {"xyzt_units": 1}),
    "no unit, seconds": (STRAIGHT, 1, STRAIGHT, 1, {"xyzt_units": 8}),
    "voxel size 0": (None, 0, OBLIQUE, 1, {"pixdim": (1, 1.5, 0, 2)}),
    "negative voxel size": (None, 0, OBLIQUE, 1, {"pixdim": (1, -1.5, 1.25, 2)}),
    "negative voxel size, both codes 0": (None, 0, None, 0, {"pixdim": (1, 1.5, -1.25, 2)}),
}


def write_kind(path, kind, array, image_class=nib.Nifti1Image):
    """Write (D, H, W) with a header of this kind."""
    sform, sform_code, qform, qform_code, fields = KINDS[kind]
    image = image_class(array.T, None)
    scale = 0.001 if fields.get("xyzt_units") == 1 else 1
    image.header.set_zooms(scale * np.array(ZOOMS))
    for matrix, set_form in ((sform, image.header.set_sform), (qform, image.header.set_qform)):
        if matrix is not None:
            matrix = matrix.copy()
            matrix[3, 3] = 1
            set_form(matrix, 1)
    image.header["sform_code"], image.header["qform_code"] = sform_code, qform_code
    image.header["xyzt_units"] = fields.get("xyzt_units", 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    if "pixdim" in fields:  # nibabel would correct it
        content = bytearray(path.read_bytes())
        content[76:92] = struct.pack("<4f", *fields["pixdim"])
        path.write_bytes(content)


def itk_affine_of(path):
    """Where SimpleITK, as 3D Slicer and ITK-SNAP, shows a file: (x, y, z) to RAS+ mm."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def shown_alike(first, second):
    """Whether nibabel and SimpleITK both show two files at one place."""
    by_nibabel = np.array_equal(nib.load(first).affine, nib.load(second).affine)
    units = [nib.load(path).header["xyzt_units"] for path in (first, second)]
    by_itk = np.array_equal(itk_affine_of(first), itk_affine_of(second))
    return by_nibabel and by_itk and units[0] == units[1]
