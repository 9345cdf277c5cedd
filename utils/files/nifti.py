"""Read and write NIfTI files.

Arrays are ``(D, H, W)``, that is ``(z, y, x)``; NIfTI stores ``(x, y, z)``. The axes are reversed
here, on reading and on writing, and nowhere else. Affines are in mm whatever the header's unit.

Files appear whole or not at all (`utils.files.atomic`). The same voxels give the same bytes, since
the gzip header holds neither name nor time. Intel's ISA-L (package ``isal``) does the compression,
several times as fast as zlib. A file that cannot be used raises `InputError`, whose message begins
with the file; a file that cannot be written raises `WriteError`.
"""

import logging
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.npz import require_real_and_finite
from utils.files.npz_archive import MAX_VOXELS, Deflated
from utils.files.safe_read import open_regular, reading
from utils.volumes.forms import MILLIMETRES, SCANNER, UNIT_NAMES, Forms
from utils.volumes.geometry import spacing_zyx
from utils.volumes.grid import Grid, Volume, is_same_affine

EXPECTED = "a complete 3-D NIfTI file"
DAMAGED = (ImageFileError, HeaderDataError, WrapStructError)  # nibabel raises these
SILENT = logging.Logger("silent", level=logging.CRITICAL + 1)
MAX_SIDE_MM = 1000.0  # of a voxel whose unit is not mm: a longer side means a wrong unit
COMPRESSION = 2  # of ISA-L's 0 to 3: 3 is far slower on labels and no smaller
BLOCK = 2**22  # bytes at a time

GZIP_MAGIC = b"\x1f\x8b"
GZIP_HEADER = GZIP_MAGIC + b"\x08" + bytes(6) + b"\xff"  # deflate, no name, no time, system unknown
HEADER_SIZE = 352  # NIfTI-1 header and the four bytes after it that announce extensions


class Channel(NamedTuple):
    """One of the volumes of a 4-D file."""

    number: int  # from 0
    count: int  # volumes that the file should hold


def read_nifti(path: Path, max_voxels: int = MAX_VOXELS, channel: Channel | None = None) -> Volume:
    """Read a 3-D NIfTI file; trailing axes of length 1 are dropped.

    The array keeps the file's dtype in native byte order (float64 where the header scales).

    Args:
        channel: the volume to read of a file that holds several, along its fourth or fifth axis.

    Raises:
        InputError: the file is missing, damaged, not one 3-D volume, or too large.
    """
    with _opened(path) as stream:
        image, forms = _image_of(stream)
        grid = _grid_of(image, forms, path, channel)
        if math.prod(grid.shape) > max_voxels:
            raise InputError(
                f"{path}: has {math.prod(grid.shape):,} voxels. Expected at most {max_voxels:,}: "
                "if that is right and memory suffices, raise --max-voxels."
            )
        whole = image.dataobj
        several = channel is not None and channel.count > 1
        array = whole[..., channel.number] if several else np.asanyarray(whole)
        array = array.reshape(grid.shape[::-1], order="F").T
        while stream.read(BLOCK):  # read to the end, where gzip checks its checksum
            pass
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    require_real_and_finite(array, path, "the volume")
    return Volume(array, grid.affine, grid.forms)


def read_nifti_grid(path: Path, channel: Channel | None = None) -> Grid:
    """Read shape, affine and forms of a NIfTI file from its header, without the voxels."""
    with _opened(path) as stream:
        return _grid_of(*_image_of(stream), path, channel)


def write_nifti(
    path: Path, array: np.ndarray, affine: np.ndarray, forms: Forms | None = None
) -> None:
    """Write a (D, H, W) array as ``.nii.gz`` in one piece, dtype kept (bool becomes uint8).

    Args:
        affine: (x, y, z) voxel centres to RAS+ mm.
        forms: the forms of the input on whose grid the array lies: sform, qform, codes, voxel sizes
            and units are written as they are. None: both forms hold ``affine`` with code 1, in mm.

    Raises:
        InputError: NIfTI cannot hold such an array.
        ValueError: the forms are of another grid than ``affine``.
        WriteError: the disk is full, or the folder is not writable.
    """
    if array.ndim != 3:
        raise ValueError(f"{path}: a volume is (D, H, W), got shape {array.shape}")
    array = np.ascontiguousarray(array)
    array = array.view(np.uint8) if array.dtype == bool else array
    front = nifti_front(path, array.shape, array.dtype, affine, forms)
    voxels = memoryview(array.reshape(-1).view(np.uint8))
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        igzip.IGzipFile("", "wb", COMPRESSION, file, mtime=0) as stream,
    ):
        stream.write(front)
        for start in range(0, len(voxels), BLOCK):
            stream.write(voxels[start : start + BLOCK])


