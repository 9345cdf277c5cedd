"""Step 1b: split multi-class labels by organ, one binary label per organ and case.

Reads   --in       <data set>/<case>.nii.gz, as classify.py writes them
        --json     the class file: the class of each label value
Writes  --out      <organ>/<data set>/labelsTr/<case>.nii.gz for every organ with a voxel in the
                   case: uint8, 1 inside and 0 outside. Next: reallocate.py.

The organ's folder is the class name in lower case, with an underscore for every run of characters
other than letters and digits: "Left kidney" -> left_kidney. Data sets with `instance_label: 1`
number the objects of one class (tumours, nuclei). The labels of these data sets keep the numbers,
as uint16, in the folder of class 1.

--min-volume-mm3, --min-side-mm and --keep-components drop small parts, as SAM-Med3D does; each drop
is listed with its reason. By default nothing is dropped.

A case that cannot be used is listed, the other cases are processed, and the exit code is 1. Inputs
are only read. A second run skips unchanged cases; a run that was stopped or killed resumes where it
stopped. <out>/manifest_categorize.csv lists the outcome of each case.

    python categorize.py
    python categorize.py --in data/classified_validation --out data/medical_validation
    python categorize.py --check data/medical_preprocessed    # reads the whole tree, writes nothing
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.cases.label_table import DatasetLabels, LabelTable, LabelTableError, read_label_table
from utils.errors import InputError, exit_on_input_error
from utils.files.nifti import read_nifti, read_nifti_grid, write_nifti
from utils.preparation.check_tree import TreeReport, check_tree
from utils.preparation.cleaning import (
    CleaningRule,
    add_cleaning_arguments,
    clean_target,
    cleaning_rule,
)
from utils.preparation.find_files import require_folder
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.loop import (
    PrepareSummary,
    Step,
    add_preparation_arguments,
    plan_job,
    prepare,
    progress_bar,
)
from utils.preparation.outcomes import print_entry
from utils.preparation.records import CaseFacts
from utils.run.executor import run_all
from utils.volumes.labels import checked_label, count_values

PLACES = ("*/{dataset}/labelsTr/{case}.nii.gz",)  # below --out; see `records.is_place`


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--in",
        dest="classified",
        type=Path,
        default=Path("data/classified"),
        help="folder that classify.py wrote (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, default=Path("CVPR25.json"), help="class file (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/medical_preprocessed"),
        help="output folder (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        metavar="TREE",
        type=Path,
        help="only read this prepared tree and report its errors",
    )
    add_cleaning_arguments(parser)
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> PrepareSummary | TreeReport:
    """Write the labels of all organs, or check a tree; return the summary or the report."""
    table = read_label_table(args.json)
    if args.check:
        return check_tree(args.check, table, partial(run_with_progress, args), args.max_voxels)
    rule = cleaning_rule(args)
    if args.shard == "1/1":  # in a shard, the previous step may have had no case
        require_folder(args.classified, "the output folder of classify.py")
    found = sorted(args.classified.glob("[!.]*/[!.]*.nii.gz"))
    if not found and args.shard == "1/1":
        raise InputError(
            f"{args.classified}: holds no <data set>/<case>.nii.gz. Expected the output of "
            "classify.py: run it first, or check the path given with --in."
        )
    jobs = [plan_job(plan_case, key_of(path), path, table, rule) for path in found]
    for line in table.shared_folders({job.dataset for job in jobs}):
        print_entry(f"NOTE {line}")
    step = Step(
        title="categorize",
        ledger=Ledger(args.out, "categorize", [args.classified], PLACES),
        work=partial(
            categorize_case, table=table, out=args.out, rule=rule, max_voxels=args.max_voxels
        ),
        space=partial(space_of, table=table),
    )
    return prepare(step, jobs, [], args)


def run_with_progress(
    args: argparse.Namespace, function: Callable[[Any], Any], items: list
) -> Iterator[Any]:
    """Apply ``function`` to ``items`` with a progress bar, in the processes set by the flags."""
    results = run_all(function, items, workers=args.workers, scheduler=args.dask_scheduler)
    return progress_bar(results, desc="check", total=len(items), unit="case")


def key_of(path: Path) -> str:
    """Return "<data set>/<case id>" of a file that classify.py wrote."""
    return f"{path.parent.name}/{path.name.removesuffix('.nii.gz')}"


def plan_case(key: str, path: Path, table: LabelTable, rule: CleaningRule) -> CaseJob:
    """Return the job of a case, with the settings on which its labels depend."""
    labels = table.labels_of(path.parent.name)
    settings = {"organs": labels.organs, "instance": labels.instance, "cleaning": rule.to_dict()}
    return CaseJob(key, path.parent.name, {"label": path}, settings=settings)


def space_of(job: CaseJob, *, table: LabelTable) -> int:
    """Return an estimated upper bound of the bytes of all organs' labels.

    A boundary between two organs is stored in two binary labels. Background deflates to about a
    thousandth of its voxels.
    """
    try:
        path = job.sources["label"]
        voxels = math.prod(read_nifti_grid(path).shape)
        classes = len(table.labels_of(job.dataset).classes)
        return 2 * path.stat().st_size + classes * (voxels // 1000 + 2**10)
    except (InputError, OSError, KeyError):
        return 0  # `categorize_case` reports the error


def categorize_case(
    job: CaseJob, entry: Entry, *, table: LabelTable, out: Path, rule: CleaningRule, max_voxels: int
) -> CaseFacts:
    """Write the labels of all organs of one case."""
    path, labels = job.sources["label"], table.labels_of(job.dataset)
    volume = read_nifti(path, max_voxels)
    label, remarks = checked_label(volume.array, path)
    counts = count_values(label)
    _require_known(path, job.dataset, labels, set(counts))
    outputs = {
        value: out / organ / job.dataset / "labelsTr" / path.name
        for value, organ in labels.organs.items()
        if value in counts or (labels.instance and counts)
    }
    entry.claim(outputs.values())
    notes, sizes = [], {}
    for value, output in sorted(outputs.items()):
        values = None if labels.instance else [value]
        target, lines = clean_target(label, values, volume.spacing_zyx, rule)
        name = labels.classes[value]
        notes += [f"{name}: {line}" for line in lines]
        if lines:
            sizes[name] = int(np.count_nonzero(target))
        else:
            sizes[name] = sum(counts.values()) if labels.instance else counts[value]
        if sizes[name]:
            write_nifti(output, target, volume.affine, volume.forms)
        else:
            entry.drop(output)
    z, y, x = volume.spacing_zyx
    return CaseFacts(label.shape, (x, y, z), sizes, tuple(notes), tuple(remarks + volume.notes))


def _require_known(path: Path, dataset: str, labels: DatasetLabels, values: set[int]) -> None:
    unknown = sorted(values - labels.classes.keys())
    if unknown and not labels.instance:
        raise LabelTableError(
            f"{path}: holds the values {unknown[:20]}, not classes of data set {dataset}.\n"
            f"Expected values of its classes, {sorted(labels.classes)}: add the missing classes to "
            "the class file, or correct the label."
        )


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
