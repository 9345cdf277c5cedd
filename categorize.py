"""Step 1b: split multi-class labels by organ, one binary label per organ and case.

Reads   --in       <data set>/<case>.nii.gz, as classify.py writes them
        --json     the class file: what the label values mean
Writes  --out      <organ>/<data set>/labelsTr/<case>.nii.gz for every organ with a voxel in the
                   case: uint8, 1 inside and 0 outside. Then comes reallocate.py.

The organ's folder is the class name in lower case, every run of characters other than letters and
digits an underscore: "Left kidney" -> left_kidney. Data sets with `instance_label: 1` number the
objects of one class (tumours, nuclei): their labels keep these numbers as they are, in uint16, in
the folder of class 1.

A case that cannot be used is listed, the others are done, and the exit code is 1. Inputs are only
read. A second run leaves what is there, unless its input has become newer.

    python categorize.py
    python categorize.py --in data/classified_validation --out data/medical_validation
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from utils.errors import InputError, exit_on_input_error
from utils.label_table import DatasetLabels, LabelTable, LabelTableError, read_label_table
from utils.nifti_io import as_label, read_nifti, write_nifti
from utils.preparation import (
    Outcome,
    Summary,
    add_workers_flag,
    for_each_case,
    is_current,
    require_folder,
)


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
        help="folder that classify.py wrote (%(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, default=Path("CVPR25.json"), help="class file (%(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/medical_preprocessed"),
        help="output folder (%(default)s)",
    )
    add_workers_flag(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary:
    """Write the labels of all organs; return how many cases ended how."""
    table = read_label_table(args.json)
    require_folder(args.classified, "the output folder of classify.py")
    found = sorted(args.classified.glob("[!.]*/[!.]*.nii.gz"))
    if not found:
        raise InputError(
            f"{args.classified}: holds no <data set>/<case>.nii.gz. Expected the output of "
            "classify.py: run it first, or check the path given with --in."
        )
    cases = {f"{path.parent.name}/{path.name.removesuffix('.nii.gz')}": path for path in found}
    work = partial(categorize_case, table=table, out=args.out)
    return for_each_case("categorize", cases, work, args.workers)


def categorize_case(_: str, path: Path, *, table: LabelTable, out: Path) -> Outcome:
    """Write the labels of all organs of one case that are not there yet."""
    dataset = path.parent.name
    labels = table.labels_of(dataset)
    volume = read_nifti(path)
    label = as_label(volume.array, path)
    values = values_of(label)
    _require_known(path, dataset, labels, values)

    outputs = {
        value: out / organ / dataset / "labelsTr" / path.name
        for value, organ in labels.organs.items()
    }
    present = {1} if labels.instance and values else values
    _require_no_leftover(path, [outputs[value] for value in outputs.keys() - present])
    stale = [value for value in sorted(present) if not is_current(outputs[value], path)]
    for value in stale:
        mask = label.astype(np.uint16) if labels.instance else label == value
        write_nifti(outputs[value], mask, volume.affine)
    return Outcome.DONE if stale else Outcome.SKIPPED


def values_of(label: np.ndarray) -> set[int]:
    """Return the values in ``label`` but 0; slice by slice, so that no large copy is made."""
    return set().union(*(np.unique(plane).tolist() for plane in label)) - {0}


def _require_known(path: Path, dataset: str, labels: DatasetLabels, values: set[int]) -> None:
    unknown = sorted(values - labels.classes.keys())
    if unknown and not labels.instance:
        raise LabelTableError(
            f"{path}: holds the values {unknown}, which data set {dataset} does not have.\n"
            f"Expected values of its classes, {sorted(labels.classes)}: add the missing classes to "
            "the class file, or correct the label."
        )
    if labels.instance and max(values, default=0) > np.iinfo(np.uint16).max:
        raise InputError(
            f"{path}: instance number {max(values)}. Expected at most 65535: number them from 1."
        )


def _require_no_leftover(path: Path, outputs: list[Path]) -> None:
    """Raise where an earlier run found an organ in this case that it no longer has."""
    leftover = [str(output) for output in outputs if output.exists()]
    if leftover:
        raise InputError(
            f"{path}: no longer has a voxel of the organs of\n  " + "\n  ".join(leftover) + "\n"
            "Expected no label where there is no voxel: delete these files and their images."
        )


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
