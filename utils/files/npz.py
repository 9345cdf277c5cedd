"""Read and check the arrays of a challenge NPZ file.

Volumes are (D, H, W), that is (z, y, x); ``spacing`` is (x, y, z) in mm, the reverse order;
`utils.volumes.geometry.affine_from_spacing` turns it into the affine.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files.npz_archive import MAX_VOXELS, NpzArchive
from utils.volumes.values import require_finite, require_real

SPACING_MM = (1e-9, 1e9)  # far wider than any scanner's: a value outside is a mistake
VOLUME_KEYS = frozenset({"imgs", "gts", "segs"})


def read_npz(
    path: Path,
    keys: Sequence[str],
    *,
    optional: Sequence[str] = (),
    max_voxels: int = MAX_VOXELS,
) -> dict[str, np.ndarray]:
    """Read the named arrays of a challenge file, and no others.

    Args:
        path: the ``.npz`` file.
        keys: arrays that the file must have.
        optional: arrays to read where the file has them.
        max_voxels: size of the largest array that is read.

    Returns:
        name -> array. Volumes (``imgs``, ``gts``, ``segs``) are (D, H, W) and finite;
        ``spacing`` is three positive float64, (x, y, z) in mm.
    """
    with NpzArchive(path, max_voxels) as npz:
        return checked_arrays(npz, keys, optional=optional)


def checked_arrays(
    npz: NpzArchive, keys: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read the named arrays of an open challenge file; see `read_npz`."""
    path = npz.path
    require_keys(npz, keys)
    arrays = {key: npz.array(key) for key in (*keys, *optional) if key in npz.headers}
    for key in VOLUME_KEYS & arrays.keys():
        require_volume_shape(arrays[key].shape, path, key)
        require_real_and_finite(arrays[key], path, repr(key))
    if "spacing" in arrays:
        arrays["spacing"] = _checked_spacing(arrays["spacing"], path)
    return arrays


def require_keys(npz: NpzArchive, keys: Sequence[str]) -> None:
    """Raise `InputError` if the file lacks one of the arrays."""
    missing = [key for key in keys if key not in npz.headers]
    if missing:
        held = str(list(npz.headers))
        raise InputError(
            f"{npz.path}: lacks {', '.join(map(repr, missing))}, holds "
            f"{held if len(held) < 200 else held[:200] + '...'}.\n"
            f"Expected {list(keys)}: check which folder is given for images and for labels."
        )


def require_volume_shape(shape: tuple[int, ...], path: Path, key: str) -> None:
    """Raise `InputError` unless a volume is (D, H, W) and not empty."""
    if len(shape) != 3 or 0 in shape:
        raise InputError(
            f"{path}: {key!r} has shape {shape}. Expected three dimensions (D, H, W), none "
            "of them 0: 2-D pictures and multi-channel volumes are not supported, leave them out."
        )


def require_real_and_finite(array: np.ndarray, path: Path, what: str) -> None:
    """Raise `InputError` for complex numbers, text, NaN, infinity, and values beyond float32."""
    require_real(array, f"{path}: {what}")
    require_finite(array, f"{path}: {what}")


def _checked_spacing(spacing: np.ndarray, path: Path) -> np.ndarray:
    good = spacing.shape == (3,) and spacing.dtype.kind in "uif"
    if not good or not ((spacing >= SPACING_MM[0]) & (spacing <= SPACING_MM[1])).all():
        found = spacing.tolist() if spacing.size <= 4 else f"of shape {spacing.shape}"
        raise InputError(
            f"{path}: 'spacing' is {found}. Expected three positive numbers, the voxel "
            f"size (x, y, z) in mm, from {SPACING_MM[0]:g} to {SPACING_MM[1]:g}: write the "
            "scanner's values into the file."
        )
    return spacing.astype(np.float64)
