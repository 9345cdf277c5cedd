"""Digests of the crop cache's images and masks: a file that has changed is not trained on.

The name of an image's file is the digest of its voxels. A target's row holds the digest of its
mask. Masks are compared whenever they are read. An image is compared once in each process, since
this reads all of it, while cutting a crop reads only the voxels of the crop.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from utils.errors import InputError

#: Images that this process has compared: path, size and time of change.
_compared: set[tuple[str, int, int]] = set()


def image_digest(voxels: np.ndarray) -> str:
    """Return the digest of a C-contiguous image, after which its file is named."""
    digest = hashlib.blake2b(voxels.reshape(-1).view(np.uint8), digest_size=16)
    digest.update(f"{voxels.dtype.str} {voxels.shape}".encode())
    return digest.hexdigest()


def require_digest(path: Path, image: np.ndarray) -> None:
    """Raise an `InputError` if an image differs from its digest.

    Args:
        path: of the image.
        image: memory-mapped; read in full unless this process has done so before.
    """
    status = path.stat()
    key = str(path), status.st_size, status.st_mtime_ns
    if key in _compared:
        return
    is_plain = image.dtype.kind in "biuf" and image.flags.c_contiguous
    if not is_plain or image_digest(image) != path.stem:
        raise damaged(path, "its voxels differ from the digest in its name")
    _compared.add(key)


def mask_digest(bits: np.ndarray, row: dict) -> str:
    """Return the digest of a target: of its voxels as bits, its place, and its image's grid."""
    where = json.dumps([row[key] for key in ("part_start", "part_shape", "shape", "voxel_mm")])
    return hashlib.blake2b(bits.tobytes() + where.encode(), digest_size=8).hexdigest()


def mask_of(path: Path, stored: dict, bits: np.ndarray) -> np.ndarray:
    """Return the mask of a target's file: bool, of the shape of its part.

    Args:
        path: of the target, for the message.
        stored: the facts in the file.
        bits: the voxels in the file.

    Raises:
        InputError: the mask is empty, or bits, place or size differ from the target's digest.
    """
    try:
        start, shape = stored["part_start"], stored["part_shape"]
        ends = [a + n for a, n in zip(start, shape, strict=True)]
        inside = all(0 <= a < b <= n for a, b, n in zip(start, ends, stored["shape"], strict=True))
        is_whole = bits.dtype == np.uint8 and bits.size == -(-math.prod(shape) // 8)
        if not inside or not is_whole or mask_digest(bits, stored) != stored["mask"]:
            raise ValueError("its voxels differ from their digest")
        mask = np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool)
    except (ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
    if not mask.any():
        raise damaged(path, "its mask is empty")
    return mask


def damaged(path: Path, found: object) -> InputError:
    """Return the error for a file of the cache that cannot be used."""
    return InputError(
        f"{path}: not readable ({found}), expected a part of a crop cache.\n"
        "Delete the file and run preparelabel.py again: it writes the file anew."
    )
