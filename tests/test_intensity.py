"""Intensities brought to 0..255: when, and to which value."""

import argparse

import numpy as np
import pytest

from utils.errors import InputError
from utils.volumes.intensity import (
    add_intensity_arguments,
    holds_hounsfield,
    looks_hounsfield,
    map_intensity,
)

SHAPE = (2, 3, 4)


def volume(*values, dtype=np.int16):
    """Fill (2, 3, 4) with these values, the last repeated."""
    flat = np.full(24, values[-1], dtype)
    flat[: len(values)] = values
    return flat.reshape(SHAPE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, bool])
def test_values_from_0_to_255_stay(dtype):
    image = volume(0, 1, 255, 100).astype(dtype)
    assert map_intensity(image).image is image


def test_a_constant_or_empty_image_stays():
    for value in (0, 7):
        image = volume(value)
        assert map_intensity(image).image is image


def test_hounsfield_units_get_the_soft_tissue_window():
    mapped = map_intensity(volume(-1000, -160, 20, 239, 240, 3000))
    assert mapped.image.dtype == np.uint8
    assert mapped.image.ravel()[:6].tolist() == [0, 0, 115, 254, 255, 255]
    assert mapped.done == "window level 40, width 400 to 0..255"


def test_a_window_goes_before_everything_else():
    for mode in ("auto", "as-is"):
        mapped = map_intensity(volume(-1350, -450, 150, dtype=np.float32), mode, (-600, 1500))
        assert mapped.image.ravel()[:3].tolist() == [0, 153, 255]
    assert map_intensity(volume(0, 50, 100, dtype=np.uint8), window=(50, 100)).image.max() == 255


def test_other_values_go_from_the_percentiles_of_what_is_above_0():
    image = np.zeros((10, 10, 11), np.uint16)
    image.ravel()[:1000] = np.arange(1, 1001)
    mapped = map_intensity(image)
    low, high = np.percentile(np.arange(1, 1001), (0.5, 99.5))
    expected = np.rint(np.clip((np.arange(1, 1001) - low) / (high - low) * 255, 0, 255))
    np.testing.assert_array_equal(mapped.image.ravel()[:1000], expected)
    assert (mapped.image.ravel()[1000:] == 0).all()
    assert "percentiles" in mapped.done


def test_an_image_below_0_keeps_its_contrast():
    mapped = map_intensity(volume(-50, -25, -1, dtype=np.float32))
    assert mapped.image.ravel()[:3].tolist() == [0, 130, 255]


def test_large_constant_values_do_not_divide_by_0():
    assert (map_intensity(volume(5000)).image == 0).all()


def test_as_is_changes_nothing():
    image = volume(-1000, 3000)
    assert map_intensity(image, "as-is").image is image


def test_the_volume_itself_is_never_changed():
    image = volume(-1000, 0, 3000)
    before = image.copy()
    map_intensity(image)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(("level", "width"), [(40, 0), (40, -1), (float("nan"), 4), (4, np.inf)])
def test_a_window_without_a_width_is_refused(level, width):
    with pytest.raises(InputError, match=r"expected a width above 0"):
        map_intensity(volume(0, 300), window=(level, width))


def test_only_values_far_below_0_look_like_hounsfield_units():
    assert looks_hounsfield(volume(-1000, 50))
    assert not looks_hounsfield(volume(-3, 3, dtype=np.float32))
    assert not looks_hounsfield(volume(0, 65000, dtype=np.uint16))


def test_any_value_below_0_makes_a_ct_hounsfield_units():
    assert holds_hounsfield(volume(-3, 50), is_ct=True)
    assert not holds_hounsfield(volume(0, 50), is_ct=True)
    assert not holds_hounsfield(volume(-1000, 50), is_ct=False)


def test_flags_take_a_negative_level_and_exclude_each_other(capsys):
    parser = argparse.ArgumentParser()
    add_intensity_arguments(parser)
    assert parser.parse_args(["--window", "-600", "1500"]).window == [-600, 1500]
    assert parser.parse_args([]).intensity == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["--window", "40", "400", "--intensity", "as-is"])
    assert "not allowed with" in capsys.readouterr().err
