"""Figures as files and as bytes: whole or not at all, and always the same."""

import pytest
from matplotlib.figure import Figure

from utils.files.atomic import WriteError
from utils.results.figures import png_bytes, save


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1))
    drawn.subplots().plot([1, 2], [2, 1])
    return drawn


def test_the_same_figure_gives_the_same_bytes_without_the_name_of_a_program():
    first, second = png_bytes(figure()), png_bytes(figure())
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"Matplotlib" not in first


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")])
def test_the_suffix_decides_the_format(tmp_path, name, start):
    save(figure(), tmp_path / "new folder" / name)
    assert (tmp_path / "new folder" / name).read_bytes().startswith(start)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == [name]


def test_a_figure_that_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(WriteError, match=r"a\.png"):
        save(figure(), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
