"""Which files in the folder of a crop cache are the cache's own: no other one is replaced."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from utils.errors import InputError
from utils.files.names import require_inside
from utils.files.strict_json import read_json
from utils.training.crop_rows import IMAGE_NAME, IMAGES

ADVICE = (
    "Expected a new folder or a crop cache, since files would be replaced: choose another "
    "--crops-dir, or move the file away."
)


def cases_of_index(path: Path) -> set[str]:
    """Return the cases in ``index.json`` of an earlier run, as far as it can be read.

    Raises:
        InputError: the file is of another origin.
    """
    if not os.path.lexists(path):
        return set()
    try:
        content = read_json(path, "an index", dict[str, object])
    except InputError:
        content = {}
    if "layout" in content and isinstance(rows := content.get("samples"), list):
        cases = (row.get("case") for row in rows if isinstance(row, dict))
        return {case for case in cases if isinstance(case, str)}
    images = (f"{IMAGES}/{image.name}" for image in path.with_name(IMAGES).glob("*.npy"))
    if not any(map(IMAGE_NAME.fullmatch, images)):
        raise InputError(f"{path}: is no index of a crop cache. {ADVICE}")
    return set()  # a damaged index


def require_own_targets(folder: Path, paths: Iterable[Path], *, is_listed: bool) -> None:
    """Refuse to replace files of a case that are no targets.

    Args:
        paths: the files that would be removed, or replaced.
        is_listed: the index of an earlier run lists the case, so that a file which cannot be read
            is a damaged target.

    Raises:
        InputError: a file is of another origin, or lies behind a link out of ``folder``.
    """
    for path in paths:
        require_inside(path, folder, ADVICE)
        if not os.path.lexists(path):
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                is_target = {"bits.npy", "row.npy"} <= set(archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            is_target = is_listed
        if not is_target:
            raise InputError(f"{path}: is no target of a crop cache. {ADVICE}")
