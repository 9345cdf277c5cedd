"""Step 1c: put each case's image beside every organ label that needs it.

Reads   --images   NPZ files with `imgs` (D, H, W) and `spacing`; subfolders are searched too
        --tree     <organ>/<data set>/labelsTr/<case>.nii.gz, as categorize.py writes them
Writes  --tree     <organ>/<data set>/imagesTr/<case>.nii.gz on the grid of its label, dtype kept.
                   An image is written once; the other organs of the case get hard links to it
                   (copies where the disk has none). Then comes preparelabel.py.

A case that cannot be used is listed, the others are done, and the exit code is 1. Inputs are only
read. A second run skips what is there, unless image or label has become newer.

    python reallocate.py --images data/npz
    python reallocate.py --images val --tree data/medical_validation
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from utils.errors import InputError, exit_on_input_error
from utils.geometry import affine_from_spacing
from utils.nifti_io import Volume, read_nifti_grid, read_npz, require_same_grid, write_nifti
from utils.preparation import (
    Outcome,
    Role,
    Summary,
    add_workers_flag,
    find_npz,
    for_each_case,
    is_current,
    link_or_copy,
    require_folder,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the flags; `run` reads all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=Path, default=Path("data/npz"), help="folder of images (%(default)s)"
    )
    parser.add_argument(
        "--tree",
        type=Path,
        default=Path("data/medical_preprocessed"),
        help="folder that categorize.py wrote (%(default)s)",
    )
    add_workers_flag(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> Summary:
    """Write the images beside all labels; return how many cases ended how."""
    labels = labels_of_cases(args.tree)
    images = find_npz(args.images, Role.IMAGE)
    work = partial(reallocate_case, images=images, folder=args.images)
    return for_each_case("reallocate", labels, work, args.workers)


def labels_of_cases(tree: Path) -> dict[str, list[Path]]:
    """Return case id -> its labels in all organs of the tree."""
    require_folder(tree, "the output folder of categorize.py")
    cases: dict[str, list[Path]] = {}
    for path in sorted(tree.glob("[!.]*/[!.]*/labelsTr/[!.]*.nii.gz")):
        cases.setdefault(path.name.removesuffix(".nii.gz"), []).append(path)
    if not cases:
        raise InputError(
            f"{tree}: holds no <organ>/<data set>/labelsTr/<case>.nii.gz. Expected the output of "
            "categorize.py: run it first, or check the path given with --tree."
        )
    return dict(sorted(cases.items()))


def reallocate_case(
    case_id: str, labels: list[Path], *, images: dict[str, Path], folder: Path
) -> Outcome:
    """Write the image of one case beside its first label, and link it beside the others."""
    if case_id not in images:
        raise InputError(
            f"{labels[0]}: has no image. Expected {case_id}.npz in or below {folder}: give the "
            "folder that holds it, --images."
        )
    source = images[case_id]
    outputs = [label.parent.with_name("imagesTr") / label.name for label in labels]
    if all(is_current(*pair, source) for pair in zip(outputs, labels, strict=True)):
        return Outcome.SKIPPED
    arrays = read_npz(source, ("imgs", "spacing"))
    image = Volume(arrays["imgs"], affine_from_spacing(arrays["spacing"]))
    for label in labels:
        require_same_grid(image, read_nifti_grid(label), source, label)
    write_nifti(outputs[0], image.array, image.affine)
    for output in outputs[1:]:
        link_or_copy(outputs[0], output)
    return Outcome.DONE


@exit_on_input_error
def main() -> int:
    """Run from the command line."""
    summary = run(parse_args())
    print(summary)
    return summary.exit_code


if __name__ == "__main__":
    main()
