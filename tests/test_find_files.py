"""Files of cases are found by their ending, in upper or lower case."""

from utils.preparation.find_files import find_npz


def test_endings_count_in_any_case(tmp_path):
    for name in ("a.npz", "b.NPZ", "c_image.Npz", "d.npz.txt"):
        (tmp_path / name).touch()
    found = find_npz(tmp_path)
    assert {case: [p.name for p in paths] for case, paths in found.files.items()} == {
        "a": ["a.npz"],
        "b": ["b.NPZ"],
        "c": ["c_image.Npz"],
    }
