"""The network's input: a cube of the volume in the network's frame, normalised."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError
from utils.volumes.geometry import CropGrid, CropRule, Triple, bounding_box_centre
from utils.volumes.intensity import holds_hounsfield
from utils.volumes.values import NETWORK_MOST

#: Hounsfield range that SAM-Med3D was trained on.
HU_RANGE = (-1000, 1000)
#: Images that stay below this magnitude, such as some maps in SI units, are scaled to 1 at first.
TINY = 1e-3


@dataclass(frozen=True)
class Crop:
    """One network input with its truth."""

    image: np.ndarray  # (S, S, S) float32 in the network's frame, normalised
    label: np.ndarray  # (S, S, S) bool
    grid: CropGrid  # maps the crop back to the volume
    coverage: float  # share of the target's voxels that lie in the cube


def normalise(image: np.ndarray, covered: tuple[slice, ...] = ()) -> np.ndarray:
    """Z-normalise a crop by the mean and standard deviation of its voxels > 0, as SAM-Med3D does.

    Args:
        image: (S, S, S).
        covered: the box of the crop that lies on the volume; the padding around it does not count.

    Raises:
        InputError: the values are not finite, or too large to be normalised in float32.
    """
    given = image
    with np.errstate(over="ignore", invalid="ignore"):  # checked at the end
        top = max(float(image.max()), -float(image.min()))
        if 0 < top < TINY:  # the squares of such values are too small for float32
            image = image / top
        image = image.astype(np.float32)
        known = image[covered] if image[covered].size else image
        body = known[known > 0]
        if body.size == 0:
            body = known
        deviation = body.std()
        image -= body.mean()
        # A constant body has no deviation; padding divided by nearly 0 would overflow float16.
        image /= deviation if deviation > 1e-6 else 1.0
    if not (np.isfinite(deviation) and np.isfinite(image).all()):
        raise InputError(
            f"the image's values reach {np.abs(given).max():g} in magnitude and cannot be "
            f"normalised in float32. Expected finite values of at most {NETWORK_MOST:g}: clip or "
            "window the image first."
        )
    return image


def cut(
    image: np.ndarray, target: np.ndarray, affine: np.ndarray, rule: CropRule, is_ct: bool | None
) -> Crop:
    """Cut the cube around the middle of ``target`` out of ``image``.

    Args:
        image: (D, H, W), any dtype.
        target: (D, H, W) bool, not empty.
        affine: (4, 4), of both.
        rule: size and spacing of the cube.
        is_ct: see `holds_hounsfield`; Hounsfield units are clamped to [-1000, 1000].
    """
    grid = grid_on_target(
        lambda centre: CropGrid.around(centre, target.shape, affine, rule),
        target,
        bounding_box_centre(target),
    )
    return cut_at(grid, image, target, hounsfield=holds_hounsfield(image, is_ct))


def cut_at(
    grid: CropGrid,
    image: np.ndarray,
    target: np.ndarray,
    *,
    target_start: tuple[int, int, int] = (0, 0, 0),
    hounsfield: bool = False,
) -> Crop:
    """Cut the cube ``grid`` out of ``image`` and ``target``.

    If a target is so small that resampling removes it, each of its voxels sets the nearest crop
    voxel instead. So the label is never empty where the cube holds any of the target.

    Args:
        image: (D, H, W), the whole volume; may be memory-mapped.
        target: bool; may be a part of the volume, whose first voxel is ``target_start``. Around
            the target it must then have a margin of one voxel, except at the volume's own edge.
        hounsfield: clamp the image to [-1000, 1000].
    """
    on_target = grid.on_part(target_start, target.shape)
    label = on_target.crop(target) >= 0.5
    box = on_target.covered_box()
    reached = target[box]
    if not label.any():
        start = [side.start for side in box]
        points = np.array([on_target.to_crop(v) for v in np.argwhere(reached) + start])
        label[tuple(np.clip(np.rint(points).astype(int), 0, grid.size - 1).reshape(-1, 3).T)] = True
    values = cut_image(grid, image, hounsfield=hounsfield)
    return Crop(values, label, grid, float(reached.sum() / target.sum()))


def cut_image(grid: CropGrid, image: np.ndarray, *, hounsfield: bool) -> np.ndarray:
    """Cut the cube ``grid`` out of ``image``, normalised: (S, S, S) float32; see `cut_at`."""
    values = grid.crop(image)
    if hounsfield:
        values = np.clip(values, *HU_RANGE)
    return normalise(values, grid.covered_crop())


def grid_on_target(
    place: Callable[[Triple], CropGrid],
    target: np.ndarray,
    middle: Triple,
    target_start: tuple[int, int, int] = (0, 0, 0),
) -> CropGrid:
    """Place a cube around the middle of a target.

    A hollow target may leave the middle of its box empty, so that the cube would miss it. The cube
    is then centred on the target's voxel nearest to the middle.

    Args:
        place: returns the cube around a voxel of the volume.
        target: bool; may be a part of the volume, whose first voxel is ``target_start``.
        middle: of the target's box, in voxels of the volume.
    """
    grid = place(middle)
    if target[grid.on_part(target_start, target.shape).covered_box()].any():
        return grid
    voxels = np.argwhere(target) + target_start
    nearest = voxels[np.argmin(((voxels - middle) ** 2).sum(axis=1))]
    return place(tuple(map(float, nearest)))
