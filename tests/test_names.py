"""Names read back from files: only those that stay in their folder are used."""

import pytest

from utils.errors import printable
from utils.files.names import has_control_characters, is_inside, is_plain_name


@pytest.mark.parametrize(
    "name", ["CT_A_1.json", "a b.nii.gz", ".hidden", "..x", "Größe", "a\u200cb"]
)
def test_a_file_name_is_plain(name):
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "..\\a",
        "C:a",
        "a\nb",
        "a\x1b[31m",
        "a\0",
        "a\u2028",
        "a\u2029",
        None,
        3,
    ],
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


@pytest.mark.parametrize(
    "character", list("\n\r\t\0\x1b\x7f\x85\u2028\u2029"), ids=lambda it: f"U+{ord(it):04X}"
)
def test_control_characters_and_line_ends_are_found(character):
    assert has_control_characters(f"a{character}b")


@pytest.mark.parametrize("text", ["", "a b", "Größe 3 µm", "a\u200cb", "\u202e", "'\"%"])
def test_other_characters_are_no_control_characters(text):
    assert not has_control_characters(text)


@pytest.mark.parametrize("character", list('/\\:*?"<>|'))
def test_a_name_that_another_system_would_split_or_refuse_is_not_plain(character):
    assert not is_plain_name(f"a{character}b")


def test_a_link_to_elsewhere_in_the_middle_of_a_path_is_not_inside(tmp_path):
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "link").symlink_to(tmp_path)
    assert not is_inside("a/link/b", tmp_path / "tree")
    (tmp_path / "tree" / "a" / "loop").symlink_to(tmp_path / "tree")
    assert is_inside("a/loop/b", tmp_path / "tree")


def test_a_folder_that_is_a_link_itself_holds_its_own_files(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("tree")
    assert is_inside("a", tmp_path / "link")


def test_an_absolute_path_is_not_inside_even_where_it_leads_into_the_folder(tmp_path):
    assert not is_inside(str(tmp_path / "a"), tmp_path)
    assert not is_inside(f"{tmp_path}/a/../b", tmp_path)
