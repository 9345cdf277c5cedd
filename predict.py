"""Segment challenge cases or other images from prompts; the challenge's container runs this script.

Reads   --input       a challenge NPZ (imgs, spacing, boxes, clicks); a NIfTI, NRRD or MetaImage
                      file; a folder of DICOM slices; or a folder of any of these
        --checkpoint  a file of this project (student.pth), or a released file with --network;
                      a path, or hf://OWNER/REPO/FILE[@REVISION] on the Hugging Face hub; without
                      it, the student that ships: weights/student.pth
        --prompts     for images: JSON in the format of utils/prompts/files.py; or --fg, --bg, --box
Writes  --output      <name>.npz with segs (D, H, W): the k-th entry of the prompts has the value k;
                      for images <name>.nii.gz (or --format nrrd) on their grid: the targets' ids

Inputs are never written to. An answer replaces only an unchanged answer of this script; other files
of its name are kept unless --overwrite is given. A case that cannot be answered is named, the other
cases are answered, and the exit code is 1; tracebacks go to OUTPUT/errors_<time>.log.

    python predict.py --input ct.nii.gz --output out --fg 40,210,260
    python predict.py --input inputs --output outputs --checkpoint student.pth
"""

import utils.run.threads  # noqa: F401  before NumPy and torch

# isort: split
import argparse
import gc
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.errors import exit_on_input_error, printable
from utils.run.log import start_log

if TYPE_CHECKING:
    import numpy as np

    from utils.cases.prediction import PredictionCase
    from utils.prediction.predictor import Predictor

logger = logging.getLogger(__name__)


class PredictReport(NamedTuple):
    """The files written, a message for every case that failed, and seconds by part of the run."""

    written: list[Path]
    failures: list[str]
    seconds: dict[str, float]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    from utils.prompts.files import add_prompt_arguments, protect_minus
    from utils.run.checkpoint_flags import FROM_HUB, checkpoint_file
    from utils.run.flags import add_device_arguments, add_engine_arguments
    from utils.volumes.intensity import add_intensity_arguments

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, help="a file, or a folder of them; never written to")
    add("--output", type=Path, required=True, help="folder for the answers; made if missing")
    add(
        "--checkpoint",
        type=checkpoint_file,
        help=f"file of the network, {FROM_HUB} (default: weights/student.pth)",
    )
    add("--network", help="name of the network in a released file, such as vit_b_ori")
    teacher = "take prompt encoder and mask decoder from this file"
    add("--teacher", type=checkpoint_file, help=teacher)
    add_prompt_arguments(parser)
    add_intensity_arguments(parser)
    add("--series", metavar="UID", help="DICOM series to read, for folders that hold several")
    group = parser.add_argument_group("answer and run")
    group.add_argument(
        "--segs-dtype",
        choices=("uint8", "uint16"),
        default="uint8",
        help="dtype of NPZ answers; uint8 holds 255 classes, like the evaluator (default: uint8)",
    )
    group.add_argument(
        "--format",
        choices=("nifti", "nrrd"),
        default="nifti",
        help="format of answers to images; nrrd needs SimpleITK (default: nifti)",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files of other origin and changed answers in the output folder, too",
    )
    add_device_arguments(group)
    add_engine_arguments(group)
    group.add_argument("--timing", action="store_true", help="print the seconds of each part")
    return parser.parse_args(protect_minus(argv))


def run(args: argparse.Namespace, clock: "Clock | None" = None) -> PredictReport:
    """Segment every case; log the errors of failed cases.

    Raises:
        InputError: an input, flag or checkpoint cannot be used, or an answer would replace a file
            that is kept; before anything is written.
        WriteError: an answer cannot be written; those before it are.
    """
    clock = Clock() if clock is None else clock
    with clock.part("imports"), importing():  # here and not above, so that --help is quick
        from utils.cases.inputs import find_inputs, require_safe_answers
        from utils.files.atomic import WriteError, make_folder
        from utils.prediction.predictor import ready_predictor
        from utils.run.checkpoint_flags import with_local_files
        from utils.run.failures import explain, new_log, release_memory
        from utils.run.network import open_network
        from utils.run.shipped import checkpoint_or_default
    paths = find_inputs(args.input, args.output)
    args = with_local_files(args)
    args.checkpoint = checkpoint_or_default(args.checkpoint, "student")
    require_safe_answers(paths, args)
    make_folder(args.output)
    with clock.part("weights"):
        model, rule = open_network(
            args.checkpoint, args.network, args.teacher, encoder=args.encoder, refine=args.refine
        )
        predictor = ready_predictor(
            model, rule, device=args.device, precision=args.precision, engine=args.engine
        )
    written, failures, log = [], [], new_log(args.output)
    for path in progress(paths):
        try:
            written.append(answer(path, predictor, args, clock))
        except WriteError:
            raise
        except Exception as error:  # one case must not stop the others
            failures.append(explain(str(path), error, log))
            logger.error("%s", failures[-1])
        else:
            continue
        # The error, which holds the case's memory, is gone by now.
        predictor.session = predictor.decoder = None
        predictor.reset()
        release_memory()
    return PredictReport(written, failures, clock)


def answer(path: Path, predictor: "Predictor", args: argparse.Namespace, clock: "Clock") -> Path:
    """Read a case, segment it and write the answer; return the answer's file."""
    from utils.cases.prediction import read_input

    with clock.part("cases"):
        case = read_input(path, args)
    with clock.part("network"):
        segmentation = segment(predictor, case)
    with clock.part("writing"):
        return case.write(args.output, segmentation, overwrite=args.overwrite)


def segment(predictor: "Predictor", case: "PredictionCase") -> "np.ndarray":
    """Return the target id of every voxel, (D, H, W); 0 is background."""
    predictor.set_image(case.image, affine=case.affine, hounsfield=case.hounsfield)
    for target, prompts in case.prompts.items():
        for prompt in prompts:
            predictor.add(prompt, target=target)
    return predictor.segmentation()


@contextmanager
def importing() -> Iterator[None]:
    """Turn off garbage collection during imports, and later skip the imported objects.

    Imported objects exist until the process ends. Collecting them took a fifth of a cold start, and
    the challenge starts a new container for every step.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # freeze only once: objects made later may be garbage
            gc.freeze()
        gc.enable()


def progress(paths: list[Path]) -> Iterable[Path]:
    """Show a progress bar if there is more than one case."""
    if len(paths) == 1:
        return paths
    from tqdm import tqdm

    return tqdm(paths, desc="predict", unit="case")


class Clock(dict[str, float]):
    """Seconds by part of the run."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


@exit_on_input_error
def main() -> int:
    start_log()
    clock = Clock()
    with clock.part("imports"), importing():
        args = parse_args()
    report = run(args, clock)
    answers, failed = len(report.written), len(report.failures)
    print(printable(f"{answers} answers in {args.output}, {failed} cases failed"))
    if args.timing:
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in report.seconds.items())
        print(f"seconds: {parts}; together {sum(report.seconds.values()):.2f}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    main()
