"""Find the inputs of predict.py, and check that no answer would replace one of them.

An input is a challenge file, an image file of a format of `utils.files.images`, or a folder that
holds one DICOM series.
"""

import argparse
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError
from utils.files.answers import require_distinct_files, require_replaceable
from utils.files.dicom import dicom_files, is_dicom_folder
from utils.files.images import IMAGE_SUFFIXES, image_stem, image_suffix, parts_of
from utils.files.itk import simple_itk
from utils.prompts.files import prompt_file

FORMATS = {"nifti": ".nii.gz", "nrrd": ".nrrd"}  # values of --format, with the answers' endings
READ = f"{', '.join(('.npz', *IMAGE_SUFFIXES))}, or folders of DICOM slices"
MAX_NAME = 255  # bytes, of most file systems
SHOWN = 5  # names in a message

logger = logging.getLogger(__name__)


def is_challenge_file(path: Path) -> bool:
    """Tell whether a path names a challenge file."""
    return path.suffix.lower() == ".npz"


def answer_name(path: Path, file_format: str) -> str:
    """Return the name of an input's answer; ``file_format`` is that of images."""
    return image_stem(path) + (".npz" if is_challenge_file(path) else FORMATS[file_format])


def find_inputs(source: Path, output: Path) -> list[Path]:
    """Return the input ``source``, or the inputs in the folder ``source``, sorted.

    What is left out of a folder is logged.

    Raises:
        InputError: there is no input, or the output folder is the folder of the inputs or lies in
            it.
    """
    source = Path(os.path.abspath(source)) if source.name in ("", "..") else source
    paths = _in_folder(source) if source.is_dir() else [source] if _is_input(source) else []
    if not paths or not (source.exists() or source.is_symlink()):
        raise _no_case(source)
    place = output.resolve()
    beside = {source.resolve().parent, source.absolute().parent.resolve()}  # of a link: both
    if place.is_relative_to(source.resolve()) if source.is_dir() else place in beside:
        raise InputError(
            f"--output {output}: lies with the inputs in {source}. Expected another folder, since "
            "inputs are never written to: name one."
        )
    return paths


def require_safe_answers(paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Check before anything is written that each answer has a name and place of its own.

    Raises:
        InputError: two inputs would have one answer, or an answer would replace an input, or a file
            that is no answer (unless --overwrite is given).
    """
    if args.format == "nrrd":
        simple_itk()  # a missing package is reported before the first case
    names: dict[str, Path] = {}
    for path in paths:
        name = answer_name(path, args.format)
        # Upper and lower case are one name on some disks, and so are two spellings of an accent.
        first = names.setdefault(unicodedata.normalize("NFC", name).casefold(), path)
        if first is not path:
            raise InputError(
                f"{path}: its answer would be {name}, and so would that of {first}. Expected "
                "different names: rename or move one of them."
            )
        if len(os.fsencode(name)) > MAX_NAME:
            raise InputError(
                f"{path}: the name of its answer would have {len(os.fsencode(name))} bytes. "
                f"Expected at most {MAX_NAME}: shorten the input's name."
            )
    answers = [args.output / answer_name(path, args.format) for path in paths]
    inputs = [*paths, *(part for path in paths for part in _companions(path, args))]
    network = (args.checkpoint, args.teacher, args.encoder)
    require_distinct_files(answers, [*inputs, *(path for path in network if path)])
    require_replaceable(answers, overwrite=args.overwrite)


def _is_input(path: Path) -> bool:
    return is_challenge_file(path) or bool(image_suffix(path))


def _in_folder(folder: Path) -> list[Path]:
    """Return the inputs in a folder; log what else is there."""
    entries = sorted(folder.iterdir())
    visible = [path for path in entries if not path.name.startswith(".")]
    paths = [path for path in visible if _is_input(path)]
    paths += [path for path in visible if path not in paths and is_dicom_folder(path)]
    known = {*paths, *(part for path in paths for part in _companions(path))}
    if is_dicom_folder(folder):
        known.update(dicom_files(folder))
        paths.append(folder)
    hidden = {path for path in entries if path.name.startswith("._") or not _is_input(path)}
    hidden -= set(visible)  # a hidden image is named, the shadow files of macOS are not
    left_out = [path for path in entries if path not in known | hidden]
    if left_out and paths:
        names = [path.name + "/" * path.is_dir() for path in left_out]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        logger.warning(
            "NOTE %s: left out %d of %d entries: %s%s. Expected files ending in %s.",
            folder, len(names), len(entries), ", ".join(names[:SHOWN]), more, READ,
        )  # fmt: skip
    return sorted(paths)


def _companions(path: Path, args: argparse.Namespace | None = None) -> list[Path]:
    """Return the files that belong to an image: its prompts, and its voxels' own files."""
    if is_challenge_file(path):
        return []
    return [prompt_file(path, args.prompts if args else None), *parts_of(path)]


def _no_case(source: Path) -> InputError:
    found = "there is no such file"
    if source.is_dir():
        endings = Counter(path.suffix or "no ending" for path in source.iterdir())
        listed = ", ".join(f"{ending} ({n})" for ending, n in endings.most_common(SHOWN))
        found = f"its entries end in {listed}" if endings else "it is empty"
    elif source.exists():
        found = f"it ends in {source.suffix or 'nothing'}"
        if source.suffix.lower() in (".dcm", ".dicom", ".ima"):
            found += " (of DICOM slices, give the folder)"
    return InputError(
        f"{source}: found no case: {found}. Expected a file, or a folder of files, ending in "
        f"{READ}: check the path, or convert the images."
    )
