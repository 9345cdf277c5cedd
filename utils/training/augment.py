"""How training crops are varied: where they lie, what is cheap always, what torchio adds.

Every change follows from the generator alone, so a resumed run sees the crops it would have seen.
"""

import numpy as np
import torch

from utils.volumes.geometry import CropGrid, CropRule

#: A zoomed crop shows its target this large: the longest side as a share of the crop's edge.
FILL = (0.25, 0.9)


def place(row: dict, rule: CropRule, rng: np.random.Generator, zoom_share: float) -> CropGrid:
    """Place a crop at random about a target, as a crop placed from prompts may lie.

    In ``zoom_share`` of the crops the spacing makes the target fill a quarter to nine tenths of the
    crop, evenly on a log scale, though never finer than a quarter of the image's finest voxel; in
    the others it is ``rule``'s. Then the crop is shifted evenly, by up to a quarter of its edge, as
    far as the target stays inside; of a target larger than the crop, another part comes into view.
    Last, it is read backwards along each axis half of the time.

    Args:
        row: of a `CropIndex`.
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
    return grid.flipped([axis for axis in range(3) if rng.random() < 0.5])


def contrast(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Scale and offset a normalised image, in place."""
    return image.mul_(rng.uniform(0.8, 1.25)).add_(rng.uniform(-0.2, 0.2))


def distort(
    image: torch.Tensor, label: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate a little, and vary bias field, gamma and noise with torchio (arXiv:2003.04696).

    Args:
        image, label: (1, S, S, S).
    """
    import torchio as tio  # heavy, and absent on machines that only train on cached crops

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
    with torch.random.fork_rng(devices=[]):  # torchio draws from torch's global generator
        torch.manual_seed(int(rng.integers(2**31)))
        varied = transform(subject)
    turned = varied["label"].data.bool()
    if not turned.any():
        return image, label
    return varied["image"].data, turned
