"""What is written on the grid of a NIfTI input lies on it, in nibabel and in ITK."""

import gc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from header_kinds import KINDS, itk_affine_of, shown_alike, write_kind
from preparation_helpers import LIVER, categorize_all, classify_all, output
from small_cases import ball
from small_networks import save_student

import predict
import validation_student
from utils.cases.prepared import find_cases, read_case
from utils.files.nifti import read_nifti
from utils.preparation import nnunet
from utils.preparation.loop import PrepareSummary

SHAPE = (20, 24, 28)
CENTRE = (9, 12, 15)
IMAGE = (60 + 90 * ball(SHAPE, CENTRE)).astype(np.int16)
LABEL = ball(SHAPE, CENTRE).astype(np.uint8)
TREE = Path("data/medical_preprocessed")

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def collected():
    """Undo the settings of the garbage collector that predict.py makes in this process."""
    yield
    gc.unfreeze()


def prepare(*flags) -> PrepareSummary:
    source = ["--images", "img", "--labels", "seg", "--dataset", "MR_Ours", "--classes", "1=liver"]
    return nnunet.run(nnunet.parse_args(["--workers", "1", *source, *map(str, flags)]))


def prepared(kind, dataset="MR_Ours", case_id="a"):
    return TREE / "liver" / dataset / kind / f"{case_id}.nii.gz"


def notes_in(manifest):
    return (TREE / manifest).read_text().splitlines()[1]


def draw_with_itk(image: Path, path: Path):
    """Write the label of an image as 3D Slicer does: with the one place that ITK read."""
    seen = sitk.ReadImage(str(image))
    drawn = sitk.GetImageFromArray(LABEL)
    drawn.CopyInformation(seen)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(drawn, str(path))


