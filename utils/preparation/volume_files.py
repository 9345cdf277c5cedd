"""The files of a data set's images and labels: found, listed as sources of a case, and read.

A volume is a file in NIfTI, NRRD or MetaImage, or a folder of DICOM slices. Endings count in upper
and lower case. nnU-Net keeps each channel in a file of its own, <case>_0000.nii.gz. A Medical
Decathlon folder has one file a case, <case>.nii.gz, with the channels along its fourth axis.
"""

from pathlib import Path

from utils.errors import InputError
from utils.files.dicom import is_dicom
from utils.files.images import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    image_stem,
    image_suffix,
    parts_of,
    read_image,
)
from utils.files.nifti import Channel, read_nifti
from utils.preparation.find_files import FoundFiles, find_files
from utils.preparation.outcomes import print_entry
from utils.volumes.grid import Volume

IMAGE_ROLE = "image"  # role of an image among a case's files; of channel 0 it is image_0000


def find_volumes(folder: Path) -> FoundFiles:
    """Find volumes in and below a folder, by their names without ending.

    A folder with DICOM files directly in it is one volume. What is left out is printed.

    Raises:
        InputError: the folder is missing, or holds no volume.
    """
    found = find_files(folder, "", "a folder of images")
    files: dict[str, list[Path]] = {}
    others, parts = [], set()
    for path in (path for paths in found.files.values() for path in paths):
        if image_suffix(path):
            files.setdefault(image_stem(path), []).append(path)
            parts.update(parts_of(path))
        elif is_dicom(path):
            if path.parent not in files.setdefault(path.parent.name, []):
                files[path.parent.name].append(path.parent)
        else:
            others.append(path)
    if not files and not found.problems:
        raise InputError(
            f"{folder}: holds no {' or '.join(NIFTI_SUFFIXES)} file, nor one ending in "
            f"{', '.join(ITK_SUFFIXES)}, nor DICOM slices, subfolders included. Expected images: "
            "check the path, or convert the files."
        )
    if left_out := sorted(set(others) - parts):
        names = ", ".join(str(path.relative_to(folder)) for path in left_out[:5])
        note = f"left out {len(left_out)} files that are no images, such as {names}"
        print_entry(f"NOTE {folder}: {note}")
    return FoundFiles(dict(sorted(files.items())), found.problems)


def only_volume(paths: list[Path]) -> Path:
    """Return the one volume that `find_volumes` found for a name; refuse several."""
    if len(paths) > 1:
        listed = "\n  ".join(map(str, paths[:5]))
        raise InputError(
            f"{paths[0]}: is one of {len(paths)} files of one name:\n  {listed}\n"
            "Expected one: move the others elsewhere, or give each case a name of its own."
        )
    return paths[0]


def images_of(images: FoundFiles, case_id: str, role: str) -> list[Path]:
    """Return the volumes of a channel: those of the channel alone, else those of all channels."""
    files = images.files
    return files.get(case_id + role.removeprefix(IMAGE_ROLE)) or files.get(case_id) or []


def channel_of(path: Path, case_id: str, role: str, channels: list[int]) -> Channel | None:
    """Return which volume of a file is a channel; None where the file holds this channel alone.

    Args:
        role: of the image, such as image_0002.
        channels: numbers of all channels of the data set, rising.
    """
    number = role.removeprefix(IMAGE_ROLE)
    name = image_stem(path)
    if not number or name != case_id:
        return None
    return Channel(channels.index(int(number[1:])), len(channels))


def sources_of(role: str, volume: Path) -> dict[str, Path]:
    """Return the files of a volume by role: its header or first slice, then its other files."""
    first, *others = parts_of(volume)
    return {role: first} | {f"{role} {path.name}": path for path in others}


def volume_of(sources: dict[str, Path], role: str) -> Path:
    """Return the volume whose files `sources_of` listed."""
    path = sources[role]
    return path if image_suffix(path) else path.parent


def read_volume(path: Path, max_voxels: int, channel: Channel | None = None) -> Volume:
    """Read a volume, or one channel of a NIfTI file that holds several.

    Raises:
        InputError: the volume cannot be used, or lacks the channels.
    """
    if image_suffix(path) in NIFTI_SUFFIXES:
        return read_nifti(path, max_voxels, channel)
    if channel is not None and channel.count > 1:
        raise InputError(
            f"{path}: holds one volume, where the data set has {channel.count} channels. Expected "
            "a file for each channel, or NIfTI with all channels: convert it."
        )
    return read_image(path, max_voxels)
