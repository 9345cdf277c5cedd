"""Generated volumes: each has a target that can be seen, of many sizes and contrasts."""

import numpy as np
import pytest

from utils.training.generated import generated_volume
from utils.training.regions import LEAST, MOST
from utils.volumes.components import connected_components

SIZE, COUNT = 64, 30


@pytest.fixture(scope="module")
def volumes():
    return [generated_volume(SIZE, np.random.default_rng([3, n])) for n in range(COUNT)]


def ring(mask):
    """Return the voxels around a mask, at a distance of two to three voxels."""
    from scipy import ndimage

    near, far = (ndimage.binary_dilation(mask, iterations=n) for n in (1, 4))
    return far & ~near


def test_a_volume_is_a_normalised_crop_with_a_target_of_one_piece(volumes):
    for image, mask in volumes:
        assert image.shape == mask.shape == (SIZE,) * 3
        assert image.dtype == np.float32
        assert mask.dtype == bool
        assert np.isfinite(image).all()
        body = image[image > image.min()]
        assert abs(body.mean()) < 0.1
        assert body.std() == pytest.approx(1, abs=0.1)
        assert 0.8 * LEAST <= mask.mean() <= 1.1 * MOST
        assert connected_components(mask)[1] == 1


def test_a_target_can_be_told_from_what_is_around_it(volumes):
    for image, mask in volumes:
        around = image[ring(mask)]
        error = image[mask].std() / mask.sum() ** 0.5 + around.std() / around.size**0.5
        assert abs(image[mask].mean() - around.mean()) > 2 * error


def test_contrasts_reach_from_low_to_high_and_in_both_directions(volumes):
    contrasts = [
        (image[mask].mean() - image[ring(mask)].mean()) / image[ring(mask)].std()
        for image, mask in volumes
    ]
    assert min(np.abs(contrasts)) < 0.7
    assert max(np.abs(contrasts)) > 2.5
    assert sum(c > 0 for c in contrasts) >= COUNT // 5
    assert sum(c < 0 for c in contrasts) >= COUNT // 5


def test_sizes_differ(volumes):
    shares = sorted(mask.mean() for _, mask in volumes)
    assert shares[-3] > 10 * shares[2]


def test_few_targets_are_found_by_a_ball(volumes):
    from scipy import ndimage

    def best_ball(mask):
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
        centre = np.unravel_index(depth.argmax(), mask.shape)
        squares = sum((a - c) ** 2 for a, c in zip(np.ogrid[:SIZE, :SIZE, :SIZE], centre))  # noqa: B905
        return max(
            2 * (mask & (squares < r * r)).sum() / (mask.sum() + (squares < r * r).sum())
            for r in range(2, 40)
        )

    assert np.mean([best_ball(mask) > 0.75 for _, mask in volumes]) < 0.25


def test_a_volume_depends_on_its_generator_alone(volumes):
    image, mask = generated_volume(SIZE, np.random.default_rng([3, 0]))
    assert (image == volumes[0][0]).all()
    assert (mask == volumes[0][1]).all()
    assert (image != volumes[1][0]).any()


def test_small_volumes_are_made_too():
    image, mask = generated_volume(32, np.random.default_rng(0))
    assert image.shape == (32, 32, 32)
    assert mask.any()
