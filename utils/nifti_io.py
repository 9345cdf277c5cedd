"""Challenge NPZ and NIfTI files, read and written (no torch).

The one place where file order and array order meet:

* Arrays are ``(D, H, W)``, that is ``(z, y, x)``. NIfTI stores ``(x, y, z)``: the axes are reversed
  here on reading and on writing, nowhere else.
* NPZ ``spacing`` is ``(x, y, z)`` in mm; `utils.geometry.affine_from_spacing` makes the affine.
* Reading never trusts the file: no pickle, no NaN, no other number of dimensions. Whatever is
  wrong raises `InputError` with the file in front.
* Files appear whole or not at all (`utils.atomic`). What cannot be written raises `WriteError`.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from utils import geometry
from utils.atomic import atomic_path
from utils.errors import InputError

VOLUME_KEYS = frozenset({"imgs", "gts", "segs", "prev_pred"})
SCANNER = 1  # NIfTI's code for "coordinates of the scanner", what a case's affine is

# float32 headers keep seven digits; 0.1 micrometre and one part in 10,000 is far below a voxel.
AFFINE_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

# What zipfile, gzip, NumPy and nibabel raise on damaged files; `OSError` covers permissions too.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ImageFileError,
    HeaderDataError,
    EOFError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,  # an encrypted member, or a compression unknown to zipfile
    SyntaxError,  # an array header that is no Python literal
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: the part of a volume that its header alone tells."""

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


def read_nifti(path: Path) -> Volume:
    """Read a 3-D NIfTI file; a fourth dimension of length 1 is dropped.

    The array keeps the file's dtype in native byte order (float64 where the header scales).
    """
    with _reading(path, "a complete 3-D NIfTI file"):
        image = nib.load(path)
        grid = _grid_of(image, path)
        array = np.asanyarray(image.dataobj).reshape(grid.shape[::-1], order="F").T
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    _require_real_and_finite(array, path, "the volume")
    return Volume(array, grid.affine)


