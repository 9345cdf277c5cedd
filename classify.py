"""Step 1a: turn the labels of challenge files into NIfTI, one folder per data set.

Reads   --labels   NPZ files with `gts` (D, H, W); subfolders are searched too
        --images   NPZ files of the same cases with `imgs` and `spacing`; not needed where the
                   label files hold both
        --json     the class file, which names the data sets
Writes  --out      <data set>/<case>.nii.gz: all classes in one file, the case's spacing in the
                   affine. Next: categorize.py.

A case belongs to the data set whose key is the longest prefix of its name. A case that cannot be
used is listed, the other cases are processed, and the exit code is 1. Inputs are only read. A
second run skips unchanged cases; a run that was stopped or killed resumes where it stopped.
<out>/manifest_classify.csv lists the outcome of each case.

    python classify.py --labels data/npz
    python classify.py --labels val_gts --images val --out data/classified_validation
    python classify.py --labels data/npz --dry-run
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from utils.cases.label_table import LabelTable, read_label_table
from utils.errors import InputError, exit_on_input_error
from utils.files.nifti import write_nifti
from utils.files.npz import checked_arrays, read_npz
from utils.files.npz_archive import NpzArchive, member_sizes
from utils.preparation.find_files import Role, file_of, find_npz
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.loop import (
    PrepareSummary,
    Step,
    add_preparation_arguments,
    plan_job,
    prepare,
)
from utils.preparation.records import CaseFacts
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.labels import checked_label, count_values

PLACES = ("*/{case}.nii.gz",)  # below --out; see `utils.preparation.records.is_place`


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labels",
        type=Path,
        default=Path("data/npz"),
        help="folder of labels (default: %(default)s)",
    )
    parser.add_argument(
        "--images", type=Path, default=None, help="folder of images (default: that of --labels)"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("CVPR25.json"), help="class file (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/classified"),
        help="output folder (default: %(default)s)",
    )
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> PrepareSummary:
    """Write one multi-class NIfTI label per case; return the number of cases by outcome."""
    table = read_label_table(args.json)
    labels = find_npz(args.labels)
    images = find_npz(args.images) if args.images else labels
    jobs = [
        plan_job(plan_case, case_id, files, images.files.get(case_id), table)
        for case_id, files in labels.files.items()
    ]
    step = Step(
        title="classify",
        ledger=Ledger(args.out, "classify", [args.labels, args.images or args.labels], PLACES),
        work=partial(classify_case, table=table, out=args.out, max_voxels=args.max_voxels),
        space=space_of,
    )
    problems = dict.fromkeys([*labels.problems, *images.problems])
    return prepare(step, jobs, list(problems), args)


def plan_case(
    case_id: str, files: list[Path], image_files: list[Path] | None, table: LabelTable
) -> CaseJob:
    """Find the data set and the input files of a case."""
    label = file_of(files, Role.LABEL)
    image = file_of(image_files, Role.IMAGE) if image_files else None
    sources = {"label": label} if image in (None, label) else {"label": label, "image": image}
    return CaseJob(case_id, table.dataset_of(case_id), sources)


def space_of(job: CaseJob) -> int:
    """Return an estimated upper bound of the label's bytes; the new file may exceed the old."""
    deflated, inflated = member_sizes(job.sources["label"], "gts") if job.dataset else (0, 0)
    return min(2 * deflated, inflated // 3) + 2**12


def classify_case(
    job: CaseJob, entry: Entry, *, table: LabelTable, out: Path, max_voxels: int
) -> CaseFacts:
    """Write ``out/<data set>/<case id>.nii.gz`` from the case's label file and image file."""
    path = job.sources["label"]
    arrays = read_npz(path, ("gts",), optional=("spacing",), max_voxels=max_voxels)
    label, remarks = checked_label(arrays.pop("gts"), path)
    with NpzArchive(job.sources.get("image", path), max_voxels) as image:
        spacing_xyz = _spacing_of_case(path, label.shape, arrays.get("spacing"), image)
    output = out / job.dataset / f"{job.case_id}.nii.gz"
    entry.claim([output])
    write_nifti(output, label, affine_from_spacing(spacing_xyz))
    classes = _name_values(label, table, job)
    return CaseFacts(label.shape, tuple(map(float, spacing_xyz)), classes, remarks=tuple(remarks))


def _spacing_of_case(
    path: Path, shape: tuple[int, ...], spacing_xyz: np.ndarray | None, image: NpzArchive
) -> np.ndarray:
    """Return the spacing of the label file, else of the image file; require equal shapes."""
    header = image.headers.get("imgs")
    if header and header.shape != shape:
        raise InputError(
            f"label and image have different shapes.\n"
            f"  label  {path}  (D, H, W) {shape}\n"
            f"  image  {image.path}  (D, H, W) {header.shape}\n"
            "Expected one grid: check that both files are of this case, and export them again."
        )
    if spacing_xyz is None and image.path == path:
        raise InputError(
            f"{path}: lacks 'spacing', and the case has no other file. Expected 'spacing' here or "
            "in the image's file: give the folder of the images with --images."
        )
    return checked_arrays(image, ("spacing",))["spacing"] if spacing_xyz is None else spacing_xyz


def _name_values(label: np.ndarray, table: LabelTable, job: CaseJob) -> dict[str, int]:
    """Return class -> voxels for the manifest; unknown values fail later, in categorize.py."""
    counts = count_values(label)
    labels = table.labels_of(job.dataset)
    if labels.instance:
        return {f"{labels.classes[1]} ({len(counts)} instances)": sum(counts.values())}
    named = {labels.classes[value]: n for value, n in counts.items() if value in labels.classes}
    unknown = counts.keys() - labels.classes.keys()
    return named | ({f"{len(unknown)} values without a class": 0} if unknown else {})


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
