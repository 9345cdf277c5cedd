"""Read NRRD and MetaImage files (``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``) and write NRRD.

The package SimpleITK does the work. Its arrays are (z, y, x) as ours; its world is LPS, and ours is
RAS, so the x and y axes are negated here, on reading and on writing, and nowhere else.
"""

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import InputError
from utils.files.npz import require_real_and_finite
from utils.files.npz_archive import MAX_VOXELS
from utils.files.safe_read import open_regular, reading
from utils.volumes.grid import Grid, Volume

if TYPE_CHECKING:
    import SimpleITK

EXPECTED = "a complete 3-D NRRD or MetaImage file"
READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"}  # the others are MetaImages
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_HEADER = 2**16  # bytes that a header is searched in
MAX_PARTS = 2**16  # files that a header may name
DATA_FILE = re.compile(rb"^(?:data ?file *: *|ElementDataFile *= *)(.*?)\r?\n", re.I | re.M)
LIST = re.compile(r"LIST *([0-9]?) *D?", re.I)  # one file a line, each of so many axes
PATTERN = re.compile(
    r"([^%\s]*%0?[0-9]{0,2}d[^%\s]*) +(-?[0-9]+) +(-?[0-9]+) +(-?[0-9]+) *([0-9]?)"
)
#: Headers after which the bytes of a file of voxels are not the voxels alone.
NOT_PLAIN = re.compile(
    rb"^(?:CompressedData *= *True|BinaryData *= *False|HeaderSize *=|encoding:(?! *raw)|"
    rb"(?:byte|line) ?skip *:)",
    re.I | re.M,
)
UNITS = re.compile(rb"^(?:space )?units *: *(.*?)\r?$", re.I | re.M)
MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "none", "???", ""}
COMPRESSED = re.compile(rb"^CompressedData *= *True", re.I | re.M)
ANY_ZLIB = 47  # zlib's code for gzip and zlib streams of any window


def simple_itk() -> ModuleType:
    """Import SimpleITK, without its warnings on the screen.

    Raises:
        InputError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            "NRRD, MetaImage and DICOM files need SimpleITK, which is not installed. Expected the "
            "package: pip install SimpleITK, or convert the files to NIfTI."
        ) from error
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def read_itk(path: Path, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a 3-D NRRD or MetaImage file; a fourth dimension of length 1 is dropped."""
    with _opened(path) as reader:
        grid = _grid_of(reader, path)
        require_size(path, math.prod(grid.shape), max_voxels)
        _require_all_parts(path, grid.shape)
        _require_intact(path)
        array = simple_itk().GetArrayFromImage(reader.Execute()).reshape(grid.shape)
        _require_exact_size(path, array)
    require_real_and_finite(array, path, "the volume")
    return Volume(array, grid.affine)


def read_itk_grid(path: Path) -> Grid:
    """Read shape and affine of a NRRD or MetaImage file from its header."""
    with _opened(path) as reader:
        return _grid_of(reader, path)


def itk_modality(path: Path) -> str | None:
    """Return the modality that the header names, such as ``CT``; None where it names none."""
    with _opened(path) as reader:
        keys = {key.lower(): key for key in reader.GetMetaDataKeys()}
        found = [reader.GetMetaData(keys[key]) for key in ("modality", "0008|0060") if key in keys]
    names = [name.strip().upper().removeprefix("MET_MOD_") for name in found]
    return next((name for name in names if name not in ("", "UNKNOWN")), None)


