import numpy as np
import pytest
from small_cases import ball
from small_networks import RULE

from utils.volumes.crops import cut, normalise
from utils.volumes.geometry import CropRule, affine_from_spacing


def test_normalise_takes_mean_and_deviation_over_positive_voxels():
    image = np.array([[[0, 0, 2, 4, 6]]])
    deviation = np.std([2, 4, 6])
    np.testing.assert_allclose(normalise(image), (image - 4) / deviation, rtol=1e-6)


def test_ct_is_clamped_only_where_values_are_hounsfield():
    target = ball()
    affine = affine_from_spacing((1, 1, 1))
    image = np.where(target, 3000, 10)
    hounsfield = image.copy()
    hounsfield[0, 0, 0] = -1000

    windowed, clamped = (cut(v, target, affine, RULE, is_ct=True) for v in (image, hounsfield))

    np.testing.assert_array_equal(windowed.image, normalise(windowed.grid.crop(image)))
    np.testing.assert_array_equal(
        clamped.image, normalise(clamped.grid.crop(hounsfield).clip(-1000, 1000))
    )


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_normalises_to_zeros(value):
    assert not normalise(np.full((2, 2, 2), value)).any()
    padded = normalise(np.array([[[0, value, value]]]))
    assert np.isfinite(padded.astype(np.float16)).all()


def test_the_cube_is_centred_on_the_target_and_knows_what_it_misses():
    target = ball(radius=4.0)
    affine = affine_from_spacing((1, 1, 1))
    whole = cut(target * 50, target, affine, RULE, is_ct=False)
    part = cut(target * 50, target, affine, CropRule(size=4, spacing_mm=1.0), is_ct=False)
    assert whole.coverage == 1.0
    assert whole.grid.to_crop((9, 12, 15)) == pytest.approx((15.5,) * 3)
    assert part.label.all()
    assert 4**3 <= part.coverage * target.sum() <= 5**3  # voxels on the faces belong to it


def test_the_label_of_a_crop_pasted_back_is_the_target():
    target = ball()
    affine = affine_from_spacing((1.0, 1.1, 1.2))
    crop = cut(target * 50, target, affine, CropRule(size=64, spacing_mm=0.5), is_ct=False)
    pasted = crop.grid.paste(crop.label - 0.5, outside=-1) > 0
    assert (pasted == target).mean() > 0.999


def test_a_target_around_an_empty_middle_is_in_its_cube():
    target = np.zeros((60, 10, 10), bool)
    target[:4], target[-3:] = True, True
    crop = cut(target * 50, target, np.eye(4), CropRule(size=16, spacing_mm=1.0), is_ct=False)
    assert crop.label.any()
    assert 0 < crop.coverage < 1


@pytest.mark.parametrize("spacing_mm", [1.5, 4.0])
def test_a_target_of_one_voxel_keeps_a_voxel(spacing_mm):
    target = np.zeros((9, 9, 9), bool)
    target[2, 5, 7] = True
    crop = cut(target * 50, target, np.eye(4), CropRule(size=16, spacing_mm=spacing_mm), False)
    assert crop.label.sum() >= 1
    np.testing.assert_allclose(crop.grid.to_volume(np.argwhere(crop.label)[0]), (2, 5, 7), atol=2)
