"""Names read back from files: only those that stay in their folder are used."""

import pytest

from utils.errors import printable
from utils.files.names import is_inside, is_plain_name


@pytest.mark.parametrize(
    "name", ["CT_A_1.json", "a b.nii.gz", ".hidden", "..x", "Größe", "a\u200cb"]
)
def test_a_file_name_is_plain(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/a", "..\\a", "C:a", "a\nb", "a\x1b[31m", "a\0", "a\u2028", None, 3],
)
def test_a_path_or_an_unprintable_name_is_not_plain(name):
    assert not is_plain_name(name)


@pytest.mark.parametrize("path", ["a", "a/b.nii.gz", "liver/CT_A/labelsTr/x", "./a"])
def test_a_path_below_the_folder_is_inside(tmp_path, path):
    assert is_inside(path, tmp_path)


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "C:\\a", "\\\\host\\a", "a\nb", None],
)
def test_a_path_that_may_leave_the_folder_is_not_inside(tmp_path, path):
    assert not is_inside(path, tmp_path)


def test_a_folder_that_is_a_link_to_elsewhere_is_not_inside(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tree/link").symlink_to("../elsewhere")

    assert not is_inside("link/a", tmp_path / "tree")
    assert is_inside("link", tmp_path / "tree")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\nb"),
        ("Größe 3 µm", "Größe 3 µm"),
        ("\x1b[31mred\r", "\\x1b[31mred\\r"),
        ("\u202ecod.exe", "\\u202ecod.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_unprintable_characters_become_escapes(text, shown):
    assert printable(text) == shown
