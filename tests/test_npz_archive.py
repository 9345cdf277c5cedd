"""NPZ archives as members: forms that are read, forms that are refused, nothing ever executed."""

import io
import os
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.errors import InputError
from utils.files.npz import read_npz
from utils.files.npz_archive import NpzArchive
from utils.files.safe_pickle import UnsafePickleError

IMAGE = np.arange(4 * 6 * 9, dtype=np.uint8).reshape(4, 6, 9)
SPACING = np.array([0.7, 0.9, 5.0])


class Marker:
    """Touches a file when it is unpickled by a careless reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_header(text, content=b"", version=(1, 0)):
    text = text.encode() + b" " * (117 - len(text)) + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + content


def write_members(path, method=zipfile.ZIP_DEFLATED, **members):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for name, content in members.items():
            archive.writestr(f"{name.rstrip('_')}.npy", content)
    return path


def write_case(path, **changes):
    members = {"imgs": npy(IMAGE), "gts": npy(IMAGE % 3), "spacing": npy(SPACING)} | changes
    return write_members(path, **members)


def shape_header(shape, dtype="|u1", fortran=False):
    return npy_header(f"{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", ["|u1", "|b1", "<i2", ">i2", "<f8", ">f4", "<u8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_order_and_byte_order_gives_the_same_native_array(tmp_path, method, dtype, order):
    array = np.asarray(IMAGE % 100, dtype, order=order)
    path = write_members(tmp_path / "case.npz", method, imgs=npy(array))

    read = read_npz(path, ("imgs",))["imgs"]

    assert read.dtype.isnative
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, array)


def test_members_larger_than_a_block_are_whole(tmp_path):
    rng = np.random.default_rng(0)
    array = np.zeros((5, 900, 900), np.uint8)
    array[3:] = rng.integers(0, 256, (2, 900, 900), np.uint8)
    path = write_members(tmp_path / "case.npz", imgs=npy(array), spacing=npy(SPACING))

    np.testing.assert_array_equal(read_npz(path, ("imgs",))["imgs"], array)


def test_deflated_bytes_are_the_member_of_the_archive(tmp_path):
    path = write_case(tmp_path / "case.npz")

    with NpzArchive(path) as archive:
        deflated = archive.deflated("imgs")
        content = b"".join(deflated.chunks)

    inflated = zipfile.zlib.decompress(content, -15)
    assert inflated == npy(IMAGE)
    assert (deflated.size, deflated.crc) == (len(inflated), zipfile.crc32(inflated))


@pytest.mark.parametrize(
    ("array", "method"),
    [
        (np.asfortranarray(IMAGE), zipfile.ZIP_DEFLATED),
        (IMAGE.astype(">i2"), zipfile.ZIP_DEFLATED),
        (IMAGE.astype("<f4"), zipfile.ZIP_DEFLATED),  # may hold NaN, which inflating must show
        (IMAGE, zipfile.ZIP_STORED),
    ],
)
def test_other_forms_are_not_carried_over(tmp_path, array, method):
    path = write_members(tmp_path / "case.npz", method, imgs=npy(array))

    with NpzArchive(path) as archive:
        assert archive.deflated("imgs") is None


def test_objects_that_are_plain_data_are_read(tmp_path):
    boxes = np.array([{"z_min": 1, "z_max": 4}], object)
    path = write_case(tmp_path / "case.npz", boxes=npy(boxes))

    with NpzArchive(path) as archive:
        assert archive.objects["boxes"].tolist() == boxes.tolist()


@pytest.mark.parametrize("name", ["boxes", "gts", "notes"])
def test_file_with_a_harmful_pickle_is_refused_and_leaves_no_marker(tmp_path, name):
    marker = tmp_path / "marker"
    harmful = np.empty(1, object)
    harmful[0] = Marker(marker)
    path = write_case(tmp_path / "case.npz", **{name: npy(harmful)})

    with pytest.raises(UnsafePickleError, match=rf"case\.npz, '{name}': .*system"):
        read_npz(path, ("imgs", "spacing"))
    assert not marker.exists()

    np.load(path, allow_pickle=True)[name]  # the test can fail: a careless reader runs it
    assert marker.exists()


FUTURE = npy(IMAGE).replace(b"NUMPY\x01\x00", b"NUMPY\x09\x00")
BROKEN = {
    "longer than its header": ({"imgs": npy(IMAGE) + b"more"}, "takes 348 bytes, and 344"),
    "shorter than its header": ({"imgs": npy(IMAGE)[:-1]}, "takes 343 bytes, and 344"),
    "no .npy": ({"imgs": b"PNG"}, "cannot be read"),
    "empty member": ({"imgs": b""}, "cannot be read"),
    "future version": ({"imgs": FUTURE}, r"npy version \(9, 0\)"),
    "negative axis": ({"imgs": shape_header((-1, 6, 9))}, r"shape \(-1, 6, 9\)"),
    "header is code": ({"imgs": npy_header("__import__('os').system('true')")}, "cannot be read"),
    "header nested": ({"imgs": npy_header("(" * 100)}, "cannot be read"),
    "giant shape": ({"imgs": shape_header((10**6, 10**6, 10**6))}, "at most 1,073,741,824 voxels"),
    "giant strings": ({"imgs": shape_header((200, 2, 2), "<U99999999")}, "at most"),
    "complex": ({"imgs": npy(IMAGE.astype(complex))}, "dtype complex128"),
    "records": ({"imgs": npy(np.zeros((1, 1, 1), "u1,f4"))}, "dtype"),
    "objects": ({"imgs": npy(np.array([[[1]]], object))}, "Python objects"),
    "0-d": ({"imgs": npy(np.array(3))}, r"shape \(\)"),
    "zero-size": ({"imgs": npy(np.zeros((0, 6, 9)))}, r"shape \(0, 6, 9\)"),
    "twice": ({"imgs_": npy(IMAGE)}, "holds 'imgs' twice"),
}


def test_member_names_are_never_paths(tmp_path):
    (tmp_path / "folder").mkdir()
    others = {"../imgs": npy(IMAGE + 1), "/etc/passwd": npy(IMAGE + 2), "a/../imgs": npy(IMAGE + 3)}
    path = write_case(tmp_path / "folder" / "case.npz", **others)

    with NpzArchive(path) as archive:
        np.testing.assert_array_equal(archive.array("imgs"), IMAGE)
        np.testing.assert_array_equal(archive.array("../imgs"), IMAGE + 1)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "case.npz"]


@pytest.mark.parametrize(("changes", "found"), BROKEN.values(), ids=BROKEN)
def test_broken_member_is_named_with_what_was_found(tmp_path, changes, found):
    path = write_case(tmp_path / "case.npz", **changes)

    with pytest.raises(InputError, match=rf"(?s)case\.npz.*{found}"):
        read_npz(path, ("imgs",))


def test_larger_arrays_than_allowed_are_refused_before_they_are_inflated(tmp_path):
    path = write_case(tmp_path / "case.npz")

    assert read_npz(path, ("imgs",), max_voxels=IMAGE.size)["imgs"].shape == IMAGE.shape
    with pytest.raises(InputError, match="raise --max-voxels"):
        read_npz(path, ("imgs",), max_voxels=IMAGE.size - 1)


def test_member_that_inflates_beyond_what_the_archive_says_is_refused(tmp_path):
    small = npy(np.zeros((4, 6, 9), np.uint8))  # its header and the archive agree
    large = small + bytes(4 * 6 * 9 * 2**16)
    path = write_members(tmp_path / "case.npz", imgs=large)
    content = path.read_bytes()
    assert content.count(struct.pack("<I", len(large))) == 2  # the member's own header, the list
    path.write_bytes(content.replace(struct.pack("<I", len(large)), struct.pack("<I", len(small))))

    with pytest.raises(InputError, match="longer than its size in the archive"):
        read_npz(path, ("imgs",))


def test_member_that_ends_before_its_size_in_the_archive_is_refused(tmp_path):
    whole = npy(np.zeros((4, 6, 9), np.uint8))
    path = write_members(tmp_path / "case.npz", imgs=whole[:-1])
    content = path.read_bytes()
    short = struct.pack("<II", zipfile.crc32(whole[:-1]), len(whole) - 1)[4:]
    assert content.count(short) == 2
    path.write_bytes(content.replace(short, struct.pack("<I", len(whole))))

    with pytest.raises(InputError, match="differs from its checksum"):
        read_npz(path, ("imgs",))


def test_encrypted_and_unknown_compression_are_refused(tmp_path):
    path = write_case(tmp_path / "case.npz")
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    # The flag of encryption; bzip2.
    for offset, value, found in ((8, 1, "is encrypted"), (10, 12, "compressed by method 12")):
        changed = bytearray(content)
        changed[directory + offset] |= value
        path.write_bytes(changed)
        with pytest.raises(InputError, match=found):
            read_npz(path, ("imgs",))


def test_folders_pipes_and_links_to_themselves_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "loop.npz").symlink_to("loop.npz")

    regular = "is not a regular file"
    for name, found in (("pipe", regular), ("folder", regular), ("loop", "cannot be read")):
        with pytest.raises(InputError, match=rf"{name}\.npz: {found}"):
            read_npz(tmp_path / f"{name}.npz", ("imgs",))


def test_every_cut_and_every_flipped_byte_is_refused_or_read_right(tmp_path):
    path = write_case(tmp_path / "case.npz", boxes=npy(np.array([{"z_min": 1}], object)))
    whole = path.read_bytes()
    for position in range(len(whole)):
        for content in (whole[:position], _flipped(whole, position)):
            path.write_bytes(content)
            _read_or_input_error(path)


@settings(
    max_examples=1000,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_only_input_errors_come_out_of_1000_made_up_archives(tmp_path, data):
    descr = st.sampled_from(["|u1", "<f4", ">i8", "|O", "<U3", "|V0", "|S0", "<M8[ns]", "junk", ""])
    axis = st.integers(-2, 12) | st.sampled_from([2**31, 2**63, 10**30, True, None, "a", 1.5])
    texts = st.one_of(
        st.text(max_size=60),
        st.builds(
            lambda d, f, s: repr({"descr": d, "fortran_order": f, "shape": tuple(s)}),
            descr | st.lists(st.tuples(st.text(max_size=2), descr), max_size=2),
            st.booleans() | st.integers(),
            st.lists(axis, max_size=5),
        ),
    )
    members = st.builds(
        lambda text, content, version: npy_header(
            text.encode("ascii", "ignore").decode()[:110], content, version
        ),
        texts,
        st.binary(max_size=300) | st.just(pickle.dumps([1, {"fg": [[1, 2, 3]]}])),
        st.sampled_from([(1, 0), (2, 0), (3, 0), (0, 0)]),
    )
    names = st.sampled_from(["imgs", "gts", "spacing", "boxes", "../imgs", "a/b", ""])
    content = data.draw(st.dictionaries(names, members | st.binary(max_size=400), max_size=4))
    path = tmp_path / "case.npz"
    write_members(path, data.draw(st.sampled_from([0, 8])), **content)
    if data.draw(st.booleans()):
        whole = path.read_bytes()
        path.write_bytes(_flipped(whole, data.draw(st.integers(0, len(whole) - 1))))

    _read_or_input_error(path, expected=None)


def _flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def _read_or_input_error(path, expected=IMAGE):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # NumPy's, of headers that Python 2 wrote
        try:
            image = read_npz(path, ("imgs",), optional=("gts", "spacing"))["imgs"]
        except InputError:
            return
    if expected is not None:
        np.testing.assert_array_equal(image, expected)
