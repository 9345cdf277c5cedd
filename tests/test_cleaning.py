import argparse
import json
from itertools import chain

import numpy as np
import pytest
from scipy import ndimage

from utils.errors import InputError
from utils.preparation.cleaning import (
    CleaningRule,
    add_cleaning_arguments,
    clean_instances,
    clean_mask,
    cleaning_rule,
)

SHAPE = (6, 9, 14)
SPACING_ZYX = (5.0, 0.5, 2.0)  # a voxel has 5 mm3


def _mask(*boxes):
    """Return a mask that is True in the given boxes, each (z, y, x) slices."""
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return mask


LARGE = np.s_[0:3, 0:4, 0:2]  # 24 voxels
MEDIUM = np.s_[5:6, 0:5, 4:6]  # 10 voxels
SMALL = np.s_[0:1, 6:9, 12:13]  # 3 voxels


def _parse(*flags):
    parser = argparse.ArgumentParser()
    add_cleaning_arguments(parser)
    return cleaning_rule(parser.parse_args(flags))


def test_only_the_largest_components_stay():
    mask = _mask(SMALL, MEDIUM, LARGE)
    two, two_lines = clean_mask(mask, SPACING_ZYX, CleaningRule(keep_components=2))
    one, one_lines = clean_mask(mask, SPACING_ZYX, CleaningRule(keep_components=1))
    np.testing.assert_array_equal(two, _mask(LARGE, MEDIUM))
    np.testing.assert_array_equal(one, _mask(LARGE))
    assert two_lines == ["1 of 3 components, 3 of 37 voxels"]
    assert one_lines == ["2 of 3 components, 13 of 37 voxels"]


