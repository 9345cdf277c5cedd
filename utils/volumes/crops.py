"""The network's input: a cube of the volume in the network's frame, normalised (no torch)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.volumes.geometry import CropGrid, CropRule, Triple, bounding_box_centre
from utils.volumes.intensity import holds_hounsfield

#: Hounsfield range in which SAM-Med3D was trained.
HU_RANGE = (-1000, 1000)


@dataclass(frozen=True)
class Crop:
    """One network input with its truth.

    ``image`` (S, S, S) float32, normalised; ``label`` (S, S, S) bool; ``grid`` leads back to the
    volume; ``coverage`` is the share of the target's voxels that the cube contains.
    """

    image: np.ndarray
    label: np.ndarray
    grid: CropGrid
    coverage: float


def normalise(image: np.ndarray, covered: tuple[slice, ...] = ()) -> np.ndarray:
    """Z-normalise a crop by the mean and standard deviation of its voxels > 0, as SAM-Med3D.

    Args:
        covered: the box of the crop that lies on the volume; the padding around it does not count.
    """
    image = image.astype(np.float32)
    known = image[covered] if image[covered].size else image
    body = known[known > 0]
    if body.size == 0:
        body = known
    deviation = body.std()
    image -= body.mean()
    # A constant body has none; dividing padding by next to nothing would overflow float16.
    image /= deviation if deviation > 1e-6 else 1.0
    return image


def cut(
    image: np.ndarray, target: np.ndarray, affine: np.ndarray, rule: CropRule, is_ct: bool
) -> Crop:
    """Cut the cube about the middle of ``target`` (D, H, W) bool out of ``image`` (D, H, W).

    CT is clamped where values are HU.
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

    A target too small for the crop's voxels keeps one voxel for each of its own, so that no label
    is empty as long as the cube holds any of the target.

    Args:
        target: bool; may be a part of the volume, whose first voxel is ``target_start``. The part
            then has a margin of a voxel about the target, unless it ends where the volume ends.
        hounsfield: clamp to [-1000, 1000].
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
    """Place a cube about the middle of a target.

    Where the target leaves the middle of its own box empty, so that the cube would miss it, the
    cube sits on its voxel nearest to the middle.

    Args:
        place: returns the cube about a voxel of the volume.
        target: bool; may be a part of the volume, whose first voxel is ``target_start``.
        middle: of the target's box, in voxels of the volume.
    """
    grid = place(middle)
    if target[grid.on_part(target_start, target.shape).covered_box()].any():
        return grid
    voxels = np.argwhere(target) + target_start
    nearest = voxels[np.argmin(((voxels - middle) ** 2).sum(axis=1))]
    return place(tuple(map(float, nearest)))
