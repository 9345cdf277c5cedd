"""Step 1 for other sources: nnU-Net data sets, or folders of images and labels, into the same tree.

Reads   --nnunet   folders DatasetXXX_Name with dataset.json (nnU-Net v2 or v1),
                   imagesTr/<case>_0000.nii.gz, one file a channel, and labelsTr/<case>.nii.gz
        --images --labels   or: two folders with files of the same names, subfolders searched too,
                   and what they hold, --dataset and --classes
Writes  --out      <organ>/<data set>/{imagesTr,labelsTr}/<case>.nii.gz, as the three scripts for
                   challenge files do: a binary uint8 label (--instances: the numbers, uint16) for
                   every organ with a voxel in the case, the image beside it. Each is written once;
                   further organs and channels get hard links. Then comes preparelabel.py.

Of an nnU-Net folder with several channels each becomes a data set, DatasetXXX_Name_<channel>; with
one, the folder's name is the data set's. A region, "whole tumor": [1, 2, 3], is the union of its
values. Voxels of nnU-Net's "ignore" label are outside of every class. Cases without a label
(imagesTs too) are left out. HU are clamped in training only where the data set's name begins with
CT: for nnU-Net folders of CT give a link, CT_Spleen -> Dataset009_Spleen.

Voxels, dtype and affine stay as they are. --spacing resamples: images linearly, without smoothing,
whole numbers rounded to; labels to the nearest voxel. The axes and the volume's first corner stay,
its far sides move by half a new voxel at most. A worker holds all channels of a case in memory.

A case that cannot be used is listed, the others are done, and the exit code is 1. Inputs are only
read. A second run skips what is unchanged, redoes what other flags change (and removes what a case
no longer has, channels for one); a run that was stopped or killed goes on where it was. What became
of each case is in <out>/manifest_nnunet.csv.

    python -m utils.prepare_nnunet --nnunet raw/Dataset009_Spleen raw/Dataset001_BrainTumour
    python -m utils.prepare_nnunet --nnunet raw/Dataset043_BraTS --channels 0 T1w --spacing 1.5
    python -m utils.prepare_nnunet --images ct --labels seg --dataset CT_Ours \\
        --classes 1=liver "2=left kidney"
"""

import argparse
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from scipy import ndimage

from utils.cleaning import (
    CleaningRule,
    add_cleaning_flags,
    clean_instances,
    clean_mask,
    cleaning_rule,
)
from utils.errors import InputError, exit_on_input_error
from utils.label_table import MAX_SLUG_BYTES, organ_slug
from utils.ledger import Entry, Found, Job, Ledger
from utils.nifti_io import (
    MAX_LABEL,
    Grid,
    Volume,
    as_label,
    count_values,
    read_nifti,
    read_nifti_grid,
    require_same_grid,
    write_nifti,
)
from utils.preparation import (
    Findings,
    Step,
    Summary,
    add_run_flags,
    find_files,
    link_or_copy,
    plan_job,
    prepare,
)
from utils.safe_read import open_regular, reading

SUFFIXES = (".nii.gz", ".nii")
LABEL, IMAGE = "label", "image"  # roles of a case's sources; a channel's is image_0000, ...
CHANNEL = re.compile(r"_[0-9]{4}$")  # at the end of an nnU-Net image's name
SAME_SPACING = 1e-5  # relative: headers hold seven digits
LOST = "no voxel is left at this spacing"


@dataclass(frozen=True)
class Recipe:
    """What beside its files decides the outputs of a case: its job's settings, so JSON-able."""

    origin: list[str]  # folders of the files: others may hold other files of one name and size
    classes: dict[str, list[int]]  # class name -> label values whose union it is
    ignored: list[int]  # label values that are known and no class
    instances: bool  # values are instance numbers of the one class
    folders: dict[str, str]  # role of an image -> its data set
    spacing_xyz: list[float] | None  # mm to resample to
    cleaning: dict  # fields of a `CleaningRule`


@dataclass(frozen=True)
class Source:
    """A data set to prepare."""

    name: str
    labels: Findings  # case -> its files
    images: Findings  # case, with its channel's number where there are channels -> its files
    recipe: Recipe


