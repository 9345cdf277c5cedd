"""Values of labels, and which instances become targets."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.volumes.labels import InstanceRule, as_label, checked_label, count_values


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


@pytest.mark.parametrize("off", [0.9999999997, 1.0009, 0.9991, 1 - 1e-7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_a_rounding_error_from_whole_are_rounded_with_a_note(tmp_path, off, dtype):
    values = np.zeros((3, 2, 2), dtype)
    values[1] = [[off, 40000], [1, -1e-5]]

    label, notes = checked_label(values, tmp_path / "case.nii.gz")

    expected = np.zeros((3, 2, 2), np.uint16)
    expected[1] = [[1, 40000], [1, 0]]
    assert label.dtype == np.uint16
    np.testing.assert_array_equal(label, expected)
    assert len(notes) == 1
    assert "from whole numbers were rounded" in notes[0]
    assert values[1, 0, 0] == dtype(off)  # the input is unchanged


def test_the_note_names_the_largest_error_and_whole_values_have_none(tmp_path):
    values = np.array([[[0.9999, 2.00005]], [[3, 1]]])

    assert checked_label(values, tmp_path).notes == [
        "label values up to 1.0e-04 from whole numbers were rounded"
    ]
    assert checked_label(np.array([[[0.0, 3.0]]]), tmp_path).notes == []
    assert checked_label(np.array([[[0, 3]]], np.int16), tmp_path).notes == []


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([0, 1, 1.0011]), "1.0011"),
        (np.array([0, 0.99609378]), "0.99609378"),
        (np.array([1.0000001, 2, 0.1], np.float32), "0.1"),
        (np.array([0, -0.5]), "-0.5"),
        (np.array([123456.75]), "123456.75"),
    ],
    ids=str,
)
def test_fractions_are_refused_with_the_digits_that_tell_them(tmp_path, values, found):
    with pytest.raises(InputError, match=rf"case\.npz: the label holds fractions, {found} among"):
        checked_label(values.reshape(1, 1, -1), tmp_path / "case.npz")


def test_rounding_is_logged_where_there_is_no_manifest(tmp_path, caplog):
    as_label(np.array([[[1 + 1e-6]]]), tmp_path / "case.npz")

    assert "case.npz: label values up to 1.0e-06" in caplog.text


def test_large_values_are_shown_in_full(tmp_path):
    with pytest.raises(InputError, match=r"the value 1234567\. Expected"):
        as_label(np.array([[[1234567.0]]]), tmp_path / "case.npz")
