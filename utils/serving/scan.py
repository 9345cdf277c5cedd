"""An image as a session holds it: its voxels as read, and as the network gets them.

The intensities of the network's image are mapped as by predict.py, so both give the same masks.
"""

import argparse
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.cases.phantoms import ct_phantom
from utils.cases.prediction import HEADER_MODALITIES, modality_of
from utils.files.images import header_modality, image_stem, read_image
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.grid import Volume
from utils.volumes.intensity import Mapped, map_intensity, named_modality
from utils.volumes.values import require_network_input

#: Kinds of voxels that the page can show; others are shown as float32.
SHOWN_DTYPES = ("uint8", "int16", "uint16", "int32", "float32")
PHANTOM_SEED = (0, 1)


@dataclass(frozen=True)
class IntensityFlags:
    """The flags of `utils.volumes.intensity.add_intensity_arguments`, and ``--series``."""

    modality: str | None = None
    intensity: str = "auto"
    window: tuple[float, float] | None = None
    series: str | None = None


@dataclass(frozen=True, eq=False)
class Scan:
    """An image, on its file's grid."""

    name: str  # of the file, for people and for the names of masks; never a path
    volume: Volume  # as read
    image: np.ndarray  # (D, H, W), as the network gets it
    hounsfield: bool  # the values of ``image`` are Hounsfield units
    is_ct: bool
    mapping: str  # how the intensities were mapped
    warning: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        return self.volume.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels, in both forms."""
        shared = self.image is self.volume.array
        return self.volume.array.nbytes + (0 if shared else self.image.nbytes)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that tell this image, on this grid, from all others."""
        array = np.ascontiguousarray(self.volume.array)
        front = f"{array.dtype.str} {array.shape} {np.round(self.volume.affine, 6).tolist()}"
        digest = hashlib.blake2b(front.encode(), digest_size=16)
        digest.update(array.reshape(-1).view(np.uint8))
        return digest.hexdigest()

    @cached_property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value as read."""
        return float(self.volume.array.min()), float(self.volume.array.max())

    @property
    def view_dtype(self) -> np.dtype:
        """A dtype that the page can show, and that holds the values as read."""
        dtype = self.volume.array.dtype
        shown = {"bool": "uint8", "int8": "int16"}.get(dtype.name, dtype.name)
        return np.dtype(shown if shown in SHOWN_DTYPES else "float32")

    @property
    def view(self) -> np.ndarray:
        """The voxels (D, H, W) as the page shows them; not copied where the dtype is the same."""
        return self.volume.array.astype(self.view_dtype, copy=False)


def open_scan(path: Path, flags: argparse.Namespace | IntensityFlags, max_voxels: int) -> Scan:
    """Read the image of ``--image``, with its modality as predict.py finds it.

    Raises:
        InputError: the image cannot be used, or has more voxels.
    """
    volume = read_image(path, max_voxels, series=flags.series)
    modality, source = modality_of(path, flags)
    return _scan(path.name, volume, flags, modality, source)


def open_upload(path: Path, name: str, flags: IntensityFlags, max_voxels: int) -> Scan:
    """Read an image that was uploaded; nothing beside it is read.

    Args:
        path: where the upload lies, with the ending of its format.
        name: the name that the client gave, of which only words about the modality count.

    Raises:
        InputError: as `open_scan`.
    """
    volume = read_image(path, max_voxels)
    modality, source = flags.modality, "choice"
    if modality is None and (said := header_modality(path)):
        modality, source = HEADER_MODALITIES.get(said, "other"), f"its header, {said}"
    if modality is None:
        modality, source = named_modality(image_stem(Path(name))), "its name"
    return _scan(name, volume, flags, modality, source)


def scan_of_array(
    array: np.ndarray,
    spacing_zyx: tuple[float, float, float],
    name: str,
    modality: str | None = None,
) -> Scan:
    """Return the scan of voxels (D, H, W) that came without header: axes as in challenge files.

    Args:
        modality: one of `MODALITIES`; by default judged by the values.

    Raises:
        InputError: the voxels hold NaN or infinity, or values too large for the network.
    """
    affine = affine_from_spacing(np.array(spacing_zyx[::-1]))
    return scan_of_volume(Volume(array, affine), name, modality)


def scan_of_volume(volume: Volume, name: str, modality: str | None = None) -> Scan:
    """Return the scan of a volume that a client sent without a file; see `scan_of_array`."""
    require_network_input(volume.array, "the image")
    return _scan(name, volume, IntensityFlags(modality), modality, "choice")


def phantom_scan() -> Scan:
    """Return a made-up abdomen, to try the page without an image."""
    phantom = ct_phantom(np.random.default_rng(PHANTOM_SEED))
    volume = Volume(phantom.image, affine_from_spacing(phantom.spacing_xyz))
    return _scan("phantom.nii.gz", volume, IntensityFlags(), None, "")


def voxel_bytes(itemsize: int) -> int:
    """Return the bytes of memory that a session needs for one voxel of an image.

    They are the voxel as read, as the network gets it, and its label, with room for one copy.
    """
    return 2 * itemsize + 2


def _scan(
    name: str,
    volume: Volume,
    flags: argparse.Namespace | IntensityFlags,
    modality: str | None,
    source: str,
) -> Scan:
    mapped = map_intensity(volume.array, flags.intensity, flags.window, modality)
    why = f"{modality} by {source}" if modality else mapped.why
    mapping = f"{mapped.done} ({why})" if why else mapped.done
    is_ct = _is_ct(volume, mapped, modality)
    return Scan(name, volume, mapped.image, mapped.hounsfield, is_ct, mapping, mapped.warning)


def _is_ct(volume: Volume, mapped: Mapped, modality: str | None) -> bool:
    """Tell whether the values are Hounsfield units, which the page shows by CT's windows."""
    known = modality == "ct" or (modality is None and mapped.why.startswith("ct"))
    return bool(known and volume.array.min() < 0)