def test_voxels_that_share_a_corner_are_one_component_and_a_gap_parts_them():
    rule = CleaningRule(keep_components=1)
    corner = _mask(np.s_[1, 2, 3], np.s_[2, 3, 2])
    gap = _mask(np.s_[1, 2, 3], np.s_[3, 3, 2])
    np.testing.assert_array_equal(clean_mask(corner, SPACING_ZYX, rule)[0], corner)
    np.testing.assert_array_equal(clean_mask(gap, SPACING_ZYX, rule)[0], _mask(np.s_[1, 2, 3]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_of_equally_large_components_the_first_in_c_order_stay(order):
    # In Fortran order the last comes first. They span the volume: no part of it is cut out first.
    first, second, third = np.s_[0, 8, 13], np.s_[3, 2, 9], np.s_[5, 0, 0]
    mask = np.array(_mask(first, second, third), order=order)
    for most, expected in [(1, _mask(first)), (2, _mask(first, second))]:
        kept, _ = clean_mask(mask, SPACING_ZYX, CleaningRule(keep_components=most))
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("seed", range(8))
def test_components_agree_with_scipy_on_noise(seed):
    mask = np.random.default_rng(seed).random(SHAPE) < 0.08
    numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
    voxels = [np.argwhere(numbered == n).tolist() for n in range(1, count + 1)]
    voxels.sort(key=lambda component: (-len(component), component[0]))
    kept, _ = clean_mask(mask, SPACING_ZYX, CleaningRule(keep_components=4))
    assert np.argwhere(kept).tolist() == sorted(chain(*voxels[:4]))


def test_a_target_below_the_volume_is_dropped_and_one_at_it_stays():
    mask = _mask(SMALL)  # 15 mm3
    dropped, lines = clean_mask(mask, SPACING_ZYX, CleaningRule(min_volume_mm3=15.5))
    assert not dropped.any()
    assert lines == ["volume 15 mm3 is below 15.5"]
    assert clean_mask(mask, SPACING_ZYX, CleaningRule(min_volume_mm3=15))[0].sum() == 3


def test_the_shortest_side_is_measured_in_mm():
    rule = CleaningRule(min_side_mm=4)
    long_in_voxels = _mask(np.s_[0:3, 0:7, 0:3])  # 15 x 3.5 x 6 mm
    short_in_voxels = _mask(np.s_[0:1, 0:8, 0:2])  # 5 x 4 x 4 mm
    dropped, lines = clean_mask(long_in_voxels, SPACING_ZYX, rule)
    assert not dropped.any()
    assert lines == ["shortest side 3.5 mm is below 4"]
    assert clean_mask(short_in_voxels, SPACING_ZYX, rule)[1] == []


def test_a_target_at_the_limits_survives_the_rounding_of_a_header():
    spacing_zyx = tuple(float(np.float32(s)) for s in (0.9, 0.7, 0.9))  # 0.7 becomes 0.69999999
    mask = _mask(np.s_[0:5, 0:3, 0:5])
    at, above = CleaningRule(42.525, 2.1), CleaningRule(42.53, 2.1001)  # 75 voxels of 0.567 mm3
    assert clean_mask(mask, spacing_zyx, at)[1] == []
    assert len(clean_mask(mask, spacing_zyx, above)[1]) == 2


def test_volume_and_side_are_those_of_the_components_that_stay():
    mask = _mask(LARGE, MEDIUM)  # 170 mm3 and 2.5 mm together, LARGE alone 120 and 2
    assert clean_mask(mask, SPACING_ZYX, CleaningRule(130, 2.5))[1] == []
    dropped, lines = clean_mask(mask, SPACING_ZYX, CleaningRule(130, 2.5, keep_components=1))
    assert not dropped.any()
    assert lines == [
        "1 of 2 components, 10 of 34 voxels",
        "volume 120 mm3 is below 130",
        "shortest side 2 mm is below 2.5",
    ]


def test_many_voxels_are_told_with_thousands_separators():
    mask = np.ones((3, 40, 100), bool)
    mask[1] = mask[:, :, 1] = False
    _, (line,) = clean_mask(mask, SPACING_ZYX, CleaningRule(keep_components=1))
    assert line == "3 of 4 components, 4,000 of 7,920 voxels"


def test_an_instance_is_judged_by_itself_and_keeps_its_number():
    label = np.zeros(SHAPE, np.uint16)
    label[LARGE], label[MEDIUM], label[SMALL] = 40_000, 300, 17
    label[3, 0, 0] = 300  # touches 40000, which makes it no part of it
    cleaned, lines = clean_instances(label, SPACING_ZYX, CleaningRule(20, 0, keep_components=1))
    expected = np.where(_mask(LARGE), 40_000, np.where(_mask(MEDIUM), 300, 0))
    np.testing.assert_array_equal(cleaned, expected)
    assert cleaned.dtype == np.uint16
    assert lines == [
        "instance 17: volume 15 mm3 is below 20",
        "instance 300: 1 of 2 components, 1 of 11 voxels",
    ]


def test_an_instance_inside_the_box_of_a_dropped_one_stays():
    label = np.zeros(SHAPE, np.uint16)
    label[0, 0, :] = label[0, :, 0] = 1  # 22 voxels, an L one slice thin
    label[0:3, 3:6, 4:9] = 2
    cleaned, lines = clean_instances(label, SPACING_ZYX, CleaningRule(min_volume_mm3=111))
    np.testing.assert_array_equal(cleaned, np.where(label == 2, 2, 0))
    assert lines == ["instance 1: volume 110 mm3 is below 111"]


@pytest.mark.parametrize("clean", [clean_mask, clean_instances])
def test_inputs_are_left_as_they_are(clean):
    array = _mask(LARGE, SMALL).astype(bool if clean is clean_mask else np.uint16)
    before = array.copy()
    array.flags.writeable = False
    cleaned, lines = clean(array, SPACING_ZYX, CleaningRule(keep_components=1))
    assert len(lines) == 1
    assert not np.array_equal(cleaned, before)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("rule", [CleaningRule(), CleaningRule(5, 0.4, 7)])
def test_where_nothing_is_dropped_the_input_itself_comes_back(rule):
    mask = _mask(LARGE, MEDIUM, SMALL)
    label = np.where(mask, np.arange(SHAPE[2]) + 500, 0).astype(np.uint16)
    for array, clean in [(mask, clean_mask), (label, clean_instances)]:
        for each in (array, np.zeros_like(array)):
            cleaned, lines = clean(each, SPACING_ZYX, rule)
            assert cleaned is each
            assert lines == []


def test_without_flags_the_rule_is_inactive_and_each_flag_makes_it_active():
    assert not _parse().active
    assert _parse("--min-volume-mm3", "0.5") == CleaningRule(min_volume_mm3=0.5)
    assert _parse("--min-side-mm", "15") == CleaningRule(min_side_mm=15)
    assert _parse("--keep-components", "5") == CleaningRule(keep_components=5)
    assert all(CleaningRule(**{field: 1}).active for field in CleaningRule().to_dict())


def test_a_rule_survives_its_record():
    rule = _parse("--min-volume-mm3", "1000", "--min-side-mm", "1.5", "--keep-components", "5")
    assert CleaningRule(**json.loads(json.dumps(rule.to_dict()))) == rule


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--min-volume-mm3", "-1"),
        ("--min-volume-mm3", "nan"),
        ("--min-side-mm", "-0.5"),
        ("--min-side-mm", "inf"),
        ("--keep-components", "-2"),
    ],
)
def test_a_bad_number_is_refused_with_its_flag(flag, value):
    with pytest.raises(InputError, match=rf"{flag} is {value}.*Expected a .* 0 or more: correct"):
        _parse(flag, value)


def test_half_a_component_is_refused():
    with pytest.raises(InputError, match=r"--keep-components is 1\.5\. Expected a whole number"):
        CleaningRule(keep_components=1.5)
