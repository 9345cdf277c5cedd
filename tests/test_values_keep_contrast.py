"""Odd but valid intensities reach the network with their contrast, or a warning says otherwise."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.volumes.crops import normalise
from utils.volumes.intensity import map_intensity
from utils.volumes.values import require_network_input

SHAPE = (16, 20, 20)
PLACES = np.indices(SHAPE)
BODY = (PLACES[1] - 10) ** 2 + (PLACES[2] - 10) ** 2 < 64
ORGAN = (PLACES[1] - 10) ** 2 + (PLACES[2] - 10) ** 2 < 9


def mr():
    noise = np.random.default_rng(0)
    image = np.abs(noise.normal(0, 6, SHAPE))
    image[BODY] = noise.normal(300, 60, np.count_nonzero(BODY)).clip(1)
    image[ORGAN] = 600
    return image


def ct():
    noise = np.random.default_rng(0)
    image = np.full(SHAPE, -1000.0)
    fat = noise.random(SHAPE) < 0.4
    image[BODY] = np.where(fat, noise.normal(-100, 15, SHAPE), noise.normal(40, 15, SHAPE))[BODY]
    image[ORGAN] = 120
    return image


@pytest.mark.parametrize("factor", [1e-7, 1e-12, 1e-28])
def test_small_values_are_normalised_like_large_ones(factor):
    image = mr().astype(np.float32)
    small = normalise(image * np.float32(factor))
    np.testing.assert_allclose(small, normalise(image), atol=1e-4)


def test_an_image_too_small_for_float32_is_refused():
    with pytest.raises(InputError, match=r"no value above 6e-38 in magnitude.*multiply"):
        require_network_input(mr() * 1e-40, "image.nii.gz")
    require_network_input(mr() * 1e-28, "image.nii.gz")
    require_network_input(np.zeros(SHAPE), "image.nii.gz")


@pytest.mark.parametrize("scaled", [lambda x: (x - x.mean()) / x.std(), lambda x: x / 1000])
def test_ct_as_scores_or_shares_is_not_windowed(scaled):
    mapped = map_intensity(scaled(ct()), modality="ct")
    assert mapped.done.startswith("no Hounsfield units, so percentiles")
    assert mapped.image[ORGAN].min() - np.median(mapped.image[BODY]) > 50


@pytest.mark.parametrize("padding", [-1024, -2000, -32768])
@pytest.mark.parametrize("modality", [None, "mr"])
def test_padding_does_not_take_the_contrast_of_an_mr(padding, modality):
    image = mr()
    image[:4] = padding
    padded, whole = map_intensity(image, modality=modality).image, map_intensity(mr()).image
    assert not padded[:4].any()
    assert np.abs(padded[4:].astype(int) - whole[4:]).max() <= 3


def test_padding_of_an_image_with_both_signs_is_no_part_of_its_range():
    image = (mr() - 300) / 100
    image[:4] = -1000
    mapped = map_intensity(image, modality="mr").image
    assert mapped[5:][ORGAN[5:]].min() - np.median(mapped[5:][BODY[5:]]) > 50


def test_a_body_of_a_few_grey_values_is_warned_of():
    mapped = map_intensity(ct(), window=(40, 1e6))
    assert "hardly any contrast" in mapped.warning
    assert map_intensity(ct(), window=(40, 2000)).warning == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_image_of_one_value_is_warned_of(dtype):
    assert "all voxels have the value 7" in map_intensity(np.full(SHAPE, 7, dtype)).warning
    assert map_intensity(PLACES[1].astype(dtype)).warning == ""


def test_a_body_of_one_value_stands_out_from_the_background():
    mapped = map_intensity(np.where(BODY, 1000, 0).astype(np.int16))
    assert mapped.image[BODY].min() == 255
    assert mapped.image[~BODY].max() == 0


def test_a_window_far_above_all_values_is_warned_of():
    assert "100% of the body is mapped to 0" in map_intensity(mr() - 3000, modality="ct").warning
