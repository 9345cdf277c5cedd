"""Regions cut from the image: their size and form, and that they end where the image has edges."""

import numpy as np
import pytest

from utils.training.cell_masks import (
    doubled,
    interpolated,
)
from utils.training.regions import (
    LEAST,
    LEAST_PART,
    MOST,
    explained_by_ball,
    region_target,
)
from utils.volumes.components import connected_components

SIZE = 64
NO_LABEL = np.zeros((SIZE,) * 3, bool)


def ellipsoid(centre, radii):
    z, y, x = np.ogrid[:SIZE, :SIZE, :SIZE]
    squares = [((axis - c) / r) ** 2 for axis, c, r in zip((z, y, x), centre, radii, strict=True)]
    return sum(squares) < 1


BENT = ellipsoid((28, 26, 30), (22, 10, 9)) | ellipsoid((40, 36, 30), (9, 20, 9))


def phantom(inside=1.0, outside=0.0, noise=0.05):
    """Return an image of a bent structure in a background, with padding, which is darker."""
    image = np.where(BENT, inside, outside).astype(np.float32)
    image += noise * np.random.default_rng(0).standard_normal(image.shape, np.float32)
    image[:4] = -3
    return image


def regions(image, label=NO_LABEL, count=20):
    made = [region_target(image, label, np.random.default_rng([5, n])) for n in range(count)]
    return [region for region in made if region is not None]


def dsc(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize(("inside", "outside"), [(1.0, 0.0), (-1.0, 0.5)])
def test_a_region_follows_the_edge_of_the_image(inside, outside):
    image, whole = (
        np.kron(part, np.ones((2, 2, 2), part.dtype)) for part in (phantom(inside, outside), BENT)
    )
    made = [region_target(image, np.zeros_like(whole), np.random.default_rng(n)) for n in range(10)]
    found = [region for region in made if region is not None]
    assert len(found) >= 5
    assert np.mean([dsc(region, whole) > 0.95 for region in found]) >= 0.8


def test_an_image_without_edges_gives_no_region():
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((2 * SIZE,) * 3, np.float32)
    no_label = np.zeros(noise.shape, bool)
    assert all(region_target(noise, no_label, np.random.default_rng(n)) is None for n in range(6))
    assert regions(np.zeros((SIZE,) * 3, np.float32)) == []


def test_a_region_is_one_piece_of_a_useful_size():
    rng = np.random.default_rng(2)
    steps = rng.standard_normal((8, 8, 8)).astype(np.float32)
    found = regions(np.kron(steps, np.ones((8, 8, 8), np.float32)), count=60)
    assert len(found) >= 20
    for region in found:
        assert region.shape == (SIZE,) * 3
        assert region.dtype == bool
        assert 0.9 * LEAST <= region.mean() <= 1.1 * MOST  # of its cells: LEAST to MOST
        assert connected_components(region)[1] == 1


def test_padding_is_no_part_of_a_region():
    assert not any(region[:3].any() for region in regions(phantom(), BENT, count=30))


def test_the_same_random_numbers_give_the_same_region():
    image = phantom()
    first, again, other = (
        [region_target(image, BENT, np.random.default_rng([s, n])) for n in range(4)]
        for s in (0, 0, 1)
    )
    assert all(a is b is None or (a == b).all() for a, b in zip(first, again, strict=True))
    assert any(a is not b and (a is None or b is None or (a != b).any())
               for a, b in zip(first, other, strict=True))  # fmt: skip


def test_a_label_is_kept_joined_or_divided():
    label = ellipsoid((40, 36, 30), (9, 20, 9))  # one arm of the structure
    image = phantom(noise=0.02)
    image[label] += 0.6  # so that both arms are regions of their own
    image[label & (np.arange(SIZE) > 30)] += 0.6  # and the label has two parts
    image, label = (np.kron(part, np.ones((2, 2, 2), part.dtype)) for part in (image, label))
    kinds = {"without": 0, "united": 0, "alone": 0}
    for region in regions(image, label, count=40):
        if not (region & ~label).any():
            kinds["without"] += 1
            assert LEAST_PART / 1.5 < region.sum() / label.sum() < 1
        elif not (label & ~region).any():
            kinds["united"] += 1
            assert region.sum() > label.sum() / (1 - LEAST_PART / 1.5)
        else:
            kinds["alone"] += 1
    assert min(kinds.values()) >= 3


def test_a_ball_is_told_from_other_forms():
    cells = np.zeros((32,) * 3, bool)
    ball = sum((axis - 15) ** 2 for axis in np.ogrid[:32, :32, :32]) < 81
    assert explained_by_ball(cells | ball)
    tube = cells.copy()
    tube[2:30, 14:18, 14:18] = True
    assert not explained_by_ball(tube)


def test_a_bright_ball_is_no_target():
    ball = ellipsoid((30, 30, 34), (14, 14, 14))
    image = np.where(ball, np.float32(1), np.float32(0))
    image[:4] = -3
    assert not any(dsc(region, ball) > 0.9 for region in regions(image))


def test_upsampling_is_linear_and_keeps_what_is_connected():
    cells = np.random.default_rng(0).random((6, 8, 10))
    places = np.clip((np.arange(16) - 0.5) / 2, 0, 7)
    along = np.array([np.interp(places, np.arange(8), cells[2, :, 5])])
    spread = np.broadcast_to(cells[2, :, 5][None, :, None], (6, 8, 10))
    np.testing.assert_allclose(interpolated(np.ascontiguousarray(spread))[3, :, 4] / 64, along[0])

    stairs = np.zeros((8, 8, 8), bool)
    for n in range(1, 6):
        stairs[n, n, 2:4] = stairs[n, n + 1, 2:4] = True
    assert connected_components(doubled(stairs))[1] == 1