def draw_with_nibabel(image: Path, path: Path):
    """Write the label of an image as most Python programs do: with nibabel's affine alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    loaded = nib.load(image)
    drawn = nib.Nifti1Image(LABEL.T, loaded.affine)
    drawn.header["xyzt_units"] = loaded.header["xyzt_units"]
    drawn.to_filename(path)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_lies_on_its_image(kind, tmp_path, collected):
    write_kind(Path("scan.nii"), kind, IMAGE)
    words = ["--input", "scan.nii", "--output", "out", "--device", "cpu", "--fg", "9,12,15"]
    checkpoint = str(save_student(tmp_path / "student.pth"))

    predict.run(predict.parse_args([*words, "--checkpoint", checkpoint]))

    assert shown_alike("scan.nii", "out/scan.nii.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_pair_lies_on_its_source(kind):
    write_kind(Path("img/a.nii"), kind, IMAGE)
    write_kind(Path("seg/a.nii"), kind, LABEL)

    assert prepare().done == 1

    assert shown_alike("img/a.nii", prepared("imagesTr"))
    assert shown_alike("img/a.nii", prepared("labelsTr"))


@pytest.mark.parametrize("draw", [draw_with_itk, draw_with_nibabel])
@pytest.mark.parametrize("kind", KINDS)
def test_a_label_drawn_in_either_viewer_is_prepared_and_then_lies_on_its_image_in_both(kind, draw):
    write_kind(Path("img/a.nii"), kind, IMAGE)
    draw(Path("img/a.nii"), Path("seg/a.nii"))

    assert prepare().done == 1

    assert shown_alike("img/a.nii", prepared("imagesTr"))
    for shown in (itk_affine_of, lambda path: nib.load(path).affine):
        image, label = (shown(prepared(kind)) for kind in ("imagesTr", "labelsTr"))
        np.testing.assert_allclose(label, image, rtol=1e-5, atol=1e-5)
    (case,) = find_cases([TREE / "liver/MR_Ours"])
    image, label = read_case(case)
    np.testing.assert_array_equal(image.array, IMAGE)
    np.testing.assert_array_equal(label.array, LABEL)


def test_a_label_that_shares_no_form_is_refused_with_the_forms():
    write_kind(Path("img/a.nii"), "scanner and MNI", IMAGE)
    write_kind(Path("seg/a.nii"), "sform only", LABEL)

    (failure,) = prepare().failures

    assert "different grids" in failure
    assert "image a.nii: qform (code 1) and sform (code 4) differ" in failure


def test_the_manifest_says_where_forms_differ_and_what_was_rounded(capsys):
    write_kind(Path("img/a.nii"), "scanner and MNI", IMAGE)
    write_kind(Path("seg/a.nii"), "scanner and MNI", LABEL * np.float32(1 + 1e-6))

    prepare()

    told = (notes_in("manifest_nnunet.csv"), capsys.readouterr().err)
    for note in (
        "image a.nii: qform (code 1) and sform (code 4) differ",
        "label values up to 9.5e-07 from whole numbers were rounded",
    ):
        assert all(note in text for text in told)
    np.testing.assert_array_equal(read_nifti(prepared("labelsTr")).array, LABEL)


def test_resampled_outputs_have_forms_of_their_own_grid():
    write_kind(Path("img/a.nii"), "scanner and MNI", IMAGE)
    write_kind(Path("seg/a.nii"), "scanner and MNI", LABEL)

    prepare("--spacing", "1")

    for kind in ("imagesTr", "labelsTr"):
        image = nib.load(prepared(kind))
        for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
            assert code == 1
            np.testing.assert_allclose(np.linalg.norm(form[:3, :3], axis=0), 1, rtol=1e-5)
            np.testing.assert_allclose(form, image.affine, atol=1e-4)


def test_categorize_keeps_the_header_of_a_label_and_notes_what_it_rounded(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    classify_all()
    (path,) = Path("data").rglob("CT_A_1.nii.gz")
    label = read_nifti(path).array
    path.unlink()
    write_kind(path.with_name("plain.nii"), "scanner and MNI", label * (1 + 1e-9))
    image = nib.load(path.with_name("plain.nii"))
    image.to_filename(path)
    path.with_name("plain.nii").unlink()

    categorize_all()

    assert shown_alike(path, output(LIVER))
    np.testing.assert_array_equal(read_nifti(output(LIVER)).array, label == 2)
    notes = notes_in("manifest_categorize.csv")
    assert "from whole numbers were rounded" in notes
    assert "qform (code 1) and sform (code 4) differ" in notes


def test_labels_a_rounding_error_from_whole_are_read_from_prepared_trees(caplog):
    write_kind(Path("img/a.nii"), "one form, codes 2 and 1", IMAGE)
    write_kind(Path("seg/a.nii"), "one form, codes 2 and 1", LABEL)
    prepare()
    (case,) = find_cases([TREE / "liver/MR_Ours"])
    scaled = nib.Nifti1Image(LABEL.T * 0.9999999997, nib.load(case.label_path).affine)
    scaled.to_filename(case.label_path)

    _, label = read_case(case)

    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.array, LABEL)
    assert "a.nii.gz: label values up to 3.0e-10 from whole numbers were rounded" in caplog.text


def test_a_label_of_a_tree_that_a_viewer_shows_beside_its_image_is_told(caplog):
    write_kind(Path("img/a.nii"), "scanner and MNI", IMAGE)
    write_kind(Path("seg/a.nii"), "scanner and MNI", LABEL)
    prepare()
    (case,) = find_cases([TREE / "liver/MR_Ours"])
    read_case(case)
    assert not caplog.text

    draw_with_itk(case.image_path, case.label_path)
    read_case(case)

    assert (
        "lie on one grid by one of their forms, but nibabel shows the label beside the image"
        in caplog.text
    )


def test_classify_notes_what_it_rounded(make_case):
    label = np.zeros((4, 6, 9))
    label[1:3] = 0.9999999997
    make_case(Path("data/npz"), "CT_A_1", gts=label)

    classify_all()

    (manifest,) = Path("data").rglob("manifest_classify.csv")
    assert "from whole numbers were rounded" in manifest.read_text()
    (written,) = Path("data").rglob("CT_A_1.nii.gz")
    np.testing.assert_array_equal(read_nifti(written).array, label > 0.5)


@pytest.mark.parametrize("kind", ["both codes 0", "scanner and MNI", "one form, codes 2 and 1"])
def test_a_prediction_of_validation_lies_on_its_image(kind, tmp_path):
    write_kind(Path("img/a.nii"), kind, IMAGE)
    write_kind(Path("seg/a.nii"), kind, LABEL)
    prepare()
    words = ["--checkpoint", save_student(tmp_path / "student.pth"), "--out-dir", "val"]
    words += ["--val-datas", TREE / "liver/MR_Ours", "--num-clicks", 1, "--device", "cpu"]

    validation_student.run(validation_student.parse_args([str(word) for word in words]))

    assert shown_alike("img/a.nii", "val/predictions/liver/MR_Ours/a.nii.gz")
