"""Step 1c: write each case's image beside all organ labels of the case.

Reads   --images   NPZ files with `imgs` (D, H, W) and `spacing`; subfolders are searched too
        --tree     <organ>/<data set>/labelsTr/<case>.nii.gz, as categorize.py writes them
Writes  --tree     <organ>/<data set>/imagesTr/<case>.nii.gz on the grid of its label, dtype kept.
                   An image is written once; the other organs of the case get hard links to it
                   (copies where the disk has no hard links). Next: preparelabel.py.

A label with an image but without an NPZ is not changed: utils/preparation/nnunet.py writes such
pairs. A case that cannot be used is listed, the other cases are processed, and the exit code is 1.
Inputs are only read. A second run skips unchanged cases; a run that was stopped or killed resumes
where it stopped. <tree>/manifest_reallocate.csv lists the outcome of each case.

    python reallocate.py --images data/npz
    python reallocate.py --images val --tree data/medical_validation
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.files.nifti import read_nifti_grid, write_deflated_nifti, write_nifti
from utils.files.npz import checked_arrays, require_keys, require_volume_shape
from utils.files.npz_archive import NpzArchive, member_sizes
from utils.preparation.case_names import require_no_collision
from utils.preparation.find_files import FoundFiles, Role, file_of, find_npz, require_folder
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.loop import (
    PrepareSummary,
    Step,
    add_preparation_arguments,
    link_to_first,
    plan_job,
    prepare,
)
from utils.preparation.records import CaseFacts
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.grid import Grid, require_same_grid

PLACES = ("*/{dataset}/imagesTr/{case}.nii.gz",)  # below --tree; see `records.is_place`
NPZ_ROLE = ""  # role of the image's file among a case's sources; the role of a label is its organ


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=Path("data/npz"),
        help="folder of images (default: %(default)s)",
    )
    parser.add_argument(
        "--tree",
        type=Path,
        default=Path("data/medical_preprocessed"),
        help="folder that categorize.py wrote (default: %(default)s)",
    )
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> PrepareSummary:
    """Write the images beside all labels; return the number of cases by outcome."""
    labels = labels_of_cases(args.tree, allow_none=args.shard != "1/1")
    images = find_npz(args.images)
    ledger = Ledger(args.tree, "reallocate", [args.tree, args.images], PLACES)
    left = {key for key, paths in labels.items() if has_its_image(key, paths, images, ledger)}
    jobs = [
        plan_job(plan_case, key, paths, images, args.images)
        for key, paths in labels.items()
        if key not in left
    ]
    step = Step(
        title="reallocate",
        ledger=ledger,
        work=partial(reallocate_case, max_voxels=args.max_voxels),
        space=space_of,
    )
    # Always prune: labels are removed on purpose, and their images are then unused.
    return prepare(step, jobs, images.problems, args, left=left, prune=True)


def has_its_image(key: str, labels: list[Path], images: FoundFiles, ledger: Ledger) -> bool:
    """Return whether the labels of a case have an image that this step must not change.

    Either the image has another origin, such as utils/preparation/nnunet.py. Or this step wrote the
    image, the image's NPZ no longer exists, and the labels are unchanged.
    """
    record = ledger.read(key)
    if not all(path.exists() for path in images_beside(labels)):
        return False
    if record is None:
        return True
    organs = organs_of(labels)
    known = record.sources.keys() - {NPZ_ROLE}
    unchanged = known == organs.keys() and ledger.are_untouched(record, organs)
    return key.rsplit("/")[-1] not in images.files and unchanged


def labels_of_cases(tree: Path, *, allow_none: bool = False) -> dict[str, list[Path]]:
    """Return "<data set>/<case id>" -> its labels in all organs of the tree.

    Args:
        allow_none: return an empty dict if there is no label, as may happen in a shard.

    Raises:
        InputError: there is no label.
    """
    if not allow_none:
        require_folder(tree, "the output folder of categorize.py")
    cases: dict[str, list[Path]] = {}
    for path in sorted(tree.glob("[!.]*/[!.]*/labelsTr/[!.]*.nii.gz")):
        case_id = path.name.removesuffix(".nii.gz")
        cases.setdefault(f"{path.parent.parent.name}/{case_id}", []).append(path)
    if not cases and not allow_none:
        raise InputError(
            f"{tree}: holds no <organ>/<data set>/labelsTr/<case>.nii.gz. Expected the output of "
            "categorize.py: run it first, or check the path given with --tree."
        )
    return dict(sorted(cases.items()))


def images_beside(labels: Sequence[Path]) -> list[Path]:
    """Return the path of each label's image."""
    return [label.parent.with_name("imagesTr") / label.name for label in labels]


def organs_of(labels: Sequence[Path]) -> dict[str, Path]:
    """Return organ -> label."""
    return {label.parent.parent.parent.name: label for label in labels}


def plan_case(key: str, labels: list[Path], images: FoundFiles, folder: Path) -> CaseJob:
    """Return the job of a case: its NPZ and its labels, beside which the image is written."""
    dataset, case_id = key.split("/")
    require_no_collision(set(organs_of(labels)), f"{key}: organs")
    if case_id not in images.files:
        raise InputError(
            f"{labels[0]}: has no image. Expected {case_id}.npz in or below {folder}: give the "
            "folder of this file with --images."
        )
    source = file_of(images.files[case_id], Role.IMAGE)
    return CaseJob(key, dataset, {NPZ_ROLE: source} | organs_of(labels))


def space_of(job: CaseJob) -> int:
    """Return the size of the image in its NPZ, in bytes; hard links take no space."""
    return member_sizes(job.sources[NPZ_ROLE], "imgs")[0] + 2**12 if job.dataset else 0


def reallocate_case(job: CaseJob, entry: Entry, *, max_voxels: int) -> CaseFacts:
    """Write the image of one case beside its first label, and link it beside the others."""
    source, *labels = job.sources.values()
    outputs = images_beside(labels)
    with NpzArchive(source, max_voxels) as npz:
        require_keys(npz, ("imgs", "spacing"))
        spacing_xyz = checked_arrays(npz, ("spacing",))["spacing"]
        affine = affine_from_spacing(spacing_xyz)
        shape = npz.headers["imgs"].shape
        require_volume_shape(shape, source, "imgs")
        grid, remarks = Grid(shape, affine), []
        for label in labels:
            remarks += require_same_grid(grid, read_nifti_grid(label), source, label).notes
        entry.claim(outputs)
        if deflated := npz.deflated("imgs"):
            write_deflated_nifti(outputs[0], deflated, affine)
        else:
            write_nifti(outputs[0], checked_arrays(npz, ("imgs",))["imgs"], affine)
    link_to_first(outputs)
    spacing_xyz = tuple(map(float, spacing_xyz))
    return CaseFacts(shape, spacing_xyz, remarks=tuple(dict.fromkeys(remarks)))


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
