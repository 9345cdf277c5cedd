"""Read a DICOM series: a folder of slices becomes one volume.

SimpleITK reads the slices, with slope and intercept applied. Position and orientation of every
slice are compared here: they must form one regular grid, so no slice may be missing.
"""

import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import InputError
from utils.files.itk import (
    LPS_TO_RAS,
    itk_errors,
    require_one_value,
    require_size,
    simple_itk,
)
from utils.files.npz import require_real_and_finite
from utils.files.npz_archive import MAX_VOXELS
from utils.volumes.grid import Volume

if TYPE_CHECKING:
    import SimpleITK

EXPECTED = "a slice of a DICOM series"
SUFFIXES = (".dcm", ".dicom", ".ima")
MAGIC_AT, MAGIC = 128, b"DICM"
IRREGULAR = 0.1  # distances between slices that a slice may lie off the regular grid
PARALLEL = 1e-3  # difference of direction cosines
ADVICE = "convert the series to NIfTI, such as with dcm2niix"


@dataclass(frozen=True)
class Slice:
    """The header of one file."""

    path: Path
    series: str
    title: str  # modality and description, for messages
    modality: str
    position: tuple[float, ...]  # LPS mm of the first voxel
    axes: np.ndarray  # (2, 3): LPS directions of growing x and y
    size: tuple[int, int]  # x, y
    spacing: tuple[float, float]  # mm along x, y


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files in a folder (not in its subfolders), sorted.

    `is_dicom` says which they are.
    """
    return [path for path in sorted(folder.iterdir()) if is_dicom(path)]


def is_dicom_folder(folder: Path) -> bool:
    """Tell whether a folder holds a DICOM file."""
    try:
        return any(map(is_dicom, folder.iterdir()))
    except OSError:
        return False


def read_series(folder: Path, max_voxels: int = MAX_VOXELS, *, series: str | None = None) -> Volume:
    """Read the DICOM series in a folder.

    Args:
        series: its SeriesInstanceUID, where the folder holds several.

    Raises:
        InputError: the folder holds no series, several, or slices that form no regular grid.
    """
    slices = _ordered(folder, _chosen(folder, series))
    affine = LPS_TO_RAS @ _lps_affine(folder, slices)
    x, y = slices[0].size
    require_size(folder, x * y * len(slices), max_voxels)
    array = np.stack([_voxels_of(each) for each in slices])
    require_real_and_finite(array, folder, "the series")
    return Volume(array, affine)


def series_modality(folder: Path, *, series: str | None = None) -> str | None:
    """Return the modality of a folder's series, such as ``CT``."""
    return _chosen(folder, series)[0].modality or None


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM, by its ending or the mark at byte 128."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR":
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        if path.suffix.lower() in SUFFIXES:
            return True
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def _chosen(folder: Path, uid: str | None) -> list[Slice]:
    """Return the slices of one series, in no order."""
    slices = [_header_of(path) for path in dicom_files(folder)]
    found = Counter(each.series for each in slices)
    if uid is None and len(found) == 1:
        return slices
    chosen = [each for each in slices if each.series == uid]
    if not chosen:
        titles = {each.series: each.title for each in slices}
        listed = "".join(f"\n  {key}  {titles[key]}, {n} files" for key, n in found.items())
        what = f"has no series {uid}" if uid else f"holds {len(found)} DICOM series"
        raise InputError(
            f"{folder}: {what}:{listed}\nExpected one: name it with --series UID, or give each "
            "series a folder of its own."
        )
    return chosen


def _header_of(path: Path) -> Slice:
    sitk = simple_itk()
    with itk_errors(path, EXPECTED):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("GDCMImageIO")
        reader.ReadImageInformation()
        require_one_value(path, reader.GetNumberOfComponents())
        if reader.GetSize()[2:] not in ((), (1,)):
            raise InputError(
                f"{path}: holds {reader.GetSize()[2]} frames in one file. Expected one slice a "
                f"file: {ADVICE}."
            )

        def tag(key: str) -> str:
            return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""

        _require_grey_and_spacing(path, reader, tag)
        position = tuple(float(part) for part in tag("0020|0032").split("\\") if part.strip())
        axes = np.array([float(part) for part in tag("0020|0037").split("\\") if part.strip()])
        if len(position) != 3 or axes.shape != (6,) or not np.isfinite([*position, *axes]).all():
            raise InputError(
                f"{path}: has no position and orientation. Expected a slice of a 3-D series: move "
                "this file elsewhere."
            )
        modality = tag("0008|0060")
        title = f"{modality} {tag('0008|103e')}".strip()
        return Slice(
            path, tag("0020|000e"), title, modality, position, axes.reshape(2, 3),
            reader.GetSize()[:2], reader.GetSpacing()[:2],
        )  # fmt: skip


