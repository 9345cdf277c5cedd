"""Answers of predict.py are known by their mark; inputs and all other files are kept."""

import gzip
import os
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from utils.cases.challenge import write_segs
from utils.errors import InputError
from utils.files.answers import (
    ForeignFileError,
    is_answer,
    require_distinct_files,
    require_replaceable,
    write_answer,
)
from utils.files.itk import write_nrrd
from utils.files.nifti import read_nifti, write_nifti
from utils.files.npz import read_npz

ARRAY = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.uint8)
AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])
WRITERS = {
    "a.npz": lambda path: write_segs(path, ARRAY),
    "a.nii.gz": lambda path: write_nifti(path, ARRAY, AFFINE),
    "a.nrrd": lambda path: write_nrrd(path, ARRAY, AFFINE),
}
NAMES = pytest.mark.parametrize("name", WRITERS)


@NAMES
def test_an_answer_is_known_and_may_be_replaced(tmp_path, name):
    path = tmp_path / name
    write_answer(path, WRITERS[name])
    assert is_answer(path.read_bytes())
    first = path.read_bytes()
    write_answer(path, WRITERS[name])
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [name]


@NAMES
def test_any_changed_byte_makes_it_foreign(tmp_path, name):
    path = tmp_path / name
    write_answer(path, WRITERS[name])
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        assert not is_answer(bytes(changed)), place
    assert not is_answer(data + b"\0")
    assert not is_answer(data[:-1])


@NAMES
def test_a_file_without_a_mark_is_foreign(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    with pytest.raises(ForeignFileError, match=r"file of other origin.*--overwrite"):
        write_answer(path, WRITERS[name])
    before = path.read_bytes()
    assert not is_answer(before)
    write_answer(path, WRITERS[name], overwrite=True)
    assert is_answer(path.read_bytes())


def test_readers_skip_the_mark(tmp_path):
    for name, write in WRITERS.items():
        write_answer(tmp_path / name, write)
    np.testing.assert_array_equal(read_npz(tmp_path / "a.npz", ["segs"])["segs"], ARRAY)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["segs"], ARRAY)
    assert zipfile.ZipFile(tmp_path / "a.npz").testzip() is None
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.nii.gz").array, ARRAY)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj).T, ARRAY)
    assert len(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())) == 352 + ARRAY.size
    for name in ("a.nii.gz", "a.nrrd"):
        image = SimpleITK.ReadImage(str(tmp_path / name))
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), ARRAY)


def test_an_answer_that_another_program_saved_is_foreign(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_answer(path, WRITERS["a.nii.gz"])
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    with pytest.raises(ForeignFileError):
        require_replaceable([path])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"NRRD\n", b"\x1f\x8b\x08\x10", b"x" * 999])
def test_what_is_no_whole_file_is_no_answer(data):
    assert not is_answer(data)


def test_a_folder_a_link_and_a_protected_answer_are_not_replaced(tmp_path):
    for name in ("folder.npz", "link.npz", "protected.npz"):
        if name == "folder.npz":
            (tmp_path / name).mkdir()
        elif name == "link.npz":
            (tmp_path / name).symlink_to("nowhere")
        else:
            write_answer(tmp_path / name, WRITERS["a.npz"])
            (tmp_path / name).chmod(0o444)
    for name, what in (("folder", "a folder"), ("link", "a link"), ("protected", "protected")):
        with pytest.raises(ForeignFileError, match=what):
            require_replaceable([tmp_path / f"{name}.npz"])
    with pytest.raises(ForeignFileError, match="a folder"):
        require_replaceable([tmp_path / "folder.npz"], overwrite=True)
    require_replaceable([tmp_path / "link.npz", tmp_path / "protected.npz"], overwrite=True)
    require_replaceable([tmp_path / "new.npz", tmp_path / "no folder" / "new.npz"])


def test_several_foreign_files_are_counted(tmp_path):
    for name in ("a.npz", "b.npz"):
        (tmp_path / name).touch()
    with pytest.raises(ForeignFileError, match=r"a\.npz.*1 more such files"):
        require_replaceable([tmp_path / "a.npz", tmp_path / "b.npz"])


@pytest.mark.parametrize("way", ["itself", "link", "hard link", "link of its folder", "dangling"])
def test_an_output_that_is_an_input_is_found(tmp_path, way):
    source = tmp_path / "in" / "a.npz"
    source.parent.mkdir()
    output = tmp_path / "out.npz"
    if way != "dangling":
        source.touch()
    if way == "itself":
        output = tmp_path / "in" / ".." / "in" / "a.npz"
    elif way in ("link", "dangling"):
        output.symlink_to(source)
    elif way == "hard link":
        os.link(source, output)
    else:
        (tmp_path / "folder").symlink_to("in")
        output = tmp_path / "folder" / "a.npz"
    with pytest.raises(InputError, match=r"is the same file as the input .*in/a\.npz"):
        require_distinct_files([tmp_path / "other.npz", output], [tmp_path / "b.npz", source])


def test_outputs_apart_from_the_inputs_are_fine(tmp_path):
    (tmp_path / "a.npz").touch()
    require_distinct_files([tmp_path / "out" / "a.npz"], [tmp_path / "a.npz"])
