"""Cases of predict.py: read image and prompts, write the answer."""

import argparse
import logging
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from utils.cases.challenge import read_challenge_case, write_segs
from utils.cases.inputs import answer_name, is_challenge_file
from utils.errors import InputError
from utils.files.answers import write_answer
from utils.files.images import header_modality, image_stem, read_image
from utils.files.strict_json import read_json
from utils.prompts.files import find_prompts, gives_prompts
from utils.prompts.kinds import Click, Prompt
from utils.volumes.forms import Forms
from utils.volumes.geometry import affine_from_spacing
from utils.volumes.grid import Grid
from utils.volumes.intensity import holds_hounsfield, map_intensity, named_modality

#: What headers call the modalities of `utils.volumes.intensity`; others count as "other".
HEADER_MODALITIES = {"CT": "ct", "MR": "mr", "MRI": "mr", "PT": "pet", "PET": "pet", "US": "us"}
CHANNEL = re.compile(r"_([0-9]{4})$")  # at the end of the name of an image of nnU-Net

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PredictionCase:
    """An image, its prompts, and the form of the answer's file."""

    answer_name: str  # the answer's file name, .npz, .nii.gz or .nrrd
    image: np.ndarray  # (D, H, W)
    affine: np.ndarray  # (x, y, z) voxel centres to RAS+ mm
    prompts: dict[int, list[Prompt]]  # target's number in the answer -> its prompts
    hounsfield: bool  # values are Hounsfield units
    dtype: np.dtype | None = None  # of the answer; None: the smallest that holds the numbers
    forms: Forms | None = None  # of the image's NIfTI header, which the answer's repeats

    def write(self, folder: Path, answer: np.ndarray, *, overwrite: bool = False) -> Path:
        """Write target numbers (D, H, W) into ``folder``; return the file.

        Raises:
            ForeignFileError: a file that is no answer would be replaced, without ``overwrite``.
            WriteError: the disk is full, or the folder is not writable.
        """
        path = folder / self.answer_name
        answer = answer.astype(self.dtype or answer.dtype, copy=False)
        write_answer(path, partial(self._write_unmarked, answer), overwrite=overwrite)
        return path

    def _write_unmarked(self, answer: np.ndarray, path: Path) -> None:
        if path.suffix == ".npz":
            write_segs(path, answer)
        elif path.suffix == ".nrrd":
            from utils.files.itk import write_nrrd

            # Programs that read NRRD show a NIfTI image where ITK places it.
            write_nrrd(path, answer, Grid(answer.shape, self.affine, self.forms).itk_affine)
        else:
            from utils.files.nifti import write_nifti

            write_nifti(path, answer, self.affine, self.forms)


def read_input(path: Path, args: argparse.Namespace) -> PredictionCase:
    """Read an input; map its intensities by --modality, --intensity and --window.

    Intensities of challenge files stay unchanged unless --window is given, since networks are
    trained on them.

    Raises:
        InputError: the file or its prompts cannot be used.
    """
    if is_challenge_file(path):
        case = _read_npz(path, args)
        return _mapped(path, case, args) if args.window else case
    return _mapped(path, _read_image(path, args), args)


def _mapped(path: Path, case: PredictionCase, args: argparse.Namespace) -> PredictionCase:
    """Map the image's intensities; log the mapping and the reason."""
    modality, source = modality_of(path, args)
    mapped = map_intensity(case.image, args.intensity, args.window, modality)
    why = f"{modality} by {source}" if modality else mapped.why
    if mapped.warning:
        logger.warning("%s: %s", path.name, mapped.warning)
    logger.info("%s: %s%s", path.name, mapped.done, f" ({why})" if why else "")
    return replace(case, image=mapped.image, hounsfield=mapped.hounsfield)


def modality_of(path: Path, args: argparse.Namespace) -> tuple[str | None, str]:
    """Return an image's modality and its source; None where only the values show it.

    Args:
        args: flags ``modality`` and ``series``.
    """
    if args.modality:
        return args.modality, "--modality"
    if is_challenge_file(path):
        return named_modality(image_stem(path)), "its name"
    if said := header_modality(path, series=args.series):
        return HEADER_MODALITIES.get(said, "other"), f"its header, {said}"
    if said := named_modality(image_stem(path)):
        return said, "its name"
    return _described_modality(path), "dataset.json"


def _described_modality(path: Path) -> str | None:
    """Return the modality in nnU-Net's dataset.json, of the image's folder or the one above."""
    channel = CHANNEL.search(image_stem(path))
    for folder in path.absolute().parents[:2]:
        if (folder / "dataset.json").is_file():
            try:
                content = read_json(folder / "dataset.json", "a description", dict[str, object])
            except InputError as error:
                logger.warning("%s", error)
                continue
            names = content.get("channel_names", content.get("modality"))
            names = names if isinstance(names, dict) else {}
            name = names.get(str(int(channel[1])) if channel else "0")
            return named_modality(name) if isinstance(name, str) else None
    return None


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
    hounsfield = case.hounsfield
    if args.intensity != "auto":
        hounsfield = args.intensity == "hounsfield"
    elif args.modality:
        hounsfield = holds_hounsfield(case.image, args.modality == "ct")
    affine = affine_from_spacing(np.array(case.spacing_xyz))
    name = answer_name(path, args.format)
    return PredictionCase(name, case.image, affine, prompts, hounsfield, dtype)


def _read_image(path: Path, args: argparse.Namespace) -> PredictionCase:
    volume = read_image(path, series=args.series)
    targets = find_prompts(args, path, volume.shape, volume.affine, volume.itk_affine)
    for target in targets:
        if not any(not isinstance(p, Click) or p.is_foreground for p in target.prompts):
            logger.warning(
                "%s: target %d has no box and no click on it, so its mask is empty. Expected at "
                "least one: add it to the prompts",
                path.name, target.id,
            )  # fmt: skip
    if not targets:
        logger.warning("%s: its prompts name no target, so the answer is empty", path.name)
    return PredictionCase(
        answer_name=answer_name(path, args.format),
        image=volume.array,
        affine=volume.affine,
        prompts={target.id: target.prompts for target in targets},
        hounsfield=False,
        forms=volume.forms,
    )