def write_nrrd(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an array (D, H, W) as NRRD, compressed.

    Args:
        affine: (4, 4), from (x, y, z) voxel centres to RAS+ mm.
    """
    sitk = simple_itk()
    image = sitk.GetImageFromArray(array)
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(_last_line(error)) from error


def data_files(path: Path) -> list[Path]:
    """Return the files that hold a header's voxels, for ``.nhdr`` and ``.mhd``.

    These are one file, the files of a list (LIST), or those of a pattern such as s%03d.raw 1 24 1.
    """
    header = _header(path)
    match = DATA_FILE.search(header)
    name = match[1].decode("utf-8", "replace").strip() if match else ""
    if not name or name.upper() == "LOCAL":
        return []
    if LIST.fullmatch(name):
        lines = header[match.end() :].decode("utf-8", "replace").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    elif found := PATTERN.fullmatch(name):
        first, last, step = (int(found[n]) for n in (2, 3, 4))
        numbers = range(first, last + (1 if step > 0 else -1), step or 1)
        names = [found[1] % number for number in numbers[:MAX_PARTS]]
    else:
        names = [name]
    return [path.parent / name for name in names]


def require_size(path: Path, voxels: int, max_voxels: int) -> None:
    """Raise `InputError` if there are too many voxels to read."""
    if voxels > max_voxels:
        raise InputError(
            f"{path}: has {voxels:,} voxels. Expected at most {max_voxels:,}: crop or resample it."
        )


def require_one_value(path: Path, components: int) -> None:
    """Raise `InputError` for voxels with several values."""
    if components != 1:
        raise InputError(
            f"{path}: has {components} values a voxel (colour, or a vector field). Expected one: "
            "convert it to grey values, or write each component into a file of its own."
        )


@contextmanager
def itk_errors(path: Path, expected: str) -> Iterator[None]:
    """Turn SimpleITK's errors into an `InputError` that names the file."""
    with reading(path, expected):
        try:
            yield
        except RuntimeError as error:
            raise ValueError(_last_line(error)) from error


@contextmanager
def _opened(path: Path) -> Iterator["SimpleITK.ImageFileReader"]:
    """Yield a reader that has read the header."""
    sitk = simple_itk()
    with itk_errors(path, EXPECTED):
        open_regular(path).close()
        for part in data_files(path):
            if not part.exists():
                raise InputError(
                    f"{path}: its voxels are missing: there is no {part}. Expected the header's "
                    "files beside it: copy them too."
                )
            open_regular(part).close()  # a pipe would block
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(READERS.get(path.suffix.lower(), "MetaImageIO"))
        reader.ReadImageInformation()
        yield reader


def _grid_of(reader: "SimpleITK.ImageFileReader", path: Path) -> Grid:
    require_one_value(path, reader.GetNumberOfComponents())
    size, dimensions = reader.GetSize(), reader.GetDimension()
    if len(size) == 4 and size[3] == 1:
        size = size[:3]
    if len(size) != 3 or 0 in size:
        what = "is a 2-D picture" if len(size) == 2 else f"has {len(size)} dimensions"
        raise InputError(
            f"{path}: {what}, shape (x, y, ...) {size}. Expected one 3-D volume: split time points "
            "or channels into files of their own; single pictures are not supported."
        )
    _require_millimetres(path)
    lps = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (dimensions, dimensions))[:3, :3]
    lps[:3, :3] = direction * reader.GetSpacing()[:3]
    lps[:3, 3] = reader.GetOrigin()[:3]
    if not np.isfinite(lps).all() or not np.linalg.det(lps[:3, :3]):
        raise InputError(
            f"{path}: direction and spacing {lps[:3, :3].tolist()} map the voxels to no volume. "
            "Expected three independent finite axes: repair the header."
        )
    return Grid(size[::-1], LPS_TO_RAS @ lps)


def _require_all_parts(path: Path, shape: tuple[int, int, int]) -> None:
    """Raise `InputError` if a list names too few files: SimpleITK would leave voxels unset."""
    match = DATA_FILE.search(_header(path))
    name = match[1].decode("utf-8", "replace").strip() if match else ""
    found = LIST.fullmatch(name) or PATTERN.fullmatch(name)
    if not found:
        return
    axes = int(found[found.lastindex] or 2)
    count, expected = len(data_files(path)), math.prod(shape[: max(len(shape) - axes, 0)])
    if axes != 2 and path.suffix.lower() not in READERS:
        raise InputError(
            f"{path}: names files of {axes} axes each. Expected one file a slice, of 2 axes: write "
            "the image into one file."
        )
    if count != expected:
        raise InputError(
            f"{path}: names {count} files of voxels. Expected {expected} for its shape (D, H, W) "
            f"{shape}: copy the whole image again, or write it into one file."
        )


def _require_exact_size(path: Path, array: np.ndarray) -> None:
    """Raise `InputError` if the voxels' files hold more bytes than the header's voxels take."""
    parts = data_files(path)
    size = sum(part.stat().st_size for part in parts)
    if parts and size != array.nbytes and not NOT_PLAIN.search(_header(path)):
        raise InputError(
            f"{path}: its voxels' files have {size:,} bytes. Expected {array.nbytes:,} for shape "
            f"(D, H, W) {array.shape} and {array.dtype}: correct the header."
        )


def _require_millimetres(path: Path) -> None:
    """Raise `InputError` for a NRRD header with other units: SimpleITK would take them for mm."""
    match = UNITS.search(_header(path)) if path.suffix.lower() in READERS else None
    text = match[1].decode("utf-8", "replace") if match else ""
    units = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', text)]
    if other := [unit for unit in units[:4] if unit.strip().lower() not in MILLIMETRES]:
        raise InputError(
            f"{path}: its lengths are in {other[0]!r:.20}. Expected mm: convert spacing and origin "
            "in the header to mm, and name mm there."
        )


def _require_intact(path: Path) -> None:
    """Raise if a MetaImage's compressed voxels are damaged: SimpleITK would read them as noise."""
    if path.suffix.lower() in READERS:
        return
    header = _header(path)
    if not COMPRESSED.search(header) or not (match := DATA_FILE.search(header)):
        return
    parts = data_files(path)
    with open_regular(parts[0] if parts else path) as file:
        file.seek(0 if parts else match.end())
        stream = zlib.decompressobj(ANY_ZLIB)
        while chunk := file.read(2**16):
            stream.decompress(chunk)
    if not stream.eof:
        raise EOFError("its compressed voxels are cut off")


def _header(path: Path) -> bytes:
    """Return the first bytes of a file; of a NRRD file those before the blank line."""
    with open_regular(path) as file:
        start = file.read(MAX_HEADER)
    if path.suffix.lower() in READERS:
        return re.split(rb"\r?\n\r?\n", start, maxsplit=1)[0] + b"\n"
    return start


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
