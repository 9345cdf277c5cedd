"""Check arguments of the predictor; a message says what to give instead."""

from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch

from segment_anything import Sam3D
from utils.errors import InputError
from utils.files.npz import SPACING_MM
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import MaskPrompt, PromptError, short_repr
from utils.volumes.geometry import CropRule, affine_from_spacing, spacing_zyx
from utils.volumes.labels import MAX_LABEL
from utils.volumes.values import require_network_input

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
#: The least volume that unit vectors along the three axes of an affine span; 1 if orthogonal.
LEAST_VOLUME = 1e-4


def require_parts(
    model: Sam3D,
    rule: CropRule,
    device: torch.device,
    precision: torch.dtype,
    options: PredictorOptions,
) -> None:
    """Raise `InputError` for parts of a predictor that are of a wrong type or do not fit."""
    kinds = {
        "model": (model, Sam3D, "as open_network of utils/run/network.py returns it"),
        "rule": (rule, CropRule, "as open_network of utils/run/network.py returns it"),
        "device": (device, torch.device, "such as torch.device('cpu')"),
        "options": (options, PredictorOptions, "of utils/prediction/session.py"),
    }
    for name, (value, kind, which) in kinds.items():
        if not isinstance(value, kind):
            raise InputError(
                f"{name} is a {type(value).__name__}. Expected a {kind.__name__}: give one, "
                f"{which}."
            )
    if precision not in PRECISIONS:
        raise InputError(
            f"precision is {precision!r}. Expected one of {', '.join(map(str, PRECISIONS))}: give "
            "one of them."
        )


def require_image(volume: np.ndarray) -> None:
    """Raise `InputError` unless an image is (D, H, W), not empty, of usable real numbers."""
    if not isinstance(volume, np.ndarray) or isinstance(volume, np.ma.MaskedArray):
        raise InputError(
            f"the image is a {type(volume).__name__}. Expected a NumPy array (D, H, W) without a "
            "mask: convert it."
        )
    if volume.ndim != 3 or 0 in volume.shape:
        raise InputError(
            f"the image has shape {volume.shape}. Expected (D, H, W), none of them 0: give one "
            "channel of one 3-D image."
        )
    require_network_input(volume, "the image")


def checked_affine(spacing_xyz: Sequence[float] | None, affine: np.ndarray | None) -> np.ndarray:
    """Return the affine (4, 4) float64 of an image, from its spacing or a copy of its affine.

    Raises:
        InputError: both or neither are given, or one that cannot be used.
    """
    if (spacing_xyz is None) == (affine is None):
        found = "neither spacing_xyz nor" if affine is None else "both spacing_xyz and"
        raise InputError(
            f"the image comes with {found} affine. Expected one of the two: give exactly one."
        )
    if affine is None:
        return affine_from_spacing(_checked_spacing(spacing_xyz))
    try:
        given = np.asarray(affine)
    except ValueError:  # rows of different lengths
        given = np.empty(0)
    good = given.dtype.kind in "iuf" and given.shape == (4, 4) and np.isfinite(given).all()
    if not good or not _is_usable(given.astype(float)):
        raise InputError(
            f"the image's affine is {short_repr(affine)}. Expected (4, 4) finite numbers with "
            f"three independent axes, voxels of {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm, and "
            "the last row 0, 0, 0, 1: correct it."
        )
    return given.astype(float)


def mask_prompt(mask: np.ndarray, shape: tuple[int, int, int]) -> MaskPrompt:
    """Return a mask to start from, of the image's shape.

    Raises:
        PromptError: it is no mask, is empty, or is of another shape.
    """
    is_mask = isinstance(mask, np.ndarray) and mask.dtype.kind in "buif"
    if is_mask and (mask.shape != shape or not mask.any()):
        raise PromptError(
            f"the mask has shape {mask.shape} and {np.count_nonzero(mask)} voxels. Expected the "
            f"image's shape {shape} and at least one voxel: resample it to the image's grid."
        )
    return MaskPrompt(mask)


def checked_target(target: int) -> int:
    """Return a target's id as an int.

    Raises:
        PromptError: it is not a whole number from 1 to 65535.
    """
    good = isinstance(target, Real) and not isinstance(target, (bool, np.bool_))
    if not good or not 0 < target <= MAX_LABEL or target != int(target):
        raise PromptError(
            f"target {short_repr(target)}: expected a whole number from 1 to {MAX_LABEL}; 0 is "
            "background. Give another id."
        )
    return int(target)


def _checked_spacing(spacing_xyz: Sequence[float]) -> np.ndarray:
    try:
        spacing = tuple(spacing_xyz)
    except TypeError:
        spacing = ()
    numbers = all(isinstance(mm, Real) and not isinstance(mm, (bool, np.bool_)) for mm in spacing)
    low, high = SPACING_MM
    if len(spacing) != 3 or not numbers or not all(low <= mm <= high for mm in spacing):
        raise InputError(
            f"the image's spacing is {short_repr(spacing_xyz)}. Expected three numbers, the "
            f"voxel size (x, y, z) in mm, from {low:g} to {high:g}: give the scanner's values."
        )
    return np.array(spacing, float)


def _is_usable(affine: np.ndarray) -> bool:
    """Tell whether a finite (4, 4) affine has three independent axes of sensible lengths."""
    low, high = SPACING_MM
    with np.errstate(over="ignore"):
        sizes = np.array(spacing_zyx(affine))
    if not ((sizes >= low) & (sizes <= high)).all():
        return False
    axes = affine[:3, :3] / sizes[::-1]
    return abs(np.linalg.det(axes)) >= LEAST_VOLUME and affine[3].tolist() == [0, 0, 0, 1]
