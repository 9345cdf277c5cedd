"""What is served where nothing else is named."""

import logging
from contextlib import suppress
from pathlib import Path

from utils.errors import InputError

DEMO_STUDENTS = "work_dir/demo*/*_steps/student/student.pth"
SAVE_DIR = Path("work_dir/serve")
MAX_VOXELS = 2**28

logger = logging.getLogger(__name__)


def default_checkpoint() -> Path:
    """Return the student that ships, or else the newest of the demo; log which.

    Raises:
        InputError: there is neither.
    """
    from utils.run.shipped import WEIGHTS, checkpoint_or_default

    with suppress(InputError):
        return checkpoint_or_default(None, "student")
    found = sorted(Path().glob(DEMO_STUDENTS), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(
            f"found no --checkpoint, no {WEIGHTS / 'student.pth'} and no {DEMO_STUDENTS}. Expected "
            "a network: name its file with --checkpoint FILE, or type make demo, which trains a "
            "small network in minutes."
        )
    logger.warning(
        "%s: a network of the demo, trained on phantoms for minutes. For patients' images name "
        "another with --checkpoint.",
        found[-1],
    )
    return found[-1]
