"""Values of labels, and which instances become targets."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.volumes.labels import InstanceRule, as_label, count_values


def instances(**sizes):
    """A label with instances of so many voxels: ``instances(n7=30, n300=5)``."""
    label = np.zeros((4, 30, 30), np.uint16)
    flat, start = label.reshape(-1), 0
    for name, size in sizes.items():
        flat[start : start + size] = int(name[1:])
        start += size
    return label


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (InstanceRule(), [7, 300]),
        (InstanceRule(min_voxels=65), [300]),
        (InstanceRule(min_voxels=1), [7, 41, 300]),
        (InstanceRule(most=2, min_voxels=1), [7, 300]),
        (InstanceRule(min_voxels=10**6), [300]),
    ],
)
def test_every_instance_of_useful_size_is_a_target(rule, values):
    assert rule.values_of(instances(n41=63, n300=200, n7=64)) == values


def test_hundreds_of_instances_are_hundreds_of_targets():
    label = np.arange(1, 501, dtype=np.uint16).repeat(64).reshape(20, 40, 40)

    assert InstanceRule().values_of(label) == list(range(1, 501))


def test_binary_label_is_one_target_of_any_size():
    assert InstanceRule().values_of(instances(n1=1).astype(np.uint8)) == [1]


@pytest.mark.parametrize(
    ("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")]
)
def test_label_takes_the_smallest_unsigned_dtype(tmp_path, highest, dtype):
    label = as_label(np.array([[[0.0, highest]]]), tmp_path)

    assert label.dtype == dtype
    assert label.max() == highest


@pytest.mark.parametrize(("value", "found"), [(0.5, "fractions, 0.5"), (-3, "negative values, -3")])
def test_label_with_fractions_or_negative_values_is_refused(tmp_path, value, found):
    with pytest.raises(InputError, match=found):
        as_label(np.array([[[0, value]]]), tmp_path / "case.npz")


def test_values_are_counted_without_the_background():
    label = np.zeros((3, 700, 700), np.uint16)
    label[0, 0, :3] = (7, 300, 7)
    label[2, -1, -1] = 65535

    assert count_values(label) == {7: 2, 300: 1, 65535: 1}
    assert count_values(np.zeros((2, 2, 2), np.uint8)) == {}


def test_values_beyond_uint16_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"the value 65536. Expected at most 65535"):
        as_label(np.array([[[0, 65536]]]), tmp_path / "case.npz")
