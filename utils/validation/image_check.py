"""The image check: the clicks of the own image, replayed unchanged on wrong images.

Clicks that are simulated anew tell a network where its mask is wrong, so even on noise they carry
information about the target. Replayed clicks do not. What a network scores with its own image
beyond what it scores with noise, it owes to the image.

The wrong images replace the crop that the network gets, after normalisation. Everything else stays:
truth, crop, click coordinates, and the scores on the volume's grid.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from utils.cases.prepared import Case, read_case
from utils.prompts.kinds import Click
from utils.volumes.crops import Crop, cut
from utils.volumes.geometry import CropRule
from utils.volumes.labels import InstanceRule

OWN, ANOTHER, SMOOTHED, SHUFFLED, NOISE, ADAPTIVE = IMAGES = (
    "own",
    "another case",
    "own, smoothed",
    "own, shuffled",
    "noise",
    "noise, new clicks",
)

#: What each of them is, as the report says it.
EXPLAINED = (
    "Another case: the crop about the target of the next case of the data set. Smoothed: by a "
    "Gaussian whose standard deviation is 6 mm. Shuffled: voxels permuted in blocks of 8³. Noise: "
    "Gaussian. All get the clicks of the own image, but for new clicks, which are simulated anew."
)

SMOOTHING_MM = 6.0
_BLOCK = 8  # voxels along an edge

#: Returns the next click for a mask (D, H, W); None where there is none.
NextClick = Callable[[np.ndarray], Click | None]


class ImageCheck(NamedTuple):
    """What the check of a case needs beside the case."""

    other: Case | None  # whose image replaces the own one; None where the run has no other case


def other_cases(cases: Sequence[Case]) -> Iterator[Case | None]:
    """Yield for each case the other one whose image replaces its own.

    That is the next case of the data set with another image, and the first one follows on the last;
    without one, the next case of any data set. It depends on the list of cases alone.
    """
    count = len(cases)
    for number, case in enumerate(cases):
        following = (cases[(number + step) % count] for step in range(1, count))
        others = [other for other in following if other.case_id != case.case_id]
        same = (other for other in others if other.dataset == case.dataset)
        yield next(same, others[0] if others else None)


def other_image(other: Case, rule: CropRule) -> np.ndarray:
    """Return the crop (S, S, S) about the largest target of another case.

    Raises:
        InputError: the case cannot be read.
    """
    image, label = read_case(other)
    (largest,) = InstanceRule(most=1, min_voxels=1).values_of(label.array)
    return cut(image.array, label.array == largest, image.affine, rule, other.is_ct).image


def wrong_images(crop: Crop, spacing_mm: float, name: str) -> dict[str, np.ndarray]:
    """Return wrong images (S, S, S) float32 by their names, all but another case's.

    Args:
        crop: of the own image.
        spacing_mm: of its voxels.
        name: of the target; it decides the noise and the permutation.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(crop.image.shape, dtype=np.float32)
    sigma = SMOOTHING_MM / spacing_mm
    return {
        SMOOTHED: ndimage.gaussian_filter(crop.image, sigma, mode="nearest"),
        SHUFFLED: shuffled(crop.image, rng),
        NOISE: (noise - noise.mean()) / noise.std(),
    }


def shuffled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute the voxels of (S, S, S) inside each block of 8³, or of the next smaller edge.

    The edge of the blocks divides S.
    """
    size = len(image)
    edge = max(n for n in range(1, _BLOCK + 1) if size % n == 0)
    count = size // edge
    blocks = image.reshape(count, edge, count, edge, count, edge).transpose(0, 2, 4, 1, 3, 5)
    mixed = rng.permuted(blocks.reshape(count**3, edge**3), axis=1)
    mixed = mixed.reshape(count, count, count, edge, edge, edge).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(mixed.reshape(image.shape))


def replay(clicks: Sequence[Click]) -> NextClick:
    """Return a function that gives these clicks in turn, whatever the mask; then None."""
    remaining = iter(clicks)
    return lambda mask: next(remaining, None)


def image_share(own: float, noise: float, ball: float) -> float | None:
    """Return (own - noise) / (own - ball): 0 for a network that does not look at its image.

    Args:
        own, noise: mean score with the own image and with noise, after the same clicks.
        ball: mean score of the ball of the best fixed radius about the first click.

    Returns:
        None where the network is no better than the ball.
    """
    return (own - noise) / (own - ball) if own > ball else None
