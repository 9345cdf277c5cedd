"""Arrays of challenge files: what is read, what is refused."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.files.npz import read_npz


def counting(shape=(4, 6, 9), dtype=np.uint8):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def test_npz_gives_only_the_keys_asked_for(make_case, tmp_path):
    path = make_case(tmp_path, "case", boxes=np.array([{"z_min": 1}], dtype=object))

    arrays = read_npz(path, ("imgs",), optional=("spacing", "clicks"))

    assert arrays.keys() == {"imgs", "spacing"}
    np.testing.assert_array_equal(arrays["imgs"], counting())
    assert arrays["spacing"].tolist() == [0.7, 0.9, 5.0]


def test_objects_in_an_npz_are_never_unpickled(make_case, tmp_path):
    path = make_case(tmp_path, "case", gts=np.array([{"a": 1}], dtype=object))

    with pytest.raises(InputError, match=r"case\.npz: 'gts' holds Python objects"):
        read_npz(path, ("gts",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgs": None}, r"lacks 'imgs', holds \['gts', 'spacing'\]"),
        ({"imgs": np.zeros((4, 6))}, r"'imgs' has shape \(4, 6\)"),
        ({"imgs": np.zeros((4, 6, 9, 3))}, r"'imgs' has shape \(4, 6, 9, 3\)"),
        ({"imgs": np.zeros((0, 6, 9))}, r"'imgs' has shape \(0, 6, 9\)"),
        ({"imgs": np.full((4, 6, 9), np.nan)}, "'imgs' has 216 voxels that are NaN"),
        ({"imgs": np.full((4, 6, 9), "a")}, "'imgs' has dtype <U1"),
        ({"spacing": None}, "lacks 'spacing'"),
        ({"spacing": (1, 0, 1)}, r"'spacing' is \[1, 0, 1\]"),
        ({"spacing": (1, -1, 1)}, r"'spacing' is \[1, -1, 1\]"),
        ({"spacing": (1, 1)}, r"'spacing' is \[1, 1\]"),
        ({"spacing": (1, 1, np.nan)}, r"'spacing' is \[1.0, 1.0, nan\]"),
        ({"spacing": ("1", "1", "1")}, "'spacing' is"),
    ],
)
def test_bad_npz_is_refused_with_its_name_and_what_was_found(make_case, tmp_path, changes, message):
    path = make_case(tmp_path, "case", **changes)

    with pytest.raises(InputError, match=f"(?s)case\\.npz: {message}.*Expected"):
        read_npz(path, ("imgs", "spacing"))


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all", b"PK\x03\x04" + bytes(500)])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "case.npz"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"case\.npz: cannot be read"):
        read_npz(path, ("imgs",))


def test_npz_truncated_or_damaged_anywhere_is_refused_or_read_right(make_case, tmp_path):
    path = make_case(tmp_path, "case")
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        for content in (whole[:position], whole[:position] + b"\xff" + whole[position + 1 :]):
            path.write_bytes(content)
            try:
                image = read_npz(path, ("imgs", "spacing"))["imgs"]
            except InputError:
                continue
            np.testing.assert_array_equal(image, counting())
