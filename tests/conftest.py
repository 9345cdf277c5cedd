"""Shared by the tests: tiny challenge files with odd, unequal sides; empty working folders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import CLASSES

from utils.run import shipped

SHAPE = (4, 6, 9)  # (D, H, W), all different so that a swapped axis shows
SPACING_XYZ = (0.7, 0.9, 5.0)


@pytest.fixture
def make_case() -> Callable[..., Path]:
    """Return a builder of challenge NPZ files; see `write_case`."""
    return write_case


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """Be in an empty folder that holds a class file of two data sets."""
    monkeypatch.chdir(tmp_path)
    Path("CVPR25.json").write_text(json.dumps(CLASSES))
    return tmp_path


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """Return an empty folder in the place of weights/; the working directory is empty, too."""
    folder = tmp_path / "clone" / "weights"
    folder.mkdir(parents=True)
    monkeypatch.setattr(shipped, "WEIGHTS", folder)
    monkeypatch.chdir(folder.parent)
    return folder


def write_case(folder: Path, name: str, **changes: object) -> Path:
    """Write ``folder/name.npz``: ``imgs`` counts voxels, ``gts`` has classes 1 and 2, ``spacing``.

    Args:
        folder: made if it is not there.
        name: stem of the file.
        changes: arrays to put in their place or to add; None leaves the array out.
    """
    arrays = {"imgs": _counting_image(), "gts": _two_classes(), "spacing": np.array(SPACING_XYZ)}
    arrays |= changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez_compressed(path, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    return path


def _counting_image() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)


def _two_classes() -> np.ndarray:
    """Class 1 is a box that starts at voxel (1, 2, 3), class 2 one at the far corner."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:3, 2:4, 3:8] = 1
    label[3:, 5:, 7:] = 2
    return label
