"""Step 1 for other sources: nnU-Net data sets, or folders of images and labels, into the same tree.

Reads   --nnunet   folders DatasetXXX_Name with dataset.json (nnU-Net v2 or v1),
                   imagesTr/<case>_0000.nii.gz, one file per channel, and labelsTr/<case>.nii.gz;
                   or folders TaskXX_Name of the Medical Decathlon, as they are downloaded:
                   imagesTr/<case>.nii.gz holds all channels
        --images --labels   or two folders with files of the same names, subfolders included; then
                   --dataset and --classes say what the files hold
                   Files may also be NRRD, MetaImage, or folders <case> of DICOM slices
Writes  --out      <organ>/<data set>/{imagesTr,labelsTr}/<case>.nii.gz, as the three scripts for
                   challenge files do: a binary uint8 label (--instances: the numbers, uint16) for
                   every organ with a voxel in the case, and the image beside it. Each file is
                   written once; other organs and channels get hard links. Next: preparelabel.py.

In a folder with several channels each channel becomes a data set, DatasetXXX_Name_<channel>, unless
--channels names some of them. With one channel the data set has the folder's name. A region, "whole
tumor": [1, 2, 3], is the union of its values. Voxels of nnU-Net's "ignore" label belong to no
class. Cases without a label (also those of imagesTs) are left out. Training clamps HU in data sets
that are CT by their name (CT_Spleen), by dataset.json or the DICOM header, or by the share of
voxels that are air.

Voxels, dtype and the header's forms are kept. A label that shares only one form with its image, as
one drawn in 3D Slicer may, gets the image's. --spacing resamples: images linearly, without
smoothing, and rounded where the dtype is whole numbers; labels to the nearest voxel. The axes and
the volume's first corner stay; its far sides move by at most half a new voxel. A worker holds all
channels of one case in memory.

A case that cannot be used is listed, the other cases are done, and the exit code is 1. Inputs are
never changed. A second run skips unchanged cases and redoes those that other flags change; it
removes outputs that a case no longer has, such as those of a channel. A run that was stopped or
killed resumes where it stopped. <out>/manifest_nnunet.csv lists the outcome of each case.

    python -m utils.preparation.nnunet --nnunet raw/Dataset009_Spleen raw/Dataset001_BrainTumour
    python -m utils.preparation.nnunet --nnunet raw/Dataset043_BraTS --channels 0 T1w --spacing 1.5
    python -m utils.preparation.nnunet --images ct --labels seg --dataset CT_Ours \\
        --classes 1=liver "2=left kidney"
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.cases.label_table import organ_slug
from utils.cases.prepared import write_modality
from utils.errors import InputError, exit_on_input_error
from utils.files.images import header_modality, read_image_grid
from utils.files.nifti import write_nifti
from utils.preparation.cleaning import CleaningRule, add_cleaning_arguments, clean_target
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.loop import (
    PrepareSummary,
    Step,
    add_preparation_arguments,
    link_to_first,
    plan_job,
    prepare,
)
from utils.preparation.nnunet_sources import (
    Recipe,
    Source,
    cases_with_image,
    find_sources,
    require_outside,
)
from utils.preparation.outcomes import print_entry
from utils.preparation.records import CaseFacts
from utils.preparation.resampling import Resampling
from utils.preparation.volume_files import (
    IMAGE_ROLE,
    channel_of,
    images_of,
    only_volume,
    read_volume,
    sources_of,
    volume_of,
)
from utils.volumes.grid import Grid, Volume, require_same_grid
from utils.volumes.labels import checked_label, count_values

LABEL_ROLE = "label"  # role of a case's label among its sources, beside `IMAGE_ROLE`
# Below --out, see `records.is_place`: with several channels, each has a data set.
PLACES = tuple(
    f"*/{dataset}/{kind}/{{case}}.nii.gz"
    for dataset in ("{dataset}", "{dataset}_*")
    for kind in ("imagesTr", "labelsTr")
)
LOST = "no voxel is left at this spacing"


class SourceVolumes(NamedTuple):
    """What the files of a case hold."""

    label: Volume
    images: dict[str, Volume]  # by data set, one for each channel
    modalities: dict[str, str]  # by data set; empty where neither dataset.json nor header says
    remarks: list[str]  # what is odd about the files


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.preparation.nnunet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nnunet = parser.add_argument_group("nnU-Net data sets")
    nnunet.add_argument(
        "--nnunet",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders DatasetXXX_Name or TaskXX_Name",
    )
    nnunet.add_argument(
        "--channels",
        nargs="+",
        metavar="C",
        help="only these channels, by number or name (default: all)",
    )
    pairs = parser.add_argument_group("or images and labels")
    pairs.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    pairs.add_argument("--labels", type=Path, metavar="DIR", help="folder of labels")
    pairs.add_argument("--dataset", metavar="NAME", help="name for the data set")
    pairs.add_argument(
        "--classes", nargs="+", metavar="VALUE=NAME", help='label values, such as 1=liver "2=a b"'
    )
    pairs.add_argument(
        "--instances", action="store_true", help="label values number the objects of class 1"
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="resample to this voxel size: one number, or three along the file's axes X Y Z "
        "(default: no resampling)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/medical_preprocessed"),
        help="output folder (default: %(default)s)",
    )
    add_cleaning_arguments(parser)
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> PrepareSummary:
    """Write labels and images of all data sets; return the number of cases per outcome."""
    sources = find_sources(args)
    require_outside(args)
    jobs, problems = [], []
    for source in sources:
        problems += dict.fromkeys([*source.labels.problems, *source.images.problems])
        jobs += [
            plan_job(plan_case, f"{source.name}/{case_id}", files, source)
            for case_id, files in source.labels.files.items()
        ]
        unlabelled = sorted(cases_with_image(source) - source.labels.files.keys())
        if unlabelled:
            print_entry(
                f"NOTE {source.name}: {len(unlabelled)} cases have an image and no label and are "
                f"left out, {unlabelled[0]} first"
            )
    roots = [folder.parent for folder in args.nnunet or ()] or [args.labels, args.images]
    step = Step(
        title="prepare_nnunet",
        ledger=Ledger(args.out, "nnunet", roots, PLACES, [source.name for source in sources]),
        work=partial(prepare_case, out=args.out, max_voxels=args.max_voxels),
        space=partial(space_of, max_voxels=args.max_voxels),
    )
    return prepare(step, jobs, problems, args)


def plan_case(key: str, files: list[Path], source: Source) -> CaseJob:
    """Find the images of a case."""
    case_id = key.split("/")[1]
    label = only_volume(files)
    sources = sources_of(LABEL_ROLE, label)
    for role in source.recipe.folders:
        images = images_of(source.images, case_id, role)
        if not images:
            name = case_id + role.removeprefix(IMAGE_ROLE)
            raise InputError(
                f"{label}: has no image {name}.nii.gz. Expected it, or a file of that name in "
                "another format, in the folder of images: add it, or take the label away."
            )
        sources |= sources_of(role, only_volume(images))
    return CaseJob(key, source.name, sources, settings=asdict(source.recipe))


def space_of(job: CaseJob, *, max_voxels: int) -> int:
    """Return an estimated upper bound of the bytes that the outputs of a case take."""
    if job.problem:
        return 0
    try:
        label = volume_of(job.sources, LABEL_ROLE)
        images = set(job.sources.values()) - {label}
        source = read_image_grid(label)
        grid = Resampling.of(source, job.settings["spacing_xyz"]).grid
        size = sum(path.stat().st_size for path in images)
        if label.suffix == ".gz":  # two binary labels share every boundary
            size += 2 * label.stat().st_size
    except (InputError, OSError):
        return 0  # the case is going to fail
    voxels = math.prod(grid.shape)
    if voxels > max_voxels:
        return 0
    size = math.ceil(size * voxels / math.prod(source.shape))
    return size + len(job.settings["classes"]) * (voxels // 1000 + 2**12)


def prepare_case(job: CaseJob, entry: Entry, *, out: Path, max_voxels: int) -> CaseFacts:
    """Write labels and images of a case, after all files are read and found to fit together."""
    recipe = Recipe(**job.settings)
    label, images, modalities, remarks = read_sources(job, recipe, max_voxels)
    counts = count_values(label.array)
    _require_known(job, recipe, counts)
    resampling = Resampling.of(label, recipe.spacing_xyz)
    grid = resampling.grid if resampling.changes else label.grid
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
            _write_once(places("labelsTr", [name], images), target, grid)
        else:
            for kind in ("labelsTr", "imagesTr"):
                for output in places(kind, [name], images):
                    entry.drop(output)
    for dataset, image in images.items() if sizes else ():
        outputs = places("imagesTr", sizes, [dataset])
        where = grid if resampling.changes else image.grid
        _write_once(outputs, resampling.apply(image.array, order=1), where)
        write_modality(out, dataset, modalities[dataset])
    z, y, x = grid.spacing_zyx
    return CaseFacts(grid.shape, (x, y, z), sizes, tuple(notes), tuple(remarks))


def read_sources(job: CaseJob, recipe: Recipe, max_voxels: int) -> SourceVolumes:
    """Read the label of a case and, for each data set, its image; they must share one grid.

    Where a viewer shows the label beside its image, as one drawn in 3D Slicer on an image whose
    forms differ, the label gets the place of the first image.
    """
    path, case_id = volume_of(job.sources, LABEL_ROLE), job.case_id.split("/")[1]
    label, images, modalities = read_volume(path, max_voxels), {}, dict(recipe.modalities)
    array, remarks = checked_label(label.array, path)
    place = label.grid
    for role, dataset in recipe.folders.items():
        source = volume_of(job.sources, role)
        channel = channel_of(source, case_id, role, recipe.channels)
        image = images[dataset] = read_volume(source, max_voxels, channel)
        modalities.setdefault(dataset, header_modality(source) or "")
        agreement = require_same_grid(image, label, source, path)
        remarks += agreement.notes
        place = place if agreement.everywhere else images[next(iter(images))].grid
    for role, dataset in recipe.folders.items():
        require_same_grid(images[dataset], place, volume_of(job.sources, role), path)
    label = Volume(array, place.affine, place.forms)
    return SourceVolumes(label, images, modalities, list(dict.fromkeys(remarks)))


def target_of(
    name: str, label: np.ndarray, recipe: Recipe, grid: Grid, instances: int
) -> tuple[np.ndarray, list[str]]:
    """Return the cleaned target of a class, and a line for each part that it lost.

    Args:
        label: on ``grid``, after resampling.
        instances: number of values that the label had before resampling.
    """
    values = None if recipe.instances else recipe.classes[name]
    rule = CleaningRule(**recipe.cleaning)
    target, lines = clean_target(label, values, grid.spacing_zyx, rule)
    if recipe.instances:
        lost = instances - len(count_values(label))
        return target, [f"{lost} of {instances} instances: {LOST}"] * (lost > 0) + lines
    return target, lines if lines or target.any() else [LOST]


def _write_once(places: list[Path], array: np.ndarray, grid: Grid) -> None:
    """Write the first of ``places``, and link it to the others."""
    write_nifti(places[0], array, grid.affine, grid.forms)
    link_to_first(places)


def _require_known(job: CaseJob, recipe: Recipe, counts: dict[int, int]) -> None:
    known = {value for values in recipe.classes.values() for value in values}
    unknown = sorted(counts.keys() - known - set(recipe.ignored))
    if unknown and not recipe.instances:
        raise InputError(
            f"{job.sources[LABEL_ROLE]}: holds the values {unknown[:20]}, which {job.dataset} does "
            f"not name. Expected {sorted(known)}: add the missing classes to dataset.json or "
            "--classes, or correct the label."
        )


def _require_size(job: CaseJob, grid: Grid, max_voxels: int) -> None:
    voxels = math.prod(grid.shape)
    if voxels > max_voxels:
        raise InputError(
            f"{job.sources[LABEL_ROLE]}: would have {voxels:,} voxels. Expected at most "
            f"{max_voxels:,}: choose a larger --spacing, or raise --max-voxels."
        )


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