def _require_grey_and_spacing(
    path: Path, reader: "SimpleITK.ImageFileReader", tag: Callable[[str], str]
) -> None:
    """Raise `InputError` where SimpleITK would invert the values or make up the pixels' size."""
    if tag("0028|0004").upper() == "MONOCHROME1":
        raise InputError(
            f"{path}: is stored as a negative (MONOCHROME1). Expected MONOCHROME2, since programs "
            f"read the values of negatives differently: {ADVICE}, and check the values."
        )
    given = tag("0028|0030")
    numbers = re.fullmatch(r"([^\\]+)\\([^\\]+)", given)
    try:
        along_y, along_x = map(float, numbers.groups() if numbers else ())
    except ValueError:
        along_y = along_x = 0.0
    if not np.allclose((along_x, along_y), reader.GetSpacing()[:2], rtol=1e-3, atol=0):
        raise InputError(
            f"{path}: its PixelSpacing is {given!r:.40}, read as {reader.GetSpacing()[:2]} mm. "
            f"Expected the size of a pixel in mm, two numbers above 0: {ADVICE}, and check the "
            "voxel size."
        )


def _ordered(folder: Path, slices: list[Slice]) -> list[Slice]:
    """Return the slices in order along their normal; they must be parallel and alike."""
    first = slices[0]
    if len(slices) == 1:
        raise InputError(
            f"{folder}: holds one slice, {first.path.name}. Expected a 3-D series: give the folder "
            "that has all of its slices."
        )
    for each in slices:
        same = each.size == first.size and np.allclose(each.spacing, first.spacing, rtol=1e-3)
        if not same or np.abs(each.axes - first.axes).max() > PARALLEL:
            raise InputError(
                f"{folder}: {first.path.name} and {each.path.name} differ in size, spacing or "
                f"orientation. Expected parallel slices of one size: {ADVICE}, or move one kind "
                "elsewhere (a localizer, for example)."
            )
    normal = np.cross(*first.axes)
    return sorted(slices, key=lambda each: float(np.dot(each.position, normal)))


def _lps_affine(folder: Path, slices: list[Slice]) -> np.ndarray:
    """Return the affine from (x, y, z) to LPS mm; the slices must be equally spaced."""
    first = slices[0]
    normal = np.cross(*first.axes)
    positions = np.array([each.position for each in slices])
    places = positions @ normal
    gaps = np.diff(places)
    step, usual = (places[-1] - places[0]) / (len(places) - 1), float(np.median(gaps))
    _require_regular(folder, slices, gaps, usual)
    off_grid = np.abs(places - places[0] - step * np.arange(len(places))).max()
    shift = positions[-1] - positions[0] - normal * (places[-1] - places[0])
    if off_grid > IRREGULAR * step:
        raise InputError(
            f"{folder}: the slices are {gaps.min():g} to {gaps.max():g} mm apart. Expected equal "
            f"distances: {ADVICE}, and resample it."
        )
    if np.linalg.norm(shift) > min(first.spacing):
        raise InputError(
            f"{folder}: the slices are shifted sideways, by {np.linalg.norm(shift):.4g} mm in all "
            f"(a tilted gantry). Expected a stack of slices along their normal: {ADVICE}."
        )
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.spacing[0]
    affine[:3, 1] = first.axes[1] * first.spacing[1]
    affine[:3, 2] = normal * step
    affine[:3, 3] = first.position
    return affine


def _require_regular(folder: Path, slices: list[Slice], gaps: np.ndarray, usual: float) -> None:
    """Raise `InputError` for two slices in one place, and where slices are missing."""
    narrow, wide = int(gaps.argmin()), int(gaps.argmax())
    if gaps[narrow] <= max(IRREGULAR * usual, 1e-6):
        names = f"{slices[narrow].path.name} and {slices[narrow + 1].path.name}"
        raise InputError(
            f"{folder}: {names} lie in one place. Expected one slice in each: give each time point "
            "or echo a folder of its own, and remove copies."
        )
    if gaps[wide] > 1.5 * usual:
        names = f"{slices[wide].path.name} and {slices[wide + 1].path.name}"
        raise InputError(
            f"{folder}: {names} are {gaps[wide]:g} mm apart, other slices {usual:g} mm. Expected "
            "equal distances: slices are missing, copy the whole series again."
        )


def _voxels_of(each: Slice) -> np.ndarray:
    """Return a slice's voxels (y, x); as int16 where that holds them, which halves the memory."""
    sitk = simple_itk()
    with itk_errors(each.path, EXPECTED):
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(each.path), imageIO="GDCMImageIO"))
    voxels = voxels.reshape(each.size[::-1])
    limits = np.iinfo(np.int16)
    fits = voxels.dtype.kind in "iu" and limits.min <= voxels.min() and voxels.max() <= limits.max
    return voxels.astype(np.int16) if fits else voxels
