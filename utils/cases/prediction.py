"""Cases of predict.py: find the input files, read image and prompts, write the answer."""

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.cases.challenge import read_challenge_case, write_segs
from utils.errors import InputError
from utils.prompts.files import find_prompts, gives_prompts, image_stem
from utils.prompts.kinds import Prompt
from utils.volumes.forms import Forms
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.intensity import looks_hounsfield, map_intensity

INPUT_SUFFIXES = (".npz", ".nii", ".nii.gz")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PredictionCase:
    """An image, its prompts, and the form of the answer's file."""

    answer_name: str  # the answer's file name, .npz or .nii.gz
    image: np.ndarray  # (D, H, W)
    affine: np.ndarray  # (x, y, z) voxel centres to RAS+ mm
    prompts: dict[int, list[Prompt]]  # target's number in the answer -> its prompts
    hounsfield: bool  # values are Hounsfield units
    dtype: np.dtype | None = None  # of the answer; None: the smallest that holds the numbers
    forms: Forms | None = None  # of the image's NIfTI header, which the answer's repeats

    def write(self, folder: Path, answer: np.ndarray) -> Path:
        """Write target numbers (D, H, W) into ``folder``; return the file.

        Raises:
            WriteError: the disk is full, or the folder is not writable.
        """
        path = folder / self.answer_name
        answer = answer.astype(self.dtype or answer.dtype, copy=False)
        if path.suffix == ".npz":
            write_segs(path, answer)
        else:
            from utils.files.nifti import write_nifti

            write_nifti(path, answer, self.affine, self.forms)
        return path


def find_inputs(source: Path, output: Path) -> list[Path]:
    """Return the input file ``source``, or the input files in the folder ``source``, sorted.

    Raises:
        InputError: there is no input, two inputs would have the same output file, or the output
            folder is the folder of the inputs or lies in it.
    """
    if source.is_dir():
        paths = sorted(
            path
            for path in source.iterdir()
            if path.name.endswith(INPUT_SUFFIXES) and not path.name.startswith(".")
        )
        inputs = source.resolve()
        mixed = output.resolve().is_relative_to(inputs)
    else:
        paths = [source] if source.exists() and source.name.endswith(INPUT_SUFFIXES) else []
        mixed = output.resolve() == source.resolve().parent
    if not paths:
        raise InputError(
            f"{source}: found no case. Expected a file, or a folder of files, ending in "
            f"{', '.join(INPUT_SUFFIXES)}: check the path."
        )
    if mixed:
        raise InputError(
            f"--output {output}: lies with the inputs in {source}. Expected another folder, since "
            "inputs are never written to: name one."
        )
    _require_own_answers(paths)
    return paths


def read_input(path: Path, args: argparse.Namespace) -> PredictionCase:
    """Read an input and map its intensities to 0..255 by --intensity and --window.

    Intensities of challenge files stay unchanged unless --window is given, since networks are
    trained on them.

    Raises:
        InputError: the file or its prompts cannot be used.
    """
    is_npz = path.suffix == ".npz"
    case = (_read_npz if is_npz else _read_nifti)(path, args)
    if is_npz and not args.window:
        return case
    image, done = map_intensity(case.image, args.intensity, args.window)
    logger.info("%s: %s", path.name, done)
    return replace(case, image=image, hounsfield=looks_hounsfield(image))


def _read_npz(path: Path, args: argparse.Namespace) -> PredictionCase:
    if gives_prompts(args):
        raise InputError(
            f"{path}: found prompts on the command line. Expected them in the file, since it is a "
            "challenge case: leave --prompts, --fg, --bg and --box out, or give a NIfTI image."
        )
    case = read_challenge_case(path)
    dtype = np.dtype(args.segs_dtype)
    prompts = dict(enumerate(case.prompts, 1))
    most = np.iinfo(dtype).max
    if len(prompts) > most:
        logger.warning(
            "%s: has %d classes; those above %d are left out, since %s cannot hold their numbers "
            "(--segs-dtype uint16 can)", path, len(prompts), most, dtype
        )  # fmt: skip
        prompts = {number: prompts[number] for number in range(1, most + 1)}
    affine = affine_from_spacing(np.array(case.spacing_xyz))
    return PredictionCase(path.name, case.image, affine, prompts, case.hounsfield, dtype)


def _read_nifti(path: Path, args: argparse.Namespace) -> PredictionCase:
    from utils.files.nifti import read_nifti  # imports nibabel, which challenge files do not need

    volume = read_nifti(path)
    targets = find_prompts(args, path, volume.shape, volume.affine, volume.itk_affine)
    prompts = {target.id: target.prompts for target in targets}
    name = f"{image_stem(path)}.nii.gz"
    return PredictionCase(
        name, volume.array, volume.affine, prompts, hounsfield=False, forms=volume.forms
    )


def _require_own_answers(paths: list[Path]) -> None:
    """Raise `InputError` if two inputs, ``a.nii`` and ``a.nii.gz``, would have one answer."""
    by_answer: dict[str, Path] = {}
    for path in paths:
        answer = path.name if path.suffix == ".npz" else f"{image_stem(path)}.nii.gz"
        first = by_answer.setdefault(answer, path)
        if first is not path:
            raise InputError(
                f"{path}: would be answered in {answer}, as {first} would. Expected different "
                "names: rename or move one of them."
            )
