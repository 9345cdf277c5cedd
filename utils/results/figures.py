"""Figures as files, or as the bytes of a PNG.

The drawing functions of this package return a matplotlib `Figure` made without pyplot: there is no
window and no global state, so a server without a display draws the same.
"""

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from utils.files.atomic import atomic_path

_DPI = 150


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all; the suffix decides the format."""
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, dpi=_DPI)


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG; the same figure always gives the same bytes.

    matplotlib's name and version are left out: they are all that could differ.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
