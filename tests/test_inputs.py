"""Inputs of predict.py: formats in any case, what is left out, and what is no input."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_series import write_series
from preparation_helpers import ROOT
from small_networks import save_student
from test_predict import AFFINE, BOXES, CENTRES, image, predicted, segs_of, write_npz, write_scan

import predict
from utils.cases.inputs import find_inputs
from utils.cases.prediction import read_input
from utils.errors import InputError
from utils.files.answers import is_answer
from utils.files.images import read_image
from utils.files.nifti import read_nifti

CLICK = ("--fg", ",".join(map(str, CENTRES[0])))


@pytest.fixture
def student(tmp_path):
    return save_student(tmp_path / "student.pth")


def write_itk(path, array=None):
    path.parent.mkdir(exist_ok=True)
    volume = read_nifti(write_scan(path.parent, "source.nii.gz"))
    picture = SimpleITK.ReadImage(str(path.parent / "source.nii.gz"))
    (path.parent / "source.nii.gz").unlink()
    SimpleITK.WriteImage(picture, str(path))
    return volume


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_gives_the_answer_of_nifti(tmp_path, student, ending):
    (tmp_path / "nifti").mkdir()
    nifti = write_scan(tmp_path / "nifti")
    expected = read_nifti(predicted(nifti, tmp_path / "out", student, *CLICK).written[0])
    write_itk(tmp_path / "other" / f"other{ending}")
    source = tmp_path / "other" / f"other{ending}"
    (written,) = predicted(source, tmp_path / "out", student, *CLICK).written
    assert written.name == "other.nii.gz"
    answer = read_nifti(written)
    np.testing.assert_array_equal(answer.array, expected.array)
    np.testing.assert_allclose(answer.affine, expected.affine, atol=1e-5)
    assert answer.array.any()


def test_a_dicom_series_is_answered_on_its_grid_and_windowed_as_ct(tmp_path, student, caplog):
    caplog.set_level("INFO")
    folder = write_series(tmp_path / "inputs" / "patient", (image(np.int16) - 100) * 4)
    targets = [{"id": 3, "points": [{"at": CENTRES[0]}]}]
    content = json.dumps({"coordinates": "zyx", "targets": targets})
    (tmp_path / "inputs" / "patient.json").write_text(content)
    for source in (tmp_path / "inputs", folder):
        (written,) = predicted(source, tmp_path / "out", student).written
        assert written.name == "patient.nii.gz"
        answer = read_nifti(written)
        np.testing.assert_allclose(answer.affine, read_image(folder).affine, atol=1e-4)
        assert answer.array[CENTRES[0]] == 3
        assert "window level 40, width 400 to 0..255 (ct by its header, CT)" in caplog.text


def test_one_of_several_series_is_answered_by_its_uid(tmp_path, student):
    folder = write_series(tmp_path / "patient", image(np.int16), uid="1.2.3")
    write_series(folder, image(np.int16)[:9], uid="1.2.4", number=50)
    (failure,) = predicted(folder, tmp_path / "out", student, *CLICK).failures
    assert "holds 2 DICOM series" in failure
    (written,) = predicted(folder, tmp_path / "out", student, *CLICK, "--series", "1.2.4").written
    assert read_nifti(written).shape[0] == 9


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd"])
def test_an_answer_as_nrrd_has_the_voxels_and_the_grid_of_the_other(tmp_path, student, name):
    (tmp_path / "scans").mkdir()
    if name.endswith(".nrrd"):
        write_itk(tmp_path / "scans" / name)
    else:
        write_scan(tmp_path / "scans", name)
    source = tmp_path / "scans" / name
    (nifti,) = predicted(source, tmp_path / "out", student, *CLICK).written
    (nrrd,) = predicted(source, tmp_path / "out", student, *CLICK, "--format", "nrrd").written
    assert nrrd == tmp_path / "out" / "scan.nrrd"
    assert is_answer(nrrd.read_bytes())
    first, second = (SimpleITK.ReadImage(str(path)) for path in (nifti, nrrd))
    arrays = list(map(SimpleITK.GetArrayFromImage, (first, second)))
    assert arrays[0].any()
    np.testing.assert_array_equal(*arrays)
    for xyz in ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9)):
        places = [picture.TransformIndexToPhysicalPoint(xyz) for picture in (first, second)]
        np.testing.assert_allclose(*places, atol=1e-4)


def test_a_nrrd_answer_lies_where_slicer_shows_a_nifti_whose_forms_differ(tmp_path, student):
    path = tmp_path / "scan.nii.gz"
    header = nib.Nifti1Image(image().T, AFFINE)
    shifted = AFFINE.copy()
    shifted[:3, 3] += 30
    header.set_sform(shifted, 4)
    header.set_qform(AFFINE, 1)
    nib.save(header, path)
    (written,) = predicted(path, tmp_path / "out", student, *CLICK, "--format", "nrrd").written
    first, second = (SimpleITK.ReadImage(str(p)) for p in (path, written))
    np.testing.assert_allclose(first.GetOrigin(), second.GetOrigin(), atol=1e-4)


def test_challenge_files_are_answered_as_such_whatever_the_format_of_images(tmp_path, student):
    path = write_npz(tmp_path / "inputs", boxes=BOXES)
    path = path.rename(path.with_name("CT_A_1.NPZ"))
    (written,) = predicted(path, tmp_path / "out", student, "--format", "nrrd").written
    assert written.name == "CT_A_1.npz"
    assert segs_of(written).any()


def test_endings_count_in_any_case(tmp_path, student):
    (tmp_path / "scans").mkdir()
    targets = [{"id": 1, "points": [{"at": CENTRES[0]}]}]
    for name, ending in (("a", "NII.GZ"), ("b", "Nii.Gz")):
        path = write_scan(tmp_path / "scans", f"{name}.nii.gz", targets=targets)
        path.rename(path.with_name(f"{name}.{ending}"))
    report = predicted(tmp_path / "scans", tmp_path / "out", student)
    assert [path.name for path in report.written] == ["a.nii.gz", "b.nii.gz"]


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
    folder = tmp_path / "inputs"
    write_npz(folder)
    write_scan(folder, "scan.nii.gz", targets=[])
    write_itk(folder / "head.mhd")
    write_series(folder / "patient", image(np.int16)[:3])
    (folder / "patient.json").touch()
    for name in ("a.jpg", "orphan.json", ".DS_Store", "._scan.nii.gz", ".hidden.nii.gz"):
        (folder / name).touch()
    (folder / "old").mkdir()
    names = [path.name for path in find_inputs(folder, tmp_path / "out")]
    assert names == ["CT_A_1.npz", "head.mhd", "patient", "scan.nii.gz"]
    (note,) = [message for message in caplog.messages if message.startswith("NOTE")]
    assert "left out 4 of 13 entries: .hidden.nii.gz, a.jpg, old/, orphan.json." in note


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, caplog):
    write_npz(tmp_path / "inputs")
    find_inputs(tmp_path / "inputs", tmp_path / "out")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.jpg", "b.jpg", "c.txt"], r"its entries end in \.jpg \(2\), \.txt \(1\)"),
        ([], "it is empty"),
        (["README"], r"its entries end in no ending \(1\)"),
    ],
)
def test_a_folder_without_inputs_names_the_endings_that_it_has(tmp_path, names, said):
    (tmp_path / "inputs").mkdir()
    for name in names:
        (tmp_path / "inputs" / name).touch()
    with pytest.raises(InputError, match=f"found no case: {said}"):
        find_inputs(tmp_path / "inputs", tmp_path / "out")


def test_a_single_slice_is_told_to_be_one_of_a_folder(tmp_path):
    folder = write_series(tmp_path / "patient", image(np.int16)[:3])
    with pytest.raises(InputError, match="give the folder"):
        find_inputs(folder / "000.dcm", tmp_path / "out")


@pytest.mark.parametrize("place", [".", "..", "folder"])
def test_a_dataset_json_near_the_image_says_the_modality(tmp_path, student, caplog, place):
    caplog.set_level("INFO")
    folder = tmp_path / "DatasetX" / "imagesTs"
    folder.mkdir(parents=True)
    path = write_scan(folder, "case_0001.nii.gz", image(np.int16) * 8 - 800)
    content = {"channel_names": {"0": "T1w", "1": "CT"}, "labels": {}}
    where = folder / place if place != "folder" else tmp_path
    (where / "dataset.json").write_text(json.dumps(content))
    predicted(path, tmp_path / "out", student, *CLICK)
    assert ("(ct by dataset.json)" in caplog.text) == (place != "folder")


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("CT_a", (), "window level 40, width 400 to 0..255 (ct by its name)"),
        ("MR_a", (), "to 0..255 (mr by its name)"),
        ("MR_a", ("--modality", "ct"), "to 0..255 (ct by --modality)"),
        ("CT_a", ("--modality", "pet"), "to 0..255 (pet by --modality)"),
        ("a", (), "to 0..255 (values unlike CT's)"),
    ],
)
def test_one_line_says_what_was_decided_and_why(tmp_path, student, caplog, name, flags, said):
    caplog.set_level("INFO")
    path = write_scan(tmp_path, f"{name}.nii.gz", (image(np.int16) - 100) * 8)
    assert predicted(path, tmp_path / "out", student, *CLICK, *flags).failures == []
    assert said in caplog.messages[-1]


def test_as_is_changes_nothing_and_hounsfield_clamps(tmp_path, student):
    array = (image(np.int16) - 100) * 30
    path = write_scan(tmp_path, "CT_a.nii.gz", array)
    words = ["--input", path, "--output", tmp_path, "--checkpoint", student, *CLICK]
    for mode, clamps in (("as-is", False), ("hounsfield", True)):
        args = predict.parse_args([*map(str, words), "--intensity", mode])
        case = read_input(path, args)
        np.testing.assert_array_equal(case.image, array)
        assert case.hounsfield == clamps


@pytest.mark.parametrize(
    ("flags", "clamps"),
    [
        ((), True),
        (("--intensity", "as-is"), False),
        (("--modality", "mr"), False),
        (("--modality", "ct"), True),
    ],
)
def test_a_challenge_file_in_hounsfield_units_is_clamped_as_in_training(tmp_path, flags, clamps):
    array = (image(np.int16) - 100) * 30
    path = write_npz(tmp_path / "inputs", imgs=array)
    words = ["--input", path, "--output", tmp_path, "--checkpoint", "none", *flags]
    case = read_input(path, predict.parse_args(list(map(str, words))))
    np.testing.assert_array_equal(case.image, array)
    assert case.hounsfield == clamps


def test_without_simpleitk_the_message_says_what_to_install(tmp_path, student):
    write_itk(tmp_path / "inputs" / "a.nrrd")
    code = "import sys; sys.modules['SimpleITK'] = None; import predict; predict.main()"
    words = ["--input", "inputs", "--output", "out", "--checkpoint", "student.pth", *CLICK]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--device", "cpu"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install SimpleITK" in done.stderr
    assert "Traceback" not in done.stderr
