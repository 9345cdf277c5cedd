"""Read a volume of any format: NIfTI, NRRD, MetaImage, or a folder with one DICOM series.

Endings count in upper and lower case. NIfTI is read by `utils.files.nifti`; the others need the
package SimpleITK, which is imported when the first of them is read.
"""

from pathlib import Path

from utils.errors import InputError
from utils.files.npz_archive import MAX_VOXELS
from utils.volumes.grid import Grid, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
IMAGE_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES


def image_suffix(path: Path) -> str:
    """Return the ending by which a file is an image, in lower case; empty for other files."""
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def image_stem(path: Path) -> str:
    """Return a file's name without the ending of an image or of a challenge file."""
    suffix = image_suffix(path) or (".npz" if path.suffix.lower() == ".npz" else "")
    return path.name[: len(path.name) - len(suffix)]


def read_image(path: Path, max_voxels: int = MAX_VOXELS, *, series: str | None = None) -> Volume:
    """Read a 3-D image file, or the DICOM series in a folder.

    Args:
        series: SeriesInstanceUID of the series to read, for a folder that holds several.

    Returns:
        the voxels (D, H, W) in the file's dtype (DICOM and NIfTI: with slope and intercept
        applied), and the affine from (x, y, z) voxel centres to RAS+ mm.

    Raises:
        InputError: the file or series cannot be used, or SimpleITK is needed and not installed.
    """
    if path.is_dir():
        from utils.files.dicom import read_series

        return read_series(path, max_voxels, series=series)
    if image_suffix(path) in ITK_SUFFIXES:
        from utils.files.itk import read_itk

        return read_itk(path, max_voxels)
    from utils.files.nifti import read_nifti

    return read_nifti(path, max_voxels)


def read_image_grid(path: Path) -> Grid:
    """Read shape and affine of an image file from its header, without decoding the voxels."""
    if image_suffix(path) in ITK_SUFFIXES:
        from utils.files.itk import read_itk_grid

        return read_itk_grid(path)
    from utils.files.nifti import read_nifti_grid

    return read_nifti_grid(path)


def parts_of(path: Path) -> list[Path]:
    """Return the files that hold an image: itself, its voxels' file, or the slices of a folder."""
    if path.is_dir():
        from utils.files.dicom import dicom_files

        return dicom_files(path)
    if image_suffix(path) not in ITK_SUFFIXES:
        return [path]
    from utils.files.itk import data_files

    try:
        return [path, *data_files(path)]
    except (InputError, OSError):  # reading the image reports what is wrong with it
        return [path]


def header_modality(path: Path, *, series: str | None = None) -> str | None:
    """Return the modality that a file's header names, such as ``CT``; None where it names none."""
    if path.is_dir():
        from utils.files.dicom import series_modality

        return series_modality(path, series=series)
    if image_suffix(path) in ITK_SUFFIXES:
        from utils.files.itk import itk_modality

        return itk_modality(path)
    return None
