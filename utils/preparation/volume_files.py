"""The files of a data set's images and labels: found, listed as sources of a case, and read.

A volume is a file in NIfTI, NRRD or MetaImage, or a folder of DICOM slices. Endings count in upper
and lower case. nnU-Net keeps each channel in a file of its own, <case>_0000.nii.gz. A Medical
Decathlon folder has one file a case, <case>.nii.gz, with the channels along its fourth axis.
"""

from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import InputError
from utils.files.dicom import dicom_files, is_dicom_folder
from utils.files.images import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    image_stem,
    image_suffix,
    read_image,
)
from utils.files.itk import data_files
from utils.files.nifti import Channel, read_nifti
from utils.preparation.find_files import FoundFiles, find_files
from utils.volumes.grid import Volume

IMAGE_ROLE = "image"  # role of an image among a case's files; of channel 0 it is image_0000


@dataclass
class FoundVolumes(FoundFiles):
    """Result of a search for volumes, by their names without ending."""

    left_out: list[Path] = field(default_factory=list)  # files that belong to no volume


def find_volumes(folder: Path) -> FoundVolumes:
    """Find volumes in and below a folder; a folder of DICOM slices counts under its own name.

    Raises:
        InputError: the folder is missing, or holds no volume.
    """
    found = find_files(folder, "", "a folder of images")
    files: dict[str, list[Path]] = {}
    others, parts = [], set()
    for path in (path for paths in found.files.values() for path in paths):
        if image_suffix(path):
            files.setdefault(image_stem(path), []).append(path)
            parts.update(_data_files(path))
        else:
            others.append(path)
    for parent in sorted({path.parent for path in others}):
        if is_dicom_folder(parent):
            files.setdefault(parent.name, []).append(parent)
            parts.update(dicom_files(parent))
    if not files and not found.problems:
        raise InputError(
            f"{folder}: holds no {' or '.join(NIFTI_SUFFIXES)} file, nor one ending in "
            f"{', '.join(ITK_SUFFIXES)}, nor DICOM slices, subfolders included. Expected images: "
            "check the path, or convert the files."
        )
    left_out = sorted(set(others) - parts)
    return FoundVolumes(dict(sorted(files.items())), found.problems, left_out)


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
    files = dicom_files(volume) if volume.is_dir() else [volume, *_data_files(volume)]
    return {role: files[0]} | {f"{role} part {n}": path for n, path in enumerate(files[1:], 1)}


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


def _data_files(path: Path) -> list[Path]:
    """Return the files of voxels beside a header; none where the header cannot be read."""
    try:
        return data_files(path) if image_suffix(path) in ITK_SUFFIXES else []
    except (InputError, OSError):
        return []  # reading it will fail with a message
