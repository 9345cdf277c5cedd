"""Limits that other tests do not reach: corners of volumes, short files, thresholds, defaults."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from small_networks import RULE, small_sam

from utils.cases.challenge import write_segs
from utils.errors import InputError
from utils.files.answers import MARK, is_answer, marked, require_replaceable, write_answer
from utils.files.strict_json import parse_json
from utils.prediction.predictor import Predictor
from utils.volumes.grid import is_same_affine, largest_gap_mm
from utils.volumes.intensity import air_share
from utils.volumes.labels import InstanceRule, as_label
from utils.volumes.values import require_finite


@pytest.mark.parametrize(
    ("axis", "expected"), [(0, 0.1 * 6), (1, 0.1 * 4), (2, 0.1 * 2)], ids=["x", "y", "z"]
)
def test_grids_of_two_voxel_sizes_are_furthest_apart_at_the_last_voxel(axis, expected):
    second = np.eye(4)
    second[axis, axis] += 0.1
    assert largest_gap_mm(np.eye(4), second, (3, 5, 7)) == pytest.approx(expected)


def test_grids_that_meet_at_the_last_voxel_are_furthest_apart_at_the_first():
    second = np.diag([1.1, 1.1, 1.1, 1.0])
    second[:3, 3] = [-0.6, -0.4, -0.2]
    assert largest_gap_mm(np.eye(4), second, (3, 5, 7)) == pytest.approx(math.sqrt(0.56))


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x1f\x8b\x08\x10", b"NRRD0004\n"])
def test_a_file_that_ends_within_its_mark_is_no_answer(start):
    assert not is_answer(start + MARK)
    assert not is_answer(start + MARK + b"0" * 31)


def test_the_shortest_files_are_known_by_their_mark():
    assert is_answer(marked(gzip.compress(b"a")))


def test_the_mark_at_the_end_of_a_long_answer_is_found(tmp_path):
    path = tmp_path / "a.npz"
    labels = np.random.default_rng(0).integers(0, 9, (30, 30, 30)).astype(np.uint8)
    write_answer(path, lambda temporary: write_segs(temporary, labels))
    assert path.stat().st_size > 2**12
    require_replaceable([path])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_plane_of_one_voxel_is_looked_at_too(bad):
    column = np.zeros((3, 1, 1))
    column[1] = bad
    with pytest.raises(InputError, match=r"1 voxels .* \(z, y, x\) = \(1, 0, 0\)"):
        require_finite(column, "the image")


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_an_array_without_voxels_is_finite(shape):
    require_finite(np.zeros(shape), "the image")


def test_a_flag_that_is_neither_true_nor_false_is_named():
    predictor = Predictor(small_sam(), RULE)
    with pytest.raises(InputError, match="hounsfield"):
        predictor.set_image(np.zeros((4, 5, 6)), (1, 1, 1), hounsfield="yes")


def test_a_byte_order_mark_is_skipped_in_text_and_in_bytes():
    assert parse_json("\ufeff[1]") == parse_json("\ufeff[1]".encode()) == [1]


def body(air, fat, soft, bone):
    """Return 1000 voxels of CT in HU, with these shares in per mille."""
    return np.repeat(np.array([-1000, -100, 40, 500], np.int16), [air, fat, soft, bone])


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((500, 10, 140, 350), 0.5),  # fat and soft tissue are 0.3 of the body
        ((500, 10, 139, 351), 0.0),
        ((500, 9, 291, 200), 0.5),  # with little fat they must be 0.6
        ((500, 9, 290, 201), 0.0),
    ],
)
def test_ct_needs_soft_tissue_and_more_of_it_without_fat(shares, expected):
    assert air_share(body(*shares).reshape(10, 10, 10)) == expected


def test_a_label_that_is_refused_is_named():
    for bad in (0.5, -1, 70_000):
        with pytest.raises(InputError, match=r"folder/truth\.npz"):
            as_label(np.full((2, 2, 2), bad), Path("folder/truth.npz"))


def test_a_share_of_an_instance_is_no_number_of_instances():
    assert InstanceRule(most=2).most == 2
    with pytest.raises(InputError, match="--max-instances"):
        InstanceRule(most=2.5)


def test_a_turned_grid_is_compared_with_the_voxel_size_of_each_of_its_axes():
    """The first voxel axis is the finest, and does not point along the first axis in mm."""
    affine = np.eye(4)
    affine[:3, :3] = [[0, 1, 0], [0, 0, 10], [0.1, 0, 0]]
    other = affine.copy()
    other[2, 0] += 5e-5  # 0.05 % of that voxel's side, and 1e-5 of the one that it points along

    assert is_same_affine(affine, affine.copy())
    assert not is_same_affine(affine, other)
