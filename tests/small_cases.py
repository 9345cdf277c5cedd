"""Images small enough for tests: bright balls, alone and in prepared folders."""

from pathlib import Path

import numpy as np

from utils.files.nifti import write_nifti
from utils.volumes.geometry import affine_from_spacing


def ball(shape=(20, 24, 28), centre=(9, 12, 15), radius=6.0) -> np.ndarray:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2


def write_prepared(tree: Path, cases: int = 3, organ: str = "liver", dataset: str = "CT_A") -> Path:
    """Write ``tree/organ/dataset`` with bright balls in noise; return that folder."""
    folder = tree / organ / dataset
    affine = affine_from_spacing((1.0, 1.1, 1.2))
    for number in range(cases):
        rng = np.random.default_rng(number)
        label = ball(centre=(9 + number, 12, 15 - number))
        image = 60 + 90 * label + rng.integers(0, 30, label.shape)
        write_nifti(
            folder / "imagesTr" / f"{dataset}_{number}.nii.gz", image.astype(np.uint8), affine
        )
        write_nifti(
            folder / "labelsTr" / f"{dataset}_{number}.nii.gz", label.astype(np.uint8), affine
        )
    return folder