@dataclass(frozen=True)
class Description:
    """What dataset.json says."""

    channels: dict[int, str]
    classes: dict[str, list[int]]
    ignored: list[int]


@dataclass(frozen=True, eq=False)
class Resampling:
    """The way to a grid with the same axes and the same corner."""

    grid: Grid
    steps_zyx: np.ndarray  # voxels of the source per new voxel; 1 where the axis stays as it is

    @classmethod
    def of(cls, source: Grid | Volume, spacing_xyz: Sequence[float] | None) -> "Resampling":
        """Plan the way from a grid to a spacing in mm; None keeps the grid."""
        steps = np.ones(3)
        if spacing_xyz:
            steps = np.array(spacing_xyz[::-1]) / source.spacing_zyx
            steps[np.isclose(steps, 1, rtol=SAME_SPACING, atol=0)] = 1
        shape = tuple(max(1, round(n / step)) for n, step in zip(source.shape, steps, strict=True))
        # The edge at index -0.5 stays, so the first new centre is half a new voxel from it.
        new_to_old = np.diag([*steps[::-1], 1.0])
        new_to_old[:3, 3] = (steps[::-1] - 1) / 2
        return cls(Grid(shape, source.affine @ new_to_old), steps)

    @property
    def changes(self) -> bool:
        """Whether the grid is another one."""
        return bool((self.steps_zyx != 1).any())

    def apply(self, array: np.ndarray, order: int) -> np.ndarray:
        """Resample (D, H, W), dtype kept: ``order`` 0 takes the nearest voxel, 1 is linear."""
        if not self.changes:
            return array
        return ndimage.affine_transform(  # voxel by voxel in double, rounded to whole numbers
            array,
            self.steps_zyx,
            offset=(self.steps_zyx - 1) / 2,
            output_shape=self.grid.shape,
            output=array.dtype,
            order=order,
            mode="nearest",
        )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.prepare_nnunet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nnunet = parser.add_argument_group("nnU-Net data sets")
    nnunet.add_argument(
        "--nnunet", type=Path, nargs="+", metavar="DIR", help="folders DatasetXXX_Name"
    )
    nnunet.add_argument(
        "--channels", nargs="+", metavar="C", help="only these, by number or by name (all)"
    )
    pairs = parser.add_argument_group("or images and labels")
    pairs.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    pairs.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels")
    pairs.add_argument("--dataset", metavar="NAME", help="name for the data set")
    pairs.add_argument(
        "--classes", nargs="+", metavar="VALUE=NAME", help='label values, such as 1=liver "2=a b"'
    )
    pairs.add_argument(
        "--instances", action="store_true", help="label values number objects of the class 1"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="resample to this voxel size: one number, or three along the file's axes X Y Z "
        "(without: voxels stay as they are)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/medical_preprocessed"),
        help="output folder (%(default)s)",
    )
    add_cleaning_flags(parser)
    add_run_flags(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary:
    """Write labels and images of all data sets; return how many cases ended how."""
    sources = find_sources(args)
    jobs, problems = [], []
    for source in sources:
        problems += dict.fromkeys([*source.labels.problems, *source.images.problems])
        jobs += [
            plan_job(plan_case, f"{source.name}/{case_id}", files, source)
            for case_id, files in source.labels.files.items()
        ]
        unlabelled = sorted(cases_with_image(source) - source.labels.files.keys())
        if unlabelled:
            print(
                f"NOTE {source.name}: {len(unlabelled)} cases have an image and no label and are "
                f"left out, {unlabelled[0]} first",
                file=sys.stderr,
            )
    roots = [folder.parent for folder in args.nnunet or ()] or [args.labels, args.images]
    step = Step(
        title="prepare_nnunet",
        ledger=Ledger(args.out, "nnunet", roots),
        work=partial(prepare_case, out=args.out, max_voxels=args.max_voxels),
        space=partial(space_of, max_voxels=args.max_voxels),
    )
    return prepare(step, jobs, problems, args)


def find_sources(args: argparse.Namespace) -> list[Source]:
    """Find the data sets that the flags name, and their files."""
    pairs = {f"--{name}": vars(args)[name] for name in ("images", "labels", "dataset", "classes")}
    if args.nnunet and (args.instances or any(pairs.values())):
        raise InputError(
            f"--nnunet is given with {', '.join(k for k in pairs if pairs[k]) or '--instances'}. "
            "Expected the one kind of source or the other: run once for each."
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
            f"two data sets would be {twice}. Expected a folder for each: rename one, or link to "
            "it by another name."
        )
    return sources


def nnunet_source(folder: Path, args: argparse.Namespace) -> Source:
    """Read what an nnU-Net folder holds."""
    name = Path(os.path.abspath(folder)).name
    _require_folder_name(name, "the data set's folder")
    said = read_description(folder / "dataset.json")
    folders = folders_of(name, said.channels)
    if args.channels:
        chosen = chosen_channels(folder, said.channels, args.channels)
        folders = {_role_of(number): folders[_role_of(number)] for number in chosen}
    labels, images = (find_nifti(folder / kind) for kind in ("labelsTr", "imagesTr"))
    recipe = recipe_of(args, [folder], said.classes, said.ignored, folders)
    return Source(name, labels, images, recipe)


def pairs_source(args: argparse.Namespace) -> Source:
    """Find the files of two folders; the flags say what they are."""
    _require_folder_name(args.dataset, "--dataset")
    pairs = []
    for text in args.classes:
        match = re.fullmatch(r"([0-9]{1,6}) *= *(\S.*)", text)
        if not match:
            raise InputError(
                f"--classes: {text!r}. Expected VALUE=NAME, such as 1=liver: put quotes around a "
                'name with spaces, "2=left kidney".'
            )
        pairs.append((match[2], [int(match[1])]))
    values = [value for _, (value,) in pairs]
    if len(set(values)) < len(values) or (args.instances and values != [1]):
        raise InputError(
            f"--classes has the values {values}. Expected each once, and only 1 with --instances."
        )
    classes, ignored = checked_classes("--classes", pairs)
    images, labels = find_nifti(args.images), find_nifti(args.labels)
    if args.images.samefile(args.labels):
        raise InputError(
            f"{args.images}: is given for images and for labels. Expected two folders, with files "
            "of the same names: sort the files."
        )
    recipe = recipe_of(args, [args.images, args.labels], classes, ignored, {IMAGE: args.dataset})
    return Source(args.dataset, labels, images, recipe)


def recipe_of(
    args: argparse.Namespace,
    origin: list[Path],
    classes: dict[str, list[int]],
    ignored: list[int],
    folders: dict[str, str],
) -> Recipe:
    """Add to what a data set is what the flags want of it."""
    spacing = args.spacing
    if spacing and (len(spacing) not in (1, 3) or not all(1e-6 <= s <= 1e6 for s in spacing)):
        raise InputError(
            f"--spacing is {spacing}. Expected one number or three, X Y Z, from 1e-6 to 1e6 mm."
        )
    spacing_xyz = spacing * (3 // len(spacing)) if spacing else None
    cleaning = cleaning_rule(args).to_dict()
    where = [os.path.realpath(folder) for folder in origin]
    return Recipe(where, classes, ignored, args.instances, folders, spacing_xyz, cleaning)


def find_nifti(folder: Path) -> Findings:
    """Find NIfTI files in and below a folder, by their names without ``.nii`` or ``.nii.gz``."""
    found = find_files(folder, "", "a folder of NIfTI files")
    files: dict[str, list[Path]] = {}
    for path in (path for paths in found.files.values() for path in paths):
        for suffix in SUFFIXES:
            if path.name.endswith(suffix):
                files.setdefault(path.name.removesuffix(suffix), []).append(path)
    if not files and not found.problems:
        raise InputError(
            f"{folder}: holds no .nii.gz or .nii file, subfolders included. Expected NIfTI: check "
            "the path, or convert the files."
        )
    return Findings(dict(sorted(files.items())), found.problems)


def cases_with_image(source: Source) -> set[str]:
    """Return the cases that have an image, of whichever channel."""
    if IMAGE in source.recipe.folders:
        return set(source.images.files)
    return {CHANNEL.sub("", name) for name in source.images.files}


def plan_case(key: str, files: list[Path], source: Source) -> Job:
    """Find the images of a case."""
    case_id = key.split("/")[1]
    sources = {LABEL: _only(files)}
    for role in source.recipe.folders:
        name = case_id + role.removeprefix(IMAGE)
        if name not in source.images.files:
            raise InputError(
                f"{sources[LABEL]}: has no image {name}.nii.gz. Expected it, or {name}.nii, in the "
                "folder of images: add it, or take the label away."
            )
        sources[role] = _only(source.images.files[name])
    return Job(key, source.name, sources, settings=asdict(source.recipe))


def space_of(job: Job, *, max_voxels: int) -> int:
    """Return about how many bytes the outputs of a case take, at most."""
    if job.problem:
        return 0
    try:
        label, *images = job.sources.values()
        source = read_nifti_grid(label)
        grid = Resampling.of(source, job.settings["spacing_xyz"]).grid
        size = sum(path.stat().st_size for path in images)
        if label.suffix == ".gz":  # each outline is in two of the binary labels
            size += 2 * label.stat().st_size
    except (InputError, OSError):
        return 0  # the case is going to fail
    voxels = math.prod(grid.shape)
    if voxels > max_voxels:
        return 0
    size = math.ceil(size * voxels / math.prod(source.shape))
    return size + len(job.settings["classes"]) * (voxels // 1000 + 2**12)


def prepare_case(job: Job, entry: Entry, *, out: Path, max_voxels: int) -> Found:
    """Write labels and images of a case, once all of it is read and fits together."""
    recipe = Recipe(**job.settings)
    label, images = read_sources(job, recipe, max_voxels)
    counts = count_values(label.array)
    _require_known(job, recipe, counts)
    resampling = Resampling.of(label, recipe.spacing_xyz)
    grid = resampling.grid
    _require_size(job, grid, max_voxels)
    present = [
        name
        for name, values in recipe.classes.items()
        if (counts if recipe.instances else counts.keys() & values)
    ]

    def places(kind: str, names: Iterable[str], datasets: Iterable[str]) -> list[Path]:
        file = f"{job.case_id.split('/')[1]}.nii.gz"
        return [out / organ_slug(n) / d / kind / file for n, d in product(names, datasets)]

    entry.claim(places("labelsTr", present, images) + places("imagesTr", present, images))
    array, sizes, notes = resampling.apply(label.array, order=0), {}, []
    for name in present:
        target, lines = target_of(name, array, recipe, grid, len(counts))
        notes += [f"{name}: {line}" for line in lines]
        if size := int(np.count_nonzero(target)):
            sizes[name] = size
            _write_once(places("labelsTr", [name], images), target, grid.affine)
        else:
            for kind in ("labelsTr", "imagesTr"):
                for output in places(kind, [name], images):
                    entry.drop(output)
    for dataset, image in images.items() if sizes else ():
        affine = grid.affine if resampling.changes else image.affine
        outputs = places("imagesTr", sizes, [dataset])
        _write_once(outputs, resampling.apply(image.array, order=1), affine)
    z, y, x = grid.spacing_zyx
    return Found(grid.shape, (x, y, z), sizes, tuple(notes))


def read_sources(job: Job, recipe: Recipe, max_voxels: int) -> tuple[Volume, dict[str, Volume]]:
    """Read the label of a case and, for each data set, its image; they must be on one grid."""
    path = job.sources[LABEL]
    label, images = read_nifti(path, max_voxels), {}
    label = Volume(as_label(label.array, path), label.affine)
    for role, dataset in recipe.folders.items():
        images[dataset] = read_nifti(job.sources[role], max_voxels)
        require_same_grid(images[dataset], label, job.sources[role], path)
    return label, images


def target_of(
    name: str, label: np.ndarray, recipe: Recipe, grid: Grid, instances: int
) -> tuple[np.ndarray, list[str]]:
    """Return the cleaned mask of a class, or the uint16 numbers, and what was dropped.

    ``instances`` is how many there were before resampling.
    """
    rule = CleaningRule(**recipe.cleaning)
    if recipe.instances:
        lost = instances - len(count_values(label))
        target, lines = clean_instances(label.astype(np.uint16), grid.spacing_zyx, rule)
        return target, [f"{lost} of {instances} instances: {LOST}"] * (lost > 0) + lines
    mask = np.zeros(label.shape, bool)
    for value in recipe.classes[name]:
        mask |= label == value
    target, lines = clean_mask(mask, grid.spacing_zyx, rule)
    return target, lines if mask.any() else [LOST]


def read_description(path: Path) -> Description:
    """Read and check a dataset.json of nnU-Net v2 or v1.

    Raises:
        InputError: it is not there, no JSON, or does not say what it must.
    """
    with reading(path, "the JSON description of an nnU-Net data set"), open_regular(path) as file:
        content = json.load(file, object_pairs_hook=partial(_without_repeats, path))
    if not isinstance(content, dict):
        raise _malformed(path, f"holds {content!r:.60}", "an object with channels and labels")
    channels = content.get("channel_names", content.get("modality"))
    ending = content.get("file_ending", None if "channel_names" in content else SUFFIXES[0])
    if not isinstance(channels, dict) or not channels:
        raise _malformed(
            path,
            f"has the channels {channels!r:.60}",
            "'channel_names' (in v1 'modality'), number -> name",
        )
    for number, name in channels.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,3}", number):
            raise _malformed(path, f"has the channel {number!r:.60}", "numbers from 0 to 9999")
        _require_harmless(path, name)
    if ending not in SUFFIXES:
        raise InputError(
            f"{path}: 'file_ending' is {ending!r:.60}. Expected one of {SUFFIXES}: convert images "
            "and labels to NIfTI, then correct the entry."
        )
    classes, ignored = checked_classes(path, _pairs_of(path, content.get("labels")))
    return Description({int(n): name for n, name in channels.items()}, classes, ignored)


def _pairs_of(path: Path, labels: object) -> list[tuple[str, list]]:
    """Return class names and their values: v2 has {name: value or values}, v1 {value: name}."""
    if not isinstance(labels, dict) or not labels:
        raise _malformed(path, f"has the labels {labels!r:.60}", "'labels', name -> value")
    if all(isinstance(name, str) for name in labels.values()):
        numbers = re.compile(r"0|[1-9][0-9]{0,4}")
        return [(n, [int(v) if numbers.fullmatch(v) else v]) for v, n in labels.items()]
    return [(n, v if isinstance(v, list) else [v]) for n, v in labels.items()]


def checked_classes(
    where: Path | str, pairs: list[tuple[str, list]]
) -> tuple[dict[str, list[int]], list[int]]:
    """Return class -> values, and the values to ignore, of names with their values."""
    classes, ignored, organs = {}, [], {}
    for name, values in pairs:
        _require_harmless(where, name)
        good = all(type(v) is int and 0 <= v <= MAX_LABEL for v in values)
        is_background = values == [0]
        if not values or not good or (is_background != (0 in values or name == "background")):
            raise _malformed(
                where,
                f"label {name!r:.60} has the values {values!r:.60}",
                f"whole numbers from 1 to {MAX_LABEL}, and 0 for background alone",
            )
        if is_background or name == "ignore":
            ignored += values
            continue
        try:
            first = organs.setdefault(organ_slug(name), name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if name in classes or first != name:
            raise _malformed(
                where,
                f"classes {first!r} and {name!r} would share the folder {organ_slug(name)!r}",
                "names that differ by a letter or digit",
            )
        classes[name] = sorted(set(values))
    both = {v for values in classes.values() for v in values} & set(ignored)
    if not classes or both:
        raise _malformed(
            where,
            f"has the classes {classes!r:.60} beside what is ignored, {ignored}",
            "at least one class, with values of its own",
        )
    return classes, ignored


def folders_of(name: str, channels: dict[int, str]) -> dict[str, str]:
    """Return the data set of each channel, by its role among a case's sources."""
    if len(channels) == 1:
        return dict.fromkeys(map(_role_of, channels), name)
    safe = {
        number: re.sub(r"[\W_]+", "_", unicodedata.normalize("NFKC", channel)).strip("_")
        for number, channel in channels.items()
    }
    if not all(safe.values()) or len({s.lower() for s in safe.values()}) < len(safe):
        safe = {number: f"{s}_{number}".strip("_") for number, s in safe.items()}
    folders = {_role_of(number): f"{name}_{s}" for number, s in safe.items()}
    for folder in folders.values():
        _require_folder_name(folder, "a channel's data set")
    return folders


def chosen_channels(folder: Path, channels: dict[int, str], wanted: list[str]) -> list[int]:
    """Return the numbers of the channels that ``--channels`` gives by number or name."""
    chosen = set()
    for each in wanted:
        numbers = [n for n in channels if str(n) == each] or [
            n for n, name in channels.items() if name == each
        ]
        if not numbers:
            raise InputError(
                f"--channels: {folder} has no channel {each!r}. Expected a number or a name of "
                f"{channels}."
            )
        chosen.update(numbers)
    return sorted(chosen)


def _role_of(channel: int) -> str:
    return f"{IMAGE}_{channel:04d}"


def _only(paths: list[Path]) -> Path:
    if len(paths) > 1:
        listed = "\n  ".join(map(str, paths[:5]))
        raise InputError(
            f"{paths[0]}: is one of {len(paths)} files for the same:\n  {listed}\n"
            "Expected one: move the others elsewhere, or give each case a name of its own."
        )
    return paths[0]


def _write_once(places: list[Path], array: np.ndarray, affine: np.ndarray) -> None:
    """Write the first of ``places``, and link it to the others."""
    write_nifti(places[0], array, affine)
    for place in places[1:]:
        link_or_copy(places[0], place)


def _require_known(job: Job, recipe: Recipe, counts: dict[int, int]) -> None:
    known = {value for values in recipe.classes.values() for value in values}
    unknown = sorted(counts.keys() - known - set(recipe.ignored))
    if unknown and not recipe.instances:
        raise InputError(
            f"{job.sources[LABEL]}: holds the values {unknown[:20]}, which {job.dataset} does not "
            f"name. Expected {sorted(known)}: add the missing classes to dataset.json or "
            "--classes, or correct the label."
        )


def _require_size(job: Job, grid: Grid, max_voxels: int) -> None:
    voxels = math.prod(grid.shape)
    if voxels > max_voxels:
        raise InputError(
            f"{job.sources[LABEL]}: would have {voxels:,} voxels. Expected at most {max_voxels:,}: "
            "choose a larger --spacing, or raise --max-voxels."
        )


def _require_folder_name(name: str, what: str) -> None:
    """Refuse what cannot be a data set's name, or would lead out of the tree."""
    good = name == Path(name).name and name.isprintable() and name[:1] not in ("", ".")
    if not good or "\\" in name or len(os.fsencode(name)) > MAX_SLUG_BYTES:
        raise InputError(
            f"{what} is called {name!r:.250}. Expected a folder's name: printable, at most "
            f"{MAX_SLUG_BYTES} bytes, no path, no dot in front."
        )


def _require_harmless(where: Path | str, name: object) -> None:
    """Refuse names that are paths; a slash between words, "prostate/uterus", is none."""
    parts = name.split("/") if isinstance(name, str) else []
    good = parts and all(part.strip(" .") for part in parts) and "\\" not in name
    if not good or not name.isprintable():
        raise _malformed(
            where, f"has the name {name!r:.60}", "printable text that is no path, without .."
        )


def _without_repeats(path: Path, pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _malformed(path, f"has {twice!r:.60} twice in one object", "one entry each")
    return dict(pairs)


def _malformed(where: Path | str, found: str, expected: str) -> InputError:
    return InputError(f"{where}: {found}. Expected {expected}: correct it.")


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
