"""How training crops are varied: what is cheap always, what torchio adds on request.

Every change follows from the generator alone, so a resumed run sees the crops it would have seen.
"""

import numpy as np
import torch


def move(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and shift one crop (S, S, S) by up to an eighth of its edge.

    A shift that would lose target voxels is left out.
    """
    for axis in range(3):
        if rng.random() < 0.5:
            image, label = np.flip(image, axis), np.flip(label, axis)
    shift = rng.integers(-label.shape[0] // 8, label.shape[0] // 8 + 1, size=3)
    moved = _shifted(label, shift, False)
    if np.count_nonzero(moved) == np.count_nonzero(label):
        # What comes in is what most of the border shows, not an extreme.
        image, label = _shifted(image, shift, np.median(image[0])), moved
    return image, label


def contrast(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Scale and offset a normalised image."""
    return image * rng.uniform(0.8, 1.25) + rng.uniform(-0.2, 0.2)


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


def _shifted(array: np.ndarray, shift: np.ndarray, fill: float) -> np.ndarray:
    """Move the content by whole voxels; what comes in from outside is ``fill``."""
    out = np.full_like(array, fill)
    into = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, array.shape, strict=True))
    source = tuple(
        slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, array.shape, strict=True)
    )
    out[into] = array[source]
    return out
