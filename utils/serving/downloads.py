"""Masks as files: on the image's grid with its header, as predict.py writes them."""

import re
from pathlib import Path

import numpy as np

from utils.cases.inputs import FORMATS
from utils.cases.prediction import PredictionCase
from utils.files.images import image_stem
from utils.files.itk import simple_itk
from utils.serving.private_folders import private_folder
from utils.serving.refusals import Refusal
from utils.serving.session import Session

MOST_NUMBER = 10_000


def labels_file(
    session: Session, file_format: str, labels: np.ndarray | None = None
) -> tuple[str, bytes]:
    """Return name and content of the file with the labels of all targets.

    Args:
        labels: others in their place, (D, H, W).
    """
    name = f"{stem_of(session)}_labels{FORMATS[file_format]}"
    return name, _content(session, session.labels if labels is None else labels, file_format)


def target_file(session: Session, target: int, file_format: str) -> tuple[str, bytes]:
    """Return name and content of the file with the mask of one target, 0 and 1.

    Raises:
        Refusal: there is no such target.
    """
    if target not in session.prompts:
        raise Refusal(404, "no_target", f"there is no target {target}. Choose one of the list.")
    name = f"{stem_of(session)}_{safe_name(session.targets[target].name)}{FORMATS[file_format]}"
    mask = (session.labels == target).astype(np.uint8)
    return name, _content(session, mask, file_format)


def save_new(folder: Path, name: str, content: bytes) -> Path:
    """Write a file of a name that no file has yet: a number is added where one has it.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = image_stem(Path(name)), name[len(image_stem(Path(name))) :]
    for number in range(1, MOST_NUMBER):
        path = folder / (name if number == 1 else f"{stem}_{number}{suffix}")
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(content)
        except OSError:
            path.unlink(missing_ok=True)  # a part of it is no mask
            raise
        return path
    raise FileExistsError(f"{folder / name}: {MOST_NUMBER} files have this name and a number")


def stem_of(session: Session) -> str:
    """Return the image's name without its ending, in characters that every file system takes."""
    return safe_name(image_stem(Path(session.scan.name)))


def safe_name(text: str) -> str:
    """Return a text as a part of a file's name: ASCII letters, digits, dot, hyphen, underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:60].strip("._") or "image"


def _content(session: Session, labels: np.ndarray, file_format: str) -> bytes:
    if file_format == "nrrd":
        simple_itk()
    volume = session.scan.volume
    name = f"answer{FORMATS[file_format]}"
    case = PredictionCase(name, labels, volume.affine, {}, False, forms=volume.forms)
    with private_folder() as folder:
        return case.write(folder, labels).read_bytes()
