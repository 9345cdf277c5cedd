"""The data sets that the flags of `utils.preparation.nnunet` name: files, classes, settings.

A source is one nnU-Net folder, or one pair of folders of images and labels. Both become a `Source`,
so later steps treat them alike.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from utils.errors import InputError
from utils.preparation.case_names import require_no_collision
from utils.preparation.cleaning import cleaning_rule
from utils.preparation.find_files import FoundFiles
from utils.preparation.nnunet_dataset import (
    CHANNEL,
    chosen_channels,
    classes_of_flags,
    folders_of,
    read_description,
    require_folder_name,
)
from utils.preparation.volume_files import IMAGE_ROLE, find_volumes


@dataclass(frozen=True)
class Recipe:
    """The settings that decide a case's outputs, together with its files.

    They are a job's settings, so every field must be a JSON value.
    """

    classes: dict[str, list[int]]  # class name -> label values whose union it is
    channels: list[int]  # numbers of all channels of the data set, chosen or not
    modalities: dict[str, str]  # data set -> what dataset.json calls its channel
    ignored: list[int]  # label values that are allowed and belong to no class
    instances: bool  # values are instance numbers of the one class
    folders: dict[str, str]  # role of an image -> its data set
    spacing_xyz: list[float] | None  # mm to resample to
    cleaning: dict  # fields of a `CleaningRule`


@dataclass(frozen=True)
class Source:
    """A data set to prepare."""

    name: str
    labels: FoundFiles  # by case
    images: FoundFiles  # by case, or by case and channel number where there are channels
    recipe: Recipe


def find_sources(args: argparse.Namespace) -> list[Source]:
    """Find the data sets that the flags name, and their files.

    Raises:
        InputError: flags of both kinds of source, of neither, or two data sets of one name.
    """
    pairs = {f"--{name}": vars(args)[name] for name in ("images", "labels", "dataset", "classes")}
    if args.nnunet and (args.instances or any(pairs.values())):
        raise InputError(
            f"--nnunet is given with {', '.join(k for k in pairs if pairs[k]) or '--instances'}. "
            "Expected one kind of source: run once for each kind."
        )
    if not args.nnunet and (args.channels or not all(pairs.values())):
        raise InputError(
            f"--nnunet is not given, and neither are {[k for k in pairs if not pairs[k]]}. "
            f"Expected --nnunet (and --channels), or {', '.join(pairs)} (and --instances)."
        )
    sources = [nnunet_source(folder, args) for folder in args.nnunet or ()] or [pairs_source(args)]
    names = [name for source in sources for name in source.recipe.folders.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two data sets would be {twice}. Expected a folder for each: rename one, or give a "
            "link to it that has another name."
        )
    require_no_collision(set(names), "data sets")
    return sources


def require_outside(args: argparse.Namespace) -> None:
    """Refuse an output folder in an input folder, where outputs would become inputs."""
    out = args.out.resolve()
    for folder in filter(None, (*(args.nnunet or ()), args.images, args.labels)):
        if out.is_relative_to(folder.resolve()):
            raise InputError(
                f"{args.out}: lies in {folder}, which is read. Expected an output folder of its "
                "own: choose another with --out."
            )


def nnunet_source(folder: Path, args: argparse.Namespace) -> Source:
    """Read the description of an nnU-Net folder and find its files."""
    name = Path(os.path.abspath(folder)).name
    require_folder_name(name, "the data set's folder")
    description = read_description(folder / "dataset.json")
    folders = folders_of(name, description.channels)
    modalities = dict(zip(folders.values(), description.channels.values(), strict=True))
    if args.channels:
        chosen = chosen_channels(folder, description.channels, args.channels)
        folders = {role: folders[role] for role in chosen}
    labels, images = (find_volumes(folder / kind) for kind in ("labelsTr", "imagesTr"))
    recipe = Recipe(
        classes=description.classes,
        channels=sorted(description.channels),
        modalities={dataset: modalities[dataset] for dataset in folders.values()},
        ignored=description.ignored,
        folders=folders,
        **_settings_of(args),
    )
    return Source(name, labels, images, recipe)


def pairs_source(args: argparse.Namespace) -> Source:
    """Find the files of a folder of images and a folder of labels; flags give name and classes."""
    require_folder_name(args.dataset, "--dataset")
    classes, ignored = classes_of_flags(args.classes, instances=args.instances)
    images, labels = find_volumes(args.images), find_volumes(args.labels)
    if args.images.samefile(args.labels):
        raise InputError(
            f"{args.images}: is given for images and for labels. Expected two folders, with files "
            "of the same names: move images and labels into folders of their own."
        )
    recipe = Recipe(
        classes=classes,
        channels=[],
        modalities={},
        ignored=ignored,
        folders={IMAGE_ROLE: args.dataset},
        **_settings_of(args),
    )
    return Source(args.dataset, labels, images, recipe)


def cases_with_image(source: Source) -> set[str]:
    """Return the cases that have an image, of any channel."""
    if IMAGE_ROLE in source.recipe.folders:
        return set(source.images.files)
    cases = source.labels.files
    return {name if name in cases else CHANNEL.sub("", name) for name in source.images.files}


def _settings_of(args: argparse.Namespace) -> dict:
    """Return the fields of a `Recipe` that flags set."""
    spacing = args.spacing
    if spacing and (len(spacing) not in (1, 3) or not all(1e-6 <= s <= 1e6 for s in spacing)):
        raise InputError(
            f"--spacing is {spacing}. Expected one number or three, X Y Z, from 1e-6 to 1e6 mm."
        )
    return {
        "instances": args.instances,
        "spacing_xyz": spacing * (3 // len(spacing)) if spacing else None,
        "cleaning": cleaning_rule(args).to_dict(),
    }