def nifti_front(
    path: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    affine: np.ndarray,
    forms: Forms | None = None,
) -> bytes:
    """Return the bytes of a NIfTI-1 file that come before its voxels; see `write_nifti`.

    Args:
        path: for messages alone.
        shape: (D, H, W).
    """
    header = _header_of(path, shape, dtype, affine)
    if forms is not None:
        _set_forms(header, forms)
        _require_place(path, header, affine, forms)
    return header.binaryblock + bytes(4)


def write_deflated_nifti(path: Path, source: Deflated, affine: np.ndarray) -> None:
    """Write an array of an NPZ archive as ``.nii.gz`` without inflating and deflating it again.

    An NPZ member and NIfTI's voxels are the same bytes in the same order, since C order of (z, y,
    x) is Fortran order of (x, y, z). Both are deflated. So the gzip stream is the NIfTI header,
    stored as it is, followed by the member's own deflated bytes. These begin with a ``.npy``
    header, which lies between NIfTI's header and the voxels as a header extension with code 0,
    "ignore".

    Raises:
        InputError: the source is damaged; nothing is written.
        WriteError: as in `write_nifti`.
    """
    padding = -(8 + source.header.length) % 16  # an extension's length is a multiple of 16
    extension = struct.pack("<ii", 8 + padding + source.header.length, 0) + bytes(padding)
    header = _header_of(path, source.header.shape, source.header.dtype, affine)
    header["vox_offset"] = HEADER_SIZE + len(extension) + source.header.length
    front = header.binaryblock + b"\x01\0\0\0" + extension
    crc = isal_zlib.crc32_combine(isal_zlib.crc32(front), source.crc, source.size)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(GZIP_HEADER)
        file.write(struct.pack("<BHH", 0, len(front), ~len(front) & 0xFFFF) + front)
        for chunk in source.chunks:
            file.write(chunk)
        file.write(struct.pack("<II", crc, (len(front) + source.size) & 0xFFFFFFFF))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Yield the file's inflated content; errors in the block become `InputError` with its name."""
    with reading(path, EXPECTED, DAMAGED), open_regular(path) as file:
        zipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        yield igzip.IGzipFile(fileobj=file, mode="rb") if zipped else file


def _image_of(stream: BinaryIO) -> tuple[nib.Nifti1Image, Forms]:
    nifti2 = stream.read(4) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # its header takes 540 bytes
    stream.seek(0)
    kind = nib.Nifti2Image if nifti2 else nib.Nifti1Image
    header = kind.header_class.from_fileobj(stream, check=False)
    forms = _forms_of(header)
    if header["vox_offset"] < header.sizeof_hdr:
        raise ValueError(
            f"the voxels begin at byte {header['vox_offset']}, inside the header, as in the .hdr "
            "file of a pair .hdr and .img"
        )
    stream.seek(0)
    return kind.from_stream(stream), forms


def _header_of(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray
) -> nib.Nifti1Header:
    header = nib.Nifti1Header(endianness="<" if dtype.newbyteorder("<") == dtype else ">")
    try:
        header.set_data_dtype(dtype)
        header.set_data_shape(shape[::-1])
    except HeaderDataError as error:
        raise InputError(
            f"{path}: NIfTI cannot hold shape (D, H, W) {shape}, dtype {dtype} ({error}). Expected "
            "at most 32,767 voxels an axis and a common dtype: convert or split the volume."
        ) from error
    header.set_sform(affine, SCANNER)
    header.set_qform(affine, SCANNER)
    header.set_xyzt_units("mm")
    header["vox_offset"] = HEADER_SIZE
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = b"n+1"
    return header


