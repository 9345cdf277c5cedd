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

    python -m utils.preparation.nnunet --nnunet raw/Dataset009_Spleen raw/Dataset001_BrainTumour
    python -m utils.preparation.nnunet --nnunet raw/Dataset043_BraTS --channels 0 T1w --spacing 1.5
    python -m utils.preparation.nnunet --images ct --labels seg --dataset CT_Ours \\
        --classes 1=liver "2=left kidney"
"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from utils.cases.label_table import organ_slug
from utils.errors import InputError, exit_on_input_error
from utils.files.nifti import read_nifti, read_nifti_grid, write_nifti
from utils.preparation.cleaning import (
    CleaningRule,
    add_cleaning_arguments,
    clean_instances,
    clean_mask,
    cleaning_rule,
)
from utils.preparation.find_files import FoundFiles
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.loop import (
    PrepareSummary,
    Step,
    add_preparation_arguments,
    link_to_first,
    plan_job,
    prepare,
)
from utils.preparation.nnunet_dataset import (
    CHANNEL,
    IMAGE,
    chosen_channels,
    classes_of_flags,
    find_nifti,
    folders_of,
    only_file,
    read_description,
    require_folder_name,
)
from utils.preparation.records import CaseFacts
from utils.preparation.resampling import Resampling
from utils.volumes.grid import Grid, Volume, require_same_grid
from utils.volumes.labels import as_label, count_values

LABEL = "label"  # role of a case's label among its sources, see `IMAGE`
LOST = "no voxel is left at this spacing"


@dataclass(frozen=True)
class Recipe:
    """What beside its files decides the outputs of a case: its job's settings, so JSON-able."""

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
    labels: FoundFiles  # case -> its files
    images: FoundFiles  # case, with its channel's number where there are channels -> its files
    recipe: Recipe


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.preparation.nnunet",
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
    add_cleaning_arguments(parser)
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> PrepareSummary:
    """Write labels and images of all data sets; return how many cases ended how."""
    sources = find_sources(args)
    _require_outside(args)
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
        ledger=Ledger(args.out, "nnunet", roots, [source.name for source in sources]),
        work=partial(prepare_case, out=args.out, max_voxels=args.max_voxels),
        space=partial(space_of, max_voxels=args.max_voxels),
    )
    return prepare(step, jobs, problems, args)


def _require_outside(args: argparse.Namespace) -> None:
    """Refuse an output folder in an input folder, where it would become input."""
    out = args.out.resolve()
    for folder in filter(None, (*(args.nnunet or ()), args.images, args.labels)):
        if out.is_relative_to(folder.resolve()):
            raise InputError(
                f"{args.out}: lies in {folder}, which is read. Expected an output folder of its "
                "own: choose another with --out."
            )


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
    require_folder_name(name, "the data set's folder")
    said = read_description(folder / "dataset.json")
    folders = folders_of(name, said.channels)
    if args.channels:
        chosen = chosen_channels(folder, said.channels, args.channels)
        folders = {role: folders[role] for role in chosen}
    labels, images = (find_nifti(folder / kind) for kind in ("labelsTr", "imagesTr"))
    recipe = recipe_of(args, said.classes, said.ignored, folders)
    return Source(name, labels, images, recipe)


def pairs_source(args: argparse.Namespace) -> Source:
    """Find the files of two folders; the flags say what they are."""
    require_folder_name(args.dataset, "--dataset")
    classes, ignored = classes_of_flags(args.classes, instances=args.instances)
    images, labels = find_nifti(args.images), find_nifti(args.labels)
    if args.images.samefile(args.labels):
        raise InputError(
            f"{args.images}: is given for images and for labels. Expected two folders, with files "
            "of the same names: sort the files."
        )
    recipe = recipe_of(args, classes, ignored, {IMAGE: args.dataset})
    return Source(args.dataset, labels, images, recipe)


def recipe_of(
    args: argparse.Namespace,
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
    return Recipe(classes, ignored, args.instances, folders, spacing_xyz, cleaning)


def cases_with_image(source: Source) -> set[str]:
    """Return the cases that have an image, of whichever channel."""
    if IMAGE in source.recipe.folders:
        return set(source.images.files)
    return {CHANNEL.sub("", name) for name in source.images.files}


def plan_case(key: str, files: list[Path], source: Source) -> CaseJob:
    """Find the images of a case."""
    case_id = key.split("/")[1]
    sources = {LABEL: only_file(files)}
    for role in source.recipe.folders:
        name = case_id + role.removeprefix(IMAGE)
        if name not in source.images.files:
            raise InputError(
                f"{sources[LABEL]}: has no image {name}.nii.gz. Expected it, or {name}.nii, in the "
                "folder of images: add it, or take the label away."
            )
        sources[role] = only_file(source.images.files[name])
    return CaseJob(key, source.name, sources, settings=asdict(source.recipe))


def space_of(job: CaseJob, *, max_voxels: int) -> int:
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


def prepare_case(job: CaseJob, entry: Entry, *, out: Path, max_voxels: int) -> CaseFacts:
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
    return CaseFacts(grid.shape, (x, y, z), sizes, tuple(notes))


def read_sources(job: CaseJob, recipe: Recipe, max_voxels: int) -> tuple[Volume, dict[str, Volume]]:
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


def _write_once(places: list[Path], array: np.ndarray, affine: np.ndarray) -> None:
    """Write the first of ``places``, and link it to the others."""
    write_nifti(places[0], array, affine)
    link_to_first(places)


def _require_known(job: CaseJob, recipe: Recipe, counts: dict[int, int]) -> None:
    known = {value for values in recipe.classes.values() for value in values}
    unknown = sorted(counts.keys() - known - set(recipe.ignored))
    if unknown and not recipe.instances:
        raise InputError(
            f"{job.sources[LABEL]}: holds the values {unknown[:20]}, which {job.dataset} does not "
            f"name. Expected {sorted(known)}: add the missing classes to dataset.json or "
            "--classes, or correct the label."
        )


def _require_size(job: CaseJob, grid: Grid, max_voxels: int) -> None:
    voxels = math.prod(grid.shape)
    if voxels > max_voxels:
        raise InputError(
            f"{job.sources[LABEL]}: would have {voxels:,} voxels. Expected at most {max_voxels:,}: "
            "choose a larger --spacing, or raise --max-voxels."
        )


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
