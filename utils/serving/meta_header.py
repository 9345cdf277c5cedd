"""Headers of uploaded MetaImages (``.mha``): read strictly here, and written anew.

The package that reads MetaImages follows a header to other files of this machine. It also takes
lines apart as the format does not say: it finds keys before a colon, and a line with too few
numbers swallows the next line. So it never sees a header of a client: only this module's, with the
keys that are known here, each with a value of its kind.
"""

import re
import shutil
from pathlib import Path

from utils.errors import InputError

MAX_HEADER = 2**16
MOST_AXES = 4
#: Keys with so many numbers: NDims to this power.
NUMBERS = {
    "NDims": 0, "CompressedDataSize": 0, "ElementNumberOfChannels": 0,
    "DimSize": 1, "ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Origin": 1, "Position": 1,
    "CenterOfRotation": 1, "TransformMatrix": 2, "Rotation": 2, "Orientation": 2,
}  # fmt: skip
#: Keys with one word. The last names the modality in images that were DICOM.
WORDS = (
    "ObjectType", "ElementType", "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB",
    "CompressedData", "AnatomicalOrientation", "DistanceUnits", "Modality", "0008|0060",
)  # fmt: skip
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
WORD = re.compile(r"[A-Za-z?_]{1,32}")
END, HERE = "ElementDataFile", "LOCAL"


def rewrite_header(path: Path) -> None:
    """Give a MetaImage a header with nothing but what its voxels need; other keys are dropped.

    Raises:
        InputError: the header is too long, names other files, or is none of a MetaImage.
    """
    with path.open("rb") as file:
        front = file.read(MAX_HEADER)
        try:
            header, start = strict_header(front)
        except ValueError as error:
            raise InputError(
                f"{path}: its header cannot be used: {error}. Expected a MetaImage with header and "
                "voxels in one file: write the image anew as .mha, .nrrd or .nii.gz."
            ) from error
        rewritten = path.with_name("rewritten")
        with rewritten.open("xb") as target:
            file.seek(start)
            target.write(header)
            shutil.copyfileobj(file, target, 2**20)
    rewritten.replace(path)


def strict_header(front: bytes) -> tuple[bytes, int]:
    """Return a header of the known keys of another, and where the voxels begin behind that one.

    Raises:
        ValueError: a line or value is not of the format, or the voxels are elsewhere.
    """
    found: dict[str, str] = {}
    place = 0
    while (stop := front.find(b"\n", place)) >= 0:
        key, _, value = front[place:stop].decode("latin-1").strip(" \t\r").partition("=")
        key, value, place = key.rstrip(" \t"), value.strip(" \t"), stop + 1
        if key == END:
            if value != HERE:
                raise ValueError("its voxels are in another file")
            lines = [*found.items(), (END, HERE)]
            return "".join(f"{name} = {text}\n" for name, text in lines).encode("ascii"), place
        if key == "HeaderSize" and value != "0":
            raise ValueError("its voxels do not begin behind the header")
        if not value or key not in (*NUMBERS, *WORDS):
            continue
        if key in found:
            raise ValueError(f"it has {key} twice")
        found[key] = _checked(key, value, found)
    raise ValueError(f"its first {len(front):,} bytes have no line {END} = {HERE}")


def _checked(key: str, value: str, before: dict[str, str]) -> str:
    if key in WORDS:
        if not WORD.fullmatch(value):
            raise ValueError(f"{key} is {value[:40]!a}")
        return value
    numbers = value.split()
    if not all(map(NUMBER.fullmatch, numbers)):
        raise ValueError(f"{key} is {value[:40]!a}")
    if NUMBERS[key] and "NDims" not in before:
        raise ValueError(f"{key} stands before NDims")
    count = int(before["NDims"]) ** NUMBERS[key] if NUMBERS[key] else 1
    if len(numbers) != count:
        raise ValueError(f"{key} has {len(numbers)} numbers, not {count}")
    if key == "NDims" and value not in map(str, range(1, MOST_AXES + 1)):
        raise ValueError(f"NDims is {value[:40]}")
    return " ".join(numbers)