def read_nifti_grid(path: Path) -> Grid:
    """Read shape and affine of a NIfTI file from its header, without decoding the voxels."""
    with _reading(path, "a complete 3-D NIfTI file"):
        return _grid_of(nib.load(path), path)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a (D, H, W) array as ``.nii.gz`` in one piece, dtype kept (bool becomes uint8).

    Sform and qform both hold ``affine`` with code 1, units are mm.

    Raises:
        WriteError: the disk is full, or the folder does not let us write.
    """
    if array.ndim != 3:
        raise ValueError(f"{path}: a volume is (D, H, W), got shape {array.shape}")
    array = array.view(np.uint8) if array.dtype == bool else array
    image = nib.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def read_npz(path: Path, keys: Sequence[str], *, optional: Sequence[str] = ()) -> dict:
    """Read the named arrays of a challenge file, and no others.

    Args:
        path: the ``.npz`` file; object arrays (pickle) in it are never decoded.
        keys: arrays that must be there.
        optional: arrays that are left out of the result where the file lacks them.

    Returns:
        name -> array. Volumes (``imgs``, ``gts``, ``segs``, ``prev_pred``) are (D, H, W) and
        finite; ``spacing`` is three positive float64, (x, y, z) in mm.
    """
    with _reading(path, "a complete challenge NPZ file"):
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: one bare array. Expected an NPZ archive of named arrays.")
        with archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                raise InputError(
                    f"{path}: lacks {', '.join(map(repr, missing))}, holds {archive.files}.\n"
                    f"Expected {list(keys)}: check which folder is given for images and for labels."
                )
            arrays = {key: archive[key] for key in (*keys, *optional) if key in archive}
    for key in VOLUME_KEYS & arrays.keys():
        _require_volume(arrays[key], path, key)
    if "spacing" in arrays:
        arrays["spacing"] = _checked_spacing(arrays["spacing"], path)
    return arrays


def read_npz_shape(path: Path, key: str) -> tuple[int, ...] | None:
    """Return the shape of one array of an NPZ file from its header; None where it is not there."""
    with _reading(path, "a complete challenge NPZ file"), zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            return None
        with archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            return read_header(member)[0]


def as_label(array: np.ndarray, path: Path) -> np.ndarray:
    """Return ``array`` in the smallest unsigned dtype; the values must be whole and not negative.

    Args:
        array: (D, H, W) finite numbers of any dtype, as `read_npz` returns ``gts``.
        path: the file it came from, for the message.
    """
    if array.dtype.kind == "f" and (array != np.floor(array)).any():
        example = array[array != np.floor(array)][0]
        raise InputError(
            f"{path}: the label holds fractions, {example:g} among them. Expected whole class "
            "numbers, 0 for background: a label is never interpolated or scaled; export it again."
        )
    if array.min() < 0:
        raise InputError(
            f"{path}: the label holds negative values, {array.min():g} the lowest. Expected class "
            "numbers from 0 (background) up: map the values to those of the class file."
        )
    return array.astype(np.min_scalar_type(int(array.max())), copy=False)


def require_same_grid(
    image: Volume | Grid, label: Volume | Grid, image_path: Path, label_path: Path
) -> None:
    """Raise `GeometryError` unless image and label have one shape and one affine."""
    if image.shape == label.shape and np.allclose(image.affine, label.affine, **AFFINE_TOLERANCE):
        return
    case_id = Path(label_path).name.removesuffix(".nii.gz")
    hint = ""
    if image.shape == label.shape and np.allclose(image.spacing_zyx, label.spacing_zyx):
        hint = "Shape and spacing agree, origin or direction of the axes do not.\n"
    raise geometry.GeometryError(
        f"{case_id}: label and image are on different grids.\n"
        f"  label  {label_path}  {_describe(label)}\n"
        f"  image  {image_path}  {_describe(image)}\n{hint}"
        f"Expected one grid: run classify.py, categorize.py and reallocate.py again on the "
        f"files of {case_id}, or leave it out."
    )


def _describe(grid: Volume | Grid) -> str:
    spacing = ", ".join(f"{s:.6g}" for s in grid.spacing_zyx)
    return f"shape (D, H, W) {tuple(grid.shape)}, spacing_zyx ({spacing}) mm"


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Turn what a damaged or closed file raises into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Expected {expected}: check the path.") from error
    except UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read ({type(error).__name__}: {error}).\n"
            f"Expected {expected}: copy or download it again, and check that it may be read."
        ) from error


def _grid_of(image: nib.spatialimages.SpatialImage, path: Path) -> Grid:
    shape = image.shape[:-1] if len(image.shape) == 4 and image.shape[3] == 1 else image.shape
    if len(shape) != 3 or 0 in shape:
        raise InputError(
            f"{path}: shape (x, y, z, ...) {image.shape}. Expected one 3-D volume: "
            "split time points or channels into files of their own."
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise InputError(
            f"{path}: affine {affine.tolist()} maps the voxels to no volume. Expected three "
            "independent finite axes: repair the header."
        )
    return Grid(shape[::-1], affine)


def _require_volume(array: np.ndarray, path: Path, key: str) -> None:
    if array.ndim != 3 or array.size == 0:
        raise InputError(
            f"{path}: {key!r} has shape {array.shape}. Expected three dimensions (D, H, W), none "
            "of them 0: a 2-D picture or a multi-channel volume is no case of this challenge."
        )
    _require_real_and_finite(array, path, repr(key))


def _require_real_and_finite(array: np.ndarray, path: Path, what: str) -> None:
    if array.dtype.kind not in "buif":
        raise InputError(
            f"{path}: {what} has dtype {array.dtype}. Expected real numbers: convert it first."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise InputError(
            f"{path}: {what} has {count} voxels that are NaN or infinite. Expected finite values: "
            "export it again, or fill those voxels."
        )


def _checked_spacing(spacing: np.ndarray, path: Path) -> np.ndarray:
    good = spacing.shape == (3,) and spacing.dtype.kind in "uif"
    if not good or not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise InputError(
            f"{path}: 'spacing' is {spacing.tolist()}. Expected three positive numbers, the voxel "
            "size (x, y, z) in mm: write the scanner's values into the file."
        )
    return spacing.astype(np.float64)
