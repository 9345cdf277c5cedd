"""Cases of predict.py: find them, read them with their prompts, write their answers."""

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.cases.challenge import read_challenge_case, write_segs
from utils.errors import InputError
from utils.prompts.files import find_prompts, gives_prompts, image_stem
from utils.prompts.kinds import Prompt
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.intensity import looks_hounsfield, map_intensity

SUFFIXES = (".npz", ".nii", ".nii.gz")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PredictionCase:
    """An image, its prompts, and how the answer is written."""

    answer_name: str  # of the file, .npz or .nii.gz
    image: np.ndarray  # (D, H, W)
    affine: np.ndarray  # (x, y, z) voxel centres to RAS+ mm
    prompts: dict[int, list[Prompt]]  # by the target's number in the answer
    hounsfield: bool  # values are Hounsfield units
    dtype: np.dtype | None = None  # of the answer; None: as small as the numbers allow

    def write(self, folder: Path, answer: np.ndarray) -> Path:
        """Write target numbers (D, H, W) into ``folder``; return the file.

        Raises:
            WriteError: the disk is full, or the folder does not let us write.
        """
        path = folder / self.answer_name
        answer = answer.astype(self.dtype or answer.dtype, copy=False)
        if path.suffix == ".npz":
            write_segs(path, answer)
        else:
            from utils.files.nifti import write_nifti

            write_nifti(path, answer, self.affine)
        return path


def find_cases(source: Path, output: Path) -> list[Path]:
    """Return the case ``source``, or the cases in the folder ``source``, sorted by name.

    Raises:
        InputError: there is none, two would have one answer, or the answers would lie among them.
    """
    if source.is_dir():
        paths = sorted(
            path
            for path in source.iterdir()
            if path.name.endswith(SUFFIXES) and not path.name.startswith(".")
        )
        inputs = source.resolve()
        mixed = output.resolve().is_relative_to(inputs)
    else:
        paths = [source] if source.exists() and source.name.endswith(SUFFIXES) else []
        mixed = output.resolve() == source.resolve().parent
    if not paths:
        raise InputError(
            f"{source}: found no case. Expected a file, or a folder of files, ending in "
            f"{', '.join(SUFFIXES)}: check the path."
        )
    if mixed:
        raise InputError(
            f"--output {output}: lies with the inputs in {source}. Expected another folder, since "
            "inputs are never written to: name one."
        )
    _require_own_answers(paths)
    return paths


def read_case(path: Path, args: argparse.Namespace) -> PredictionCase:
    """Read a case and map its intensities to the range of training, as the flags say.

    Challenge intensities stay as they are, since networks are trained on them, unless --window is
    given.

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
            f"{path}: found prompts on the command line. Expected them in the file, which is a "
            "challenge case: leave --prompts, --fg, --bg and --box out, or give a NIfTI image."
        )
    case = read_challenge_case(path, with_prev_pred=False)
    dtype = np.dtype(args.segs_dtype)
    prompts = dict(enumerate(case.prompts, 1))
    most = np.iinfo(dtype).max
    if len(prompts) > most:
        logger.warning(
            "%s: has %d classes; those above %d are left out, since %s cannot hold their numbers "
            "and would turn them into others (--segs-dtype uint16)", path, len(prompts), most, dtype
        )  # fmt: skip
        prompts = {number: prompts[number] for number in range(1, most + 1)}
    affine = affine_from_spacing(np.array(case.spacing_xyz))
    return PredictionCase(path.name, case.image, affine, prompts, case.hounsfield, dtype)


def _read_nifti(path: Path, args: argparse.Namespace) -> PredictionCase:
    from utils.files.nifti import (
        read_nifti,  # brings nibabel, which a challenge case can do without
    )

    volume = read_nifti(path)
    targets = find_prompts(args, path, volume.shape, volume.affine)
    prompts = {target.id: target.prompts for target in targets}
    name = f"{image_stem(path)}.nii.gz"
    return PredictionCase(name, volume.array, volume.affine, prompts, hounsfield=False)


def _require_own_answers(paths: list[Path]) -> None:
    """Raise `InputError` where ``a.nii`` and ``a.nii.gz`` would both become ``a.nii.gz``."""
    by_answer: dict[str, Path] = {}
    for path in paths:
        answer = path.name if path.suffix == ".npz" else f"{image_stem(path)}.nii.gz"
        first = by_answer.setdefault(answer, path)
        if first is not path:
            raise InputError(
                f"{path}: would be answered in {answer}, as {first} would. Expected different "
                "names: rename or move one of them."
            )
