"""Step 1a: turn the labels of challenge files into NIfTI, one folder per data set.

Reads   --labels   NPZ files with `gts` (D, H, W); subfolders are searched too
        --images   NPZ files of the same cases with `imgs` and `spacing`; not needed where the
                   label files hold both
        --json     the class file: which data sets there are
Writes  --out      <data set>/<case>.nii.gz: all classes in one file, the case's spacing in the
                   affine. Then comes categorize.py.

A case belongs to the data set whose key is the longest prefix of its name. A case that cannot be
used is listed, the others are done, and the exit code is 1. Inputs are only read. A second run
skips what is there, unless its input has become newer.

    python classify.py --labels data/npz
    python classify.py --labels val_gts --images val --out data/classified_validation
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.geometry import affine_from_spacing
from utils.label_table import LabelTable, read_label_table
from utils.nifti_io import as_label, read_npz, read_npz_shape, write_nifti
from utils.preparation import (
    Outcome,
    Role,
    Summary,
    add_workers_flag,
    find_npz,
    for_each_case,
    is_current,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labels", type=Path, default=Path("data/npz"), help="folder of labels (%(default)s)"
    )
    parser.add_argument(
        "--images", type=Path, default=None, help="folder of images (the same as --labels)"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("CVPR25.json"), help="class file (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/classified"), help="output folder (%(default)s)"
    )
    add_workers_flag(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary:
    """Write one multi-class NIfTI label per case; return how many cases ended how."""
    table = read_label_table(args.json)
    labels = find_npz(args.labels, Role.LABEL)
    images = find_npz(args.images or args.labels, Role.IMAGE)
    cases = {case_id: (label, images.get(case_id)) for case_id, label in labels.items()}
    work = partial(classify_case, table=table, out=args.out)
    return for_each_case("classify", cases, work, args.workers)


def classify_case(
    case_id: str, files: tuple[Path, Path | None], *, table: LabelTable, out: Path
) -> Outcome:
    """Write ``out/<data set>/<case_id>.nii.gz`` from the case's label file and image file."""
    label_path, image_path = files
    output = out / table.dataset_of(case_id) / f"{case_id}.nii.gz"
    if is_current(output, *filter(None, files)):
        return Outcome.SKIPPED
    arrays = read_npz(label_path, ("gts",), optional=("spacing",))
    if image_path is not None:
        _require_same_shape(label_path, arrays["gts"].shape, image_path)
    spacing_xyz = arrays.get("spacing")
    if spacing_xyz is None:
        spacing_xyz = _spacing_of_image(label_path, image_path)
    label = as_label(arrays["gts"], label_path)
    write_nifti(output, label, affine_from_spacing(spacing_xyz))
    return Outcome.DONE


def _require_same_shape(label_path: Path, shape: tuple[int, ...], image_path: Path) -> None:
    image_shape = read_npz_shape(image_path, "imgs")
    if image_shape not in (None, shape):
        raise InputError(
            f"label and image have different shapes.\n"
            f"  label  {label_path}  (D, H, W) {shape}\n"
            f"  image  {image_path}  (D, H, W) {image_shape}\n"
            "Expected one grid: check that both files are of this case, and export them again."
        )


def _spacing_of_image(label_path: Path, image_path: Path | None) -> Sequence[float]:
    if image_path in (None, label_path):
        raise InputError(
            f"{label_path}: lacks 'spacing', and no other file of the case is there. Expected it "
            "here or in the image's file: give the folder of the images, --images."
        )
    return read_npz(image_path, ("spacing",))["spacing"]


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
