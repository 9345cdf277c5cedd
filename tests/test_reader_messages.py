"""Readers of untrusted files: which error becomes which message, sizes, limits, odd forms."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from utils.errors import InputError
from utils.files import npz_archive
from utils.files.npz_archive import ArrayHeader, NpzArchive, member_sizes
from utils.files.safe_pickle import load_objects
from utils.files.safe_read import open_regular, reading

IMAGE = np.arange(4 * 6 * 9, dtype=np.uint8).reshape(4, 6, 9)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def write(path, method=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_a_regular_file_is_opened_in_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"\r\n\xff")
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"\r\n\xff"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_regular_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(InputError, match=rf"^{path}: is not a regular file\. Expected one: give"):
        open_regular(path)


def raised(error, tmp_path, **also):
    """Return what becomes of an error in a block that reads."""
    with pytest.raises(Exception) as found, reading(tmp_path / "a.npz", "a case", **also):  # noqa: PT011
        raise error
    return found.value


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    error = raised(FileNotFoundError("x"), tmp_path)
    assert type(error) is InputError
    assert str(error) == f"{tmp_path}/a.npz: no such file. Expected a case: check the path."


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("no"), ValueError("bad"), EOFError("end"), KeyError("key"), IndexError("i"),
        MemoryError("room"), OverflowError("large"), RuntimeError("method"), SyntaxError("code"),
        TypeError("type"), struct.error("short"), zipfile.BadZipFile("zip"), OSError("disk"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_damage_is_named_with_the_file_the_error_and_what_was_expected(tmp_path, error):
    found = raised(error, tmp_path)
    assert type(found) is InputError
    assert str(found).startswith(f"{tmp_path}/a.npz: cannot be read ({type(error).__name__}: ")
    assert str(error) in str(found)
    assert "Expected a case: copy or download it again" in str(found)
    assert found.__cause__ is error


def test_an_input_error_stays_itself_and_a_defect_of_ours_stays_visible(tmp_path):
    mine = InputError("mine")
    assert raised(mine, tmp_path) is mine
    defect = AttributeError("defect")
    assert raised(defect, tmp_path) is defect
    assert type(raised(defect, tmp_path, also=(AttributeError,))) is InputError


def test_the_sizes_of_a_member_are_those_in_the_archive(tmp_path):
    content = npy(np.zeros((40, 50, 60), np.uint8))
    path = write(tmp_path / "a.npz", imgs=content, gts=npy(IMAGE))
    deflated, inflated = member_sizes(path, "imgs")
    assert inflated == len(content)
    assert 0 < deflated < len(content) / 10
    assert member_sizes(path, "boxes") == (0, 0)
    assert member_sizes(tmp_path / "none.npz", "imgs") == (0, 0)
    assert member_sizes(tmp_path, "imgs") == (0, 0)
    path.write_bytes(b"no archive")
    assert member_sizes(path, "imgs") == (0, 0)


def test_a_header_knows_the_bytes_of_its_array(tmp_path):
    with NpzArchive(write(tmp_path / "a.npz", imgs=npy(IMAGE.astype("<i2")))) as archive:
        header = archive.headers["imgs"]
    assert header == ArrayHeader(np.dtype("<i2"), (4, 6, 9), False, 128)
    assert header.nbytes == 432
    assert ArrayHeader(np.dtype("u1"), (), False, 128).nbytes == 1


@pytest.mark.parametrize("count", [64, 65])
def test_an_archive_has_64_arrays_at_most(tmp_path, count):
    members = {f"a{n}": npy(np.array(n)) for n in range(count)}
    path = write(tmp_path / "a.npz", **members)
    if count == 64:
        with NpzArchive(path) as archive:
            assert archive.array("a63") == 63
        return
    with pytest.raises(InputError, match=r"65 arrays of [\d,]+ bytes together\. Expected at most"):
        NpzArchive(path).__enter__()


def test_other_files_in_an_archive_are_passed_over(tmp_path):
    path = write(tmp_path / "a.npz", imgs=npy(IMAGE))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with NpzArchive(path) as archive:
        assert archive.headers.keys() == {"imgs"}


def test_members_that_overlap_are_refused(tmp_path):
    """Two entries of one member: together larger than the file."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 40), np.uint8)
    path = write(tmp_path / "a.npz", imgs=npy(noise), gtss=npy(IMAGE))
    content = path.read_bytes()
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"gtss.npy"))
    first = content.index(b"PK\x01\x02")
    copied = content[first:entry].replace(b"imgs.npy", b"gtss.npy")
    path.write_bytes(content[:entry] + copied + content[entry + len(copied) :])
    with pytest.raises(InputError, match="no larger than the file"):
        NpzArchive(path).__enter__()


def test_a_file_is_closed_after_the_block_and_after_a_refusal(tmp_path, monkeypatch):
    opened, original = [], npz_archive.open_regular
    monkeypatch.setattr(
        npz_archive, "open_regular", lambda path: opened.append(original(path)) or opened[-1]
    )
    with NpzArchive(write(tmp_path / "a.npz", imgs=npy(IMAGE))):
        assert not opened[0].closed
    (tmp_path / "b.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"b\.npz: cannot be read"):
        NpzArchive(tmp_path / "b.npz").__enter__()
    assert [file.closed for file in opened] == [True, True]


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i4", "<i8"])
def test_deflated_bytes_are_given_for_any_little_endian_whole_numbers(tmp_path, dtype):
    content = npy(IMAGE.astype(dtype))
    with NpzArchive(write(tmp_path / "a.npz", imgs=content)) as archive:
        deflated = archive.deflated("imgs")
        assert zipfile.zlib.decompress(b"".join(deflated.chunks), -15) == content
        assert deflated.header == archive.headers["imgs"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numbers_of_every_width_are_read(protocol):
    numbers = [0, 255, 256, 65535, 65536, 2**31 - 1, -1, -(2**31), 2**31, 2**63, -(2**200), 0.1]
    values = [numbers, tuple(numbers), True, False, None, "ä" * 300, "a", "", b"a", b"\xff" * 300]
    assert load_objects(pickle.dumps(values, protocol), "case.npz") == values


def test_the_kind_of_what_is_left_bare_is_named():
    dtype = b"\x80\x04cnumpy\ndtype\nX\x02\0\0\0i4\x89\x88\x87R."
    with pytest.raises(InputError, match=r"^a\.npz: the pickle holds a bare dtype\. Expected only"):
        load_objects(dtype, "a.npz")


@pytest.mark.parametrize("room", [200, 10_000])
def test_a_pickle_larger_than_allowed_is_refused_by_its_size_in_the_archive(
    tmp_path, monkeypatch, room
):
    monkeypatch.setattr(npz_archive, "MAX_BYTES", room)
    boxes = np.array([{"z_min": 1}, {"z_min": 2}], object)
    path = write(tmp_path / "a.npz", boxes=npy(boxes))
    if room == 10_000:
        with NpzArchive(path) as archive:
            assert archive.objects["boxes"].tolist() == boxes.tolist()
        return
    with pytest.raises(InputError, match=r"'boxes' has shape \(2,\), dtype object\. Expected at"):
        NpzArchive(path).__enter__()
