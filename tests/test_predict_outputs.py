"""predict.py loses no file: inputs, files of other origin and corrected answers are kept."""

import os
import shutil

import numpy as np
import pytest
from preparation_helpers import state_of
from test_predict import BOXES, CENTRES, predicted, segs_of, write_npz, write_scan

from utils.errors import InputError
from utils.files.nifti import read_nifti, write_nifti

from small_networks import save_student  # isort: skip


@pytest.fixture
def student(tmp_path):
    return save_student(tmp_path / "student.pth")


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_a_folder_of_links_is_not_answered_where_the_links_lead(tmp_path, student, flags):
    path = write_npz(tmp_path / "data", boxes=BOXES)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / path.name).symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is the same file as the input"):
        predicted(tmp_path / "in", tmp_path / "data", student, *flags)
    assert path.read_bytes() == before


def test_a_link_as_input_is_answered_neither_beside_itself_nor_beside_its_file(tmp_path, student):
    path = write_npz(tmp_path / "data", boxes=BOXES)
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / path.name
    link.symlink_to(path)
    for output in (tmp_path / "in", tmp_path / "data"):
        with pytest.raises(InputError, match="lies with the inputs"):
            predicted(link, output, student, "--overwrite")
    assert link.is_symlink()
    assert "imgs" in np.load(path).files


@pytest.mark.parametrize("kind", ["prompts", "checkpoint", "teacher", "image"])
def test_no_file_of_the_run_is_replaced_through_a_link(tmp_path, student, kind):
    """An answer's name in the output folder leads to a file that the run reads."""
    path = write_scan(tmp_path / "scans", targets=[{"id": 1, "points": []}])
    teacher = shutil.copy(student, tmp_path / "teacher.pth")
    read = {
        "prompts": tmp_path / "scans" / "scan.json",
        "checkpoint": student,
        "teacher": teacher,
        "image": path,
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan.nii.gz").symlink_to(read[kind])
    with pytest.raises(InputError, match="is the same file as the input"):
        predicted(path, tmp_path / "out", student, "--overwrite", "--teacher", teacher)
    assert (tmp_path / "out" / "scan.nii.gz").is_symlink()


def test_a_file_of_other_origin_is_kept_unless_told_otherwise(tmp_path, student):
    path = write_npz(tmp_path / "inputs", boxes=BOXES)
    write_npz(tmp_path / "inputs", "CT_A_2", boxes=BOXES)
    out = tmp_path / "out"
    out.mkdir()
    (out / "CT_A_2.npz").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"CT_A_2\.npz: is a file of other origin.*--overwrite"):
        predicted(tmp_path / "inputs", out, student)
    assert [p.read_bytes() for p in out.iterdir()] == [b"precious"]
    assert len(predicted(tmp_path / "inputs", out, student, "--overwrite").written) == 2
    assert segs_of(out / "CT_A_2.npz").any()
    assert path.exists()


def test_a_mask_corrected_by_hand_is_kept(tmp_path, student):
    path = write_scan(tmp_path / "scans", targets=[{"id": 1, "points": [{"at": CENTRES[0]}]}])
    (written,) = predicted(path, tmp_path / "out", student).written
    answer = read_nifti(written)
    answer.array[0, 0, 0] = 7
    write_nifti(written, answer.array, answer.affine, answer.forms)
    before = written.read_bytes()
    with pytest.raises(InputError, match="or a changed answer"):
        predicted(path, tmp_path / "out", student)
    assert written.read_bytes() == before


def test_answers_of_another_network_are_replaced_without_a_word(tmp_path, student):
    path = write_scan(tmp_path / "scans", targets=[{"id": 1, "points": [{"at": CENTRES[0]}]}])
    (written,) = predicted(path, tmp_path / "out", student).written
    first = written.read_bytes()
    flags = ("--fg", ",".join(map(str, CENTRES[1])))
    assert predicted(path, tmp_path / "out", student, *flags).failures == []
    assert written.read_bytes() != first


def test_a_run_that_is_refused_leaves_everything_as_it_was(tmp_path, student):
    write_npz(tmp_path / "inputs", boxes=BOXES)
    (tmp_path / "out" / "CT_A_1.npz").mkdir(parents=True)
    before = state_of(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        predicted(tmp_path / "inputs", tmp_path / "out", student, "--overwrite")
    assert state_of(tmp_path) == before


def test_names_that_are_one_on_some_disks_are_refused_together(tmp_path, student):
    for name in ("scan", "SCAN"):
        write_scan(tmp_path / "scans", f"{name}.nii.gz", targets=[])
    with pytest.raises(InputError, match="its answer would be"):
        predicted(tmp_path / "scans", tmp_path / "out", student)


def test_a_long_name_is_answered_and_a_longer_one_refused(tmp_path, student):
    path = write_npz(tmp_path / "inputs", "n" * 251, boxes=BOXES)
    assert predicted(path, tmp_path / "out", student).written[0].name == path.name
    longer = write_scan(tmp_path / "scans", "n" * 248 + ".nii.gz", targets=[])
    os.rename(longer, longer.with_name("n" * 251 + ".nii"))
    with pytest.raises(InputError, match="its answer would have 258 bytes"):
        predicted(tmp_path / "scans", tmp_path / "out", student)
