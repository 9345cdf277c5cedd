"""Connected components are those of SciPy, whatever the shape, the type and the memory layout."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from utils.prompts.click_method import challenge_click, mended_share, training_click
from utils.volumes.components import component_sizes, connected_components, face_components

#: Lines, slices, slabs of two voxels and cubes, short and long.
SIDES = st.one_of(st.integers(0, 9), st.sampled_from([1, 1, 1, 2, 3, 33, 64]))
SHAPES = st.tuples(SIDES, SIDES, SIDES)
NOISE = st.tuples(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2, 0.5, 0.9]))


def isolated(*shape):
    """Return a mask with as many isolated voxels as the shape can hold."""
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    return mask


def assert_as_scipy(mask):
    labels, count = connected_components(mask)
    expected, expected_count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == expected_count
    assert labels.dtype.kind == "u"
    assert labels.flags.c_contiguous
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(
        component_sizes(labels, count), np.bincount(expected.ravel(), minlength=count + 1)
    )


@settings(max_examples=300, deadline=None)
@given(arrays(bool, SHAPES))
@example(np.array([[[True, False, True]]]))
@example(isolated(1, 3, 3))
@example(isolated(3, 3, 3))
@example(np.zeros((0, 4, 5), bool))
def test_components_and_their_numbers_are_scipys(mask):
    assert_as_scipy(mask)


@settings(max_examples=300, deadline=None)
@given(NOISE)
def test_noise_of_every_density_has_scipys_components(noise):
    shape, seed, share = noise
    assert_as_scipy(np.random.default_rng(seed).random(shape) < share)


@settings(max_examples=200, deadline=None)
@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0, 0.02, 0.1]))
def test_as_many_isolated_voxels_as_fit_are_as_many_components(shape, seed, flipped):
    assert_as_scipy(isolated(*shape) ^ (np.random.default_rng(seed).random(shape) < flipped))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("step", [1, 2, -1])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, ">f4", np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 21), (1, 9, 11), (8, 9, 11)])
def test_layout_and_type_of_the_mask_do_not_matter(shape, dtype, step, axes):
    values = np.random.default_rng(0).random(shape) < 0.2
    mask = (values * 3).astype(dtype).transpose(axes)[::step, ::step, ::step]
    before = mask.copy()
    mask.flags.writeable = False
    labels, count = connected_components(mask)
    expected, expected_count = ndimage.label(before != 0, np.ones((3, 3, 3)))
    assert count == expected_count
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(mask, before)


def test_negative_values_and_fractions_are_inside():
    labels, count = connected_components(np.array([[[-1, 0, 0.25]]]))
    assert (labels.tolist(), count) == ([[[1, 0, 2]]], 2)


def test_more_components_than_sixteen_bits_hold_are_numbered():
    assert_as_scipy(isolated(2, 512, 600))  # 76,800
    assert_as_scipy(isolated(1, 1, 140_001))


@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (1, 4, 5, 6)])
def test_an_array_without_three_axes_is_refused(shape):
    with pytest.raises(ValueError, match="Expected three axes"):
        connected_components(np.ones(shape, bool))


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 7, 1), (7, 1, 1), (1, 5, 7), (3, 3, 3)])
def test_clicks_are_placed_in_scattered_errors(shape):
    truth = np.zeros((9, 9, 9), bool)
    truth[1 : 1 + shape[0], 1 : 1 + shape[1], 1 : 1 + shape[2]] = isolated(*shape)
    nothing = np.zeros_like(truth)
    click = challenge_click(nothing, truth)
    assert click.zyx == (1, 1, 1)  # all are equally large, so the first in C order counts
    assert truth[training_click(nothing, truth, np.random.default_rng(0), 1.0).zyx]
    after = nothing.copy()
    after[click.zyx] = True
    assert mended_share(nothing, after, truth, click) == 1.0


def test_no_other_module_calls_the_library_itself():
    root = Path(__file__).parent.parent
    files = [path for top in ("*.py", "*/*.py", "*/*/*.py") for path in root.glob(top)]
    files = [path for path in files if not path.relative_to(root).parts[0].startswith(".")]
    using = [path for path in files if re.search(r"^\s*(import|from) cc3d", path.read_text(), re.M)]
    assert using == [root / "utils" / "volumes" / "components.py"]


def test_components_by_faces_are_scipys():
    mask = np.random.default_rng(0).random((9, 10, 11)) < 0.4
    labels, count = face_components(mask)
    expected, number = ndimage.label(mask)
    assert count == number
    pairs = {(int(a), int(b)) for a, b in zip(labels.ravel(), expected.ravel(), strict=True)}
    assert len(pairs) == count + 1  # one label for each of SciPy's


def test_as_many_components_by_faces_as_there_can_be_are_numbered():
    board = np.indices((5, 5, 5)).sum(0) % 2 == 0
    assert face_components(board)[1] == np.count_nonzero(board) == 63