def _set_forms(header: nib.Nifti1Header, forms: Forms) -> None:
    header["srow_x"], header["srow_y"], header["srow_z"] = forms.srow
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = forms.quaternion
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = forms.offset
    header["sform_code"], header["qform_code"] = forms.sform_code, forms.qform_code
    header["pixdim"], header["xyzt_units"] = forms.pixdim, forms.xyzt_units


def _require_place(path: Path, header: nib.Nifti1Header, affine: np.ndarray, forms: Forms) -> None:
    read_again = header.copy()
    read_again.check_fix(logger=SILENT, error_level=100)  # as nibabel does on reading
    if not is_same_affine(forms.in_mm(read_again.get_best_affine()), affine):
        raise ValueError(f"{path}: the forms are not those of the affine {affine.tolist()}")


def _forms_of(header: nib.Nifti1Header) -> Forms:
    """Return the header's forms; ``header`` should be unchecked, with signs and codes as stored."""

    def numbers(*names: str) -> np.ndarray:
        return np.array([header[name] for name in names], np.float64)

    def code(name: str) -> int:
        return max(-32768, min(int(header[name]), 32767))  # NIfTI-1 holds 16 bits, NIfTI-2 32

    return Forms(
        srow=numbers("srow_x", "srow_y", "srow_z"),
        sform_code=code("sform_code"),
        quaternion=numbers("quatern_b", "quatern_c", "quatern_d"),
        offset=numbers("qoffset_x", "qoffset_y", "qoffset_z"),
        qform_code=code("qform_code"),
        pixdim=np.array(header["pixdim"], np.float64),
        xyzt_units=int(header["xyzt_units"]) & 0xFF,
    )


def _grid_of(image: nib.Nifti1Image, forms: Forms, path: Path, channel: Channel | None) -> Grid:
    shape = _shape_of(image, path, channel)
    affine = forms.in_mm(np.asarray(image.affine, dtype=np.float64))
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise InputError(
            f"{path}: affine {affine.tolist()} maps the voxels to no volume. Expected three "
            "independent finite axes: repair the header."
        )
    side = max(spacing_zyx(affine))
    if forms.unit != MILLIMETRES and side > MAX_SIDE_MM:
        raise InputError(
            f"{path}: the header's unit is {UNIT_NAMES[forms.unit]}, so a voxel is {side:.6g} mm "
            f"long. Expected at most {MAX_SIDE_MM:g} mm: correct the unit, as with nibabel's "
            "image.header.set_xyzt_units('mm')."
        )
    return Grid(shape[::-1], affine, forms)


def _shape_of(image: nib.Nifti1Image, path: Path, channel: Channel | None) -> tuple[int, ...]:
    """Return (x, y, z); refuse a file that does not hold one volume of numbers, by what it is."""
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    count = 1 if channel is None else channel.count
    fault = _why_no_volume(shape, image.get_data_dtype(), count)
    if fault:
        found, remedy = fault
        raise InputError(
            f"{path}: shape (x, y, z, ...) {image.shape} holds {found}. Expected one 3-D volume: "
            f"{remedy}."
        )
    return shape[:3]


def _why_no_volume(shape: tuple[int, ...], dtype: np.dtype, count: int) -> tuple[str, str] | None:
    """Return what a file holds instead of ``count`` volumes, and what to do about it."""
    further = shape[3:]
    if dtype.names:
        return "colours (RGB)", "export grey values, one number a voxel"
    if dtype.kind == "c":
        return f"complex numbers ({dtype})", "export their magnitude"
    if len(shape) < 3:
        found = "a 2-D picture" if len(shape) == 2 else f"{len(shape)}-D data"
        return found, "stack the slices of a scan to a volume (x, y, z)"
    if 0 in shape:
        return "no voxel", "export it again"
    if math.prod(further) == max(further, default=1) == count:
        return None
    if count > 1:
        found = f"{math.prod(further)} volumes, where the data set has {count} channels"
        return found, "correct the channels in dataset.json, or leave the case out"
    if len(shape) == 4:
        found = f"a series of {further[0]} volumes (time points or channels)"
        return found, "split it into one file for each"
    is_vector = len(shape) == 5 and further[0] == 1
    found = f"vectors of {further[1]} numbers" if is_vector else f"{len(shape)}-D data"
    return found, "split it into one file for each component or time point"
