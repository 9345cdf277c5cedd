"""Intensities brought to 0..255: when, and to which value."""

import argparse

import numpy as np
import pytest
from scipy import ndimage

from utils.errors import InputError
from utils.volumes.intensity import (
    MODALITIES,
    add_intensity_arguments,
    air_share,
    holds_hounsfield,
    looks_hounsfield,
    map_intensity,
    named_modality,
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
    mapped = map_intensity(volume(-1000, -160, 20, 239, 240, 3000), modality="ct")
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


GRID = (40, 48, 56)
RNG = np.random.default_rng(0)
RADIUS = np.sqrt(sum(((np.indices(GRID)[k] - GRID[k] / 2) / GRID[k]) ** 2 for k in range(3)))
BODY, ORGAN, CORNERS = RADIUS < 0.45, RADIUS < 0.2, RADIUS > 0.7
NOISE = RNG.normal(0, 12, GRID)


def ct(air=-1000.0, fat=-100.0, soft=45.0, organ=120.0, bone=700.0):
    """Return a body in air, in HU: fat at its rim, an organ in it, and a little bone."""
    image = np.where(BODY, soft, air) + NOISE
    image[BODY & (RADIUS > 0.38)] += fat - soft
    image[ORGAN] += organ - soft
    image[:, 20:22, 20:24] += bone * BODY[:, 20:22, 20:24]
    return image


def mr(peak=900.0):
    """Return a bright body before a dark background with the noise of magnitude images."""
    image = np.where(BODY, peak * (0.4 + 0.6 * ORGAN), 0) + NOISE
    return np.abs(image)


def ringing(image):
    """Return an image resampled with cubic splines, which overshoot at edges."""
    return ndimage.zoom(image, 1.3, order=3)


def z_scored(image):
    return (image - image.mean()) / image.std()


CT = {
    "whole body": ct(),
    "int16": ct().astype(np.int16),
    "float32": ct().astype(np.float32),
    "air clipped to -1024": np.maximum(ct(), -1000),
    "padding -2000": np.where(CORNERS, -2000, ct()),
    "padding -3024": np.where(CORNERS, -3024, ct()),
    "a little gas in a crop of the abdomen": np.where(RADIUS < 0.03, -900, ct(soft=30))[
        12:28, 14:34, 16:40
    ],
    "little beside the padding": np.where(np.indices(GRID)[0] != 20, -3024, ct()),
    "cone beam, noisy": ct() + RNG.normal(0, 90, GRID),
    "lung": np.where(ORGAN, -850, ct()),
    "no fat": np.where(BODY, 40.0, -1000.0) + NOISE,
    "a metal implant": np.where(RADIUS < 0.05, 3071, ct()),
}
NO_CT = {
    "MR": mr(),
    "MR with one voxel at -321": np.where(RADIUS.min() == RADIUS, -321, mr()),
    "MR with some voxels at -1000": np.where(RNG.random(GRID) < 2e-4, -1000, mr()),
    "noisy MR around 0 with one voxel at -1000": np.where(
        RADIUS.min() == RADIUS, -1000, np.where(BODY, 300, 0) + 3 * NOISE
    ),
    "air and tissue, and a tenth of the voxels far below": np.where(
        RNG.random(GRID) < 0.1, RNG.uniform(-4000, -1600, GRID), ct()
    ),
    "MR with ringing": ringing(mr()),
    "bright MR with ringing": ringing(mr(20000)),
    "z-scores": z_scored(mr()),
    "z-scores times 1000": 1000 * z_scored(mr()),
    "MR padded with -1000": np.where(RADIUS > 0.5, -1000, mr()),
    "phases": np.where(BODY, mr(), RNG.uniform(-4096, 4096, GRID)),
    "PET in SUV": mr(12) / 10,
    "PET with negative noise": mr(8000) + RNG.normal(0, 500, GRID),
    "ADC": np.where(BODY, 1200, 0) + 4 * NOISE,
    "difference of two images": RNG.normal(0, 400, GRID),
    "microscopy": mr(1) / 1000,
    "CT + 1024": np.maximum(ct() + 1024, 0),
    "CT in a window": np.clip(ct(), -160, 240),
}


@pytest.mark.parametrize("kind", CT)
def test_ct_is_known_by_its_air(kind):
    mapped = map_intensity(CT[kind])
    assert mapped.done == "window level 40, width 400 to 0..255"
    assert "ct, since" in mapped.why
    assert holds_hounsfield(CT[kind], is_ct=None)


@pytest.mark.parametrize("kind", NO_CT)
def test_other_images_are_no_ct(kind):
    assert not looks_hounsfield(NO_CT[kind])
    assert not holds_hounsfield(NO_CT[kind], is_ct=None)
    assert "window" not in map_intensity(NO_CT[kind]).done


def test_a_large_volume_is_judged_by_a_sample_of_its_voxels():
    large = np.tile(ct().astype(np.int16), (4, 4, 4))
    assert air_share(large) == pytest.approx(air_share(ct()), abs=0.01)


def test_one_voxel_does_not_change_how_an_mr_is_mapped():
    image = mr()
    one = image.copy()
    one[0, 0, 0] = -1024
    same = map_intensity(image).image == map_intensity(one).image
    assert same.mean() > 0.999


def test_what_the_user_says_goes_before_the_values():
    assert "window" not in map_intensity(ct(), modality="mr").done
    assert "window" in map_intensity(ct()[ORGAN].reshape(-1, 1, 1), modality="ct").done
    bone = np.where(RADIUS < 0.3, 400, -80) + NOISE  # a crop without air
    assert "window" in map_intensity(bone, modality="ct").done
    for modality in MODALITIES:
        assert ("window" in map_intensity(ct(), modality=modality).done) == (modality == "ct")


def test_ct_with_1024_added_gets_the_same_contrast():
    offset = map_intensity(np.maximum(ct() + 1024, 0), modality="ct")
    np.testing.assert_array_equal(offset.image, map_intensity(ct()).image)
    assert "since 1024 is added" in offset.done


def test_ct_in_other_units_is_not_windowed():
    mapped = map_intensity(np.abs(ct()) * 30, modality="ct")
    assert mapped.done.startswith("no Hounsfield units, so percentiles")
    assert mapped.warning == ""


def test_z_scores_keep_both_halves_of_the_body():
    image = z_scored(mr())
    mapped = map_intensity(image).image
    inner, outer = mapped[ORGAN], mapped[BODY & ~ORGAN]
    assert inner.min() > outer.max()
    assert outer.min() > 0
    assert "other than 0" in map_intensity(image).done


def test_a_body_that_saturates_is_warned_of():
    assert (
        "100% of the body is mapped to 255"
        in map_intensity(mr(), modality="ct", window=(40, 80)).warning
    )
    assert "mapped to 0" in map_intensity(ct(), window=(2000, 100)).warning
    assert map_intensity(ct()).warning == ""
    assert map_intensity(mr()).warning == ""
    assert map_intensity(ct(), window=(-600, 1500)).warning == ""


def test_hounsfield_units_are_kept_for_networks_trained_on_them():
    image = ct()
    mapped = map_intensity(image, "hounsfield")
    assert mapped.image is image
    assert mapped.hounsfield
    assert not map_intensity(image, "as-is").hounsfield
    assert not map_intensity(image).hounsfield


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT_AMOS_0004", "ct"),
        ("MR_CT_x", "mr"),
        ("PET_SoftTissueSarcoma", "pet"),
        ("autoPET", "pet"),
        ("US_Breast", "us"),
        ("Microscopy_urocell", "other"),
        ("patient3-ct", "ct"),
        ("case.CBCT.0001", "ct"),
        ("sub-01_FLAIR", "mr"),
        ("Dataset009_Spleen", None),
        ("case_mr_ct_registered", None),
        ("patient3_T1", None),
        ("CTRL_007", None),
        ("act", None),
        ("", None),
    ],
)
def test_names_say_a_modality_by_whole_words(name, modality):
    assert named_modality(name) == modality


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


@pytest.mark.parametrize("window", ["nan 400", "inf 400", "40 nan", "40 inf", "40 0", "40 -400"])
def test_a_window_that_is_none_is_refused_by_the_flag(window, capsys):
    parser = argparse.ArgumentParser()
    add_intensity_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--window", *window.split()])
    assert "expected two finite numbers, the second above 0" in capsys.readouterr().err
