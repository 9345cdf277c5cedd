"""Augmentation of training crops: where a crop lies, its contrast, and torchio's distortions.

Every random choice comes from the generator that the caller passes in. A resumed run therefore gets
the same crops as an uninterrupted one.
"""

import numpy as np
import torch

from utils.volumes.geometry import CropGrid, CropRule

#: Size of the target in a zoomed crop: its longest side as a share of the crop's edge.
FILL = (0.25, 0.9)


def place(
    row: dict,
    rule: CropRule,
    rng: np.random.Generator,
    zoom_share: float,
    flip_share: float = 0.5,
) -> CropGrid:
    """Place a crop at random around a target; the result varies like crops placed from prompts.

    1. Spacing: in ``zoom_share`` of the crops the target's longest side fills a quarter to nine
       tenths of the edge, drawn evenly on a log scale. The spacing is never finer than a quarter of
       the image's finest voxel. The other crops have the spacing of ``rule``.
    2. Shift: drawn evenly, up to a quarter of the edge, and so that the target stays inside. A crop
       smaller than its target is shifted within the target instead.
    3. Flip: along each axis, in ``flip_share`` of the crops.

    Args:
        row: a row of `CropIndex.samples`; no image is read.
        rng: draws spacing, shift and flips.
    """
    shape, voxel_mm = tuple(row["shape"]), np.array(row["voxel_mm"])
    start, stop = np.array(row["start"]), np.array(row["stop"])
    extent_mm = (stop - start) * voxel_mm
    spacing_mm = rule.spacing_for(shape, tuple(voxel_mm))
    if rng.random() < zoom_share:
        fill = np.exp(rng.uniform(*np.log(FILL)))
        spacing_mm = max(extent_mm.max() / (fill * rule.size), voxel_mm.min() / 4)
    edge_mm = spacing_mm * rule.size
    reach_mm = np.minimum(np.abs(edge_mm - extent_mm) / 2, edge_mm / 4)
    centre = (start + stop - 1) / 2 + rng.uniform(-1, 1, 3) * reach_mm / voxel_mm
    grid = CropGrid.in_frame(tuple(centre), shape, tuple(voxel_mm), spacing_mm, rule.size)
    return grid.flipped([axis for axis in range(3) if rng.random() < flip_share])


def contrast(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Scale a normalised image by 0.8 to 1.25 and shift it by up to 0.2, in place."""
    return image.mul_(rng.uniform(0.8, 1.25)).add_(rng.uniform(-0.2, 0.2))


def distort(
    image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate by up to 15 degrees, vary bias field, gamma and noise: torchio (arXiv:2003.04696).

    Args:
        image: (1, S, S, S) float.
        label: (1, S, S, S) bool; if a rotation would empty it, both are returned unchanged.
    """
    import torchio as tio  # slow to import, and machines that train on cached crops may lack it

    transform = tio.Compose(
        [
            tio.RandomAffine(scales=0, degrees=15, p=0.5),
            tio.RandomBiasField(coefficients=0.3, p=0.3),
            tio.RandomGamma(log_gamma=0.2, p=0.3),
            tio.RandomNoise(std=(0, 0.1), p=0.3),
        ]
    )
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label.to(torch.uint8))
    )
    with torch.random.fork_rng(devices=[]):  # torchio uses torch's global generator
        torch.manual_seed(int(rng.integers(2**31)))
        varied = transform(subject)
    turned = varied["label"].data.bool()
    if not turned.any():
        return image, label
    return varied["image"].data, turned
