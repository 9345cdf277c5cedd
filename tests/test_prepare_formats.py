"""Images and labels of other formats than NIfTI, into the tree of step 1."""

import locale
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from small_cases import ball

from utils.cases.prepared import find_cases, read_case
from utils.preparation import nnunet

pytestmark = pytest.mark.usefixtures("workplace")

SHAPE = (6, 10, 12)
IMAGE = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 300
LABEL = ball(SHAPE, (3, 5, 6), 2.5).astype(np.uint8)
TREE = Path("data/medical_preprocessed")


def placed(array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.75, 1.5, 2.5))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


def write(path, array):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(placed(array), str(path))
    return path


def write_series(folder, array):
    """Write a CT series of one slice a file."""
    folder.mkdir(parents=True)
    image = placed(array)
    axes = image.GetDirection()
    for k in range(array.shape[0]):
        piece = sitk.GetImageFromArray(array[k])
        piece.SetSpacing(image.GetSpacing()[:2])
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{k + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.100",
            "0008|0060": "CT",
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "\\".join(
                map(str, (axes[0], axes[3], axes[6], axes[1], axes[4], axes[7]))
            ),
            "0020|0013": str(k),
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            piece.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        before = locale.setlocale(locale.LC_ALL)
        writer.Execute(piece)
        locale.setlocale(locale.LC_ALL, before)  # GDCM's writer sets it to C


def prepare():
    flags = ["--images", "img", "--labels", "seg", "--dataset", "Ours", "--classes", "1=liver"]
    return nnunet.run(nnunet.parse_args(["--workers", "1", *flags]))


def the_case():
    (case,) = find_cases([TREE / "liver/Ours"])
    return case


def require_prepared():
    """The case is that of IMAGE and LABEL, in its place."""
    image, label = read_case(the_case())
    np.testing.assert_array_equal(image.array, IMAGE)
    np.testing.assert_array_equal(label.array, LABEL)
    written = sitk.ReadImage(str(the_case().image_path))
    np.testing.assert_allclose(written.GetOrigin(), (10, -20, 30), atol=1e-5)
    np.testing.assert_allclose(written.GetSpacing(), (0.75, 1.5, 2.5), rtol=1e-5)
    np.testing.assert_allclose(written.GetDirection(), placed(IMAGE).GetDirection(), atol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".NRRD", ".NII.GZ", ".nii"])
def test_images_and_labels_of_each_format_are_prepared_in_place(ending, capsys):
    for folder, array in (("img", IMAGE), ("seg", LABEL)):
        path = write(f"{folder}/a{ending.lower()}", array)
        path.rename(path.with_name(f"a{ending}"))

    assert str(prepare()) == "done 1, skipped 0, failed 0"

    require_prepared()
    assert "NOTE" not in capsys.readouterr().err


def test_image_and_label_may_differ_in_format():
    write("img/a.mha", IMAGE)
    write("seg/a.nii.gz", LABEL)

    assert prepare().done == 1

    require_prepared()


def test_a_folder_of_slices_is_an_image_and_ct_by_its_header(capsys):
    write_series(Path("img/a"), IMAGE)
    write("seg/a.nrrd", LABEL)

    assert prepare().done == 1

    require_prepared()
    assert the_case().modality == "CT"
    assert the_case().is_ct
    assert "NOTE" not in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["img/a.raw", "img/a/003.dcm"])
def test_a_change_of_any_file_of_a_volume_is_noticed(changed):
    if changed.endswith(".raw"):
        write("img/a.mhd", IMAGE)
    else:
        write_series(Path("img/a"), IMAGE)
    write("seg/a.nrrd", LABEL)
    prepare()
    assert prepare().skipped == 1
    content = bytearray(Path(changed).read_bytes())
    content[-1] ^= 1
    Path(changed).write_bytes(content)

    assert prepare().done == 1

    assert (read_case(the_case())[0].array != IMAGE).any()


def test_what_is_left_out_is_counted_and_named(capsys):
    write("img/a.nrrd", IMAGE)
    write("seg/a.nrrd", LABEL)
    for name in ("img/notes.txt", "seg/table.csv"):
        Path(name).touch()

    prepare()

    told = capsys.readouterr().err
    assert "NOTE img: left out 1 files that are no images, such as notes.txt" in told
    assert "NOTE seg: left out 1 files that are no images, such as table.csv" in told


def test_one_volume_is_not_taken_for_all_channels():
    folder = Path("raw/Task01_B")
    write(folder / "imagesTr/a.nrrd", IMAGE)
    write(folder / "labelsTr/a.nrrd", LABEL)
    (folder / "dataset.json").write_text(
        '{"channel_names": {"0": "T1w", "1": "T2w"}, "labels": {"background": 0, "liver": 1},'
        ' "file_ending": ".nrrd"}'
    )

    failed = nnunet.run(nnunet.parse_args(["--workers", "1", "--nnunet", str(folder)]))

    (failure,) = failed.failures
    assert "a.nrrd: holds one volume, where the data set has 2 channels" in failure
    shutil.copy(folder / "imagesTr/a.nrrd", folder / "imagesTr/a_0000.nrrd")
    (folder / "imagesTr/a.nrrd").rename(folder / "imagesTr/a_0001.nrrd")
    assert nnunet.run(nnunet.parse_args(["--workers", "1", "--nnunet", str(folder)])).done == 1


def test_nifti_in_upper_case_keeps_its_channels():
    folder = Path("raw/Task01_B")
    write(folder / "labelsTr/a.nrrd", LABEL)
    place = np.diag([-1, -1, 1, 1]) @ np.array(
        [[0, -1.5, 0, 10], [0.75, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    )
    (folder / "imagesTr").mkdir()
    image = nib.Nifti1Image(np.stack([IMAGE.T, IMAGE.T + 1], -1), place)
    image.to_filename(folder / "imagesTr/a.nii.gz")
    (folder / "imagesTr/a.nii.gz").rename(folder / "imagesTr/a.NII.GZ")
    (folder / "dataset.json").write_text(
        '{"modality": {"0": "T1w", "1": "T2w"}, "labels": {"0": "background", "1": "liver"}}'
    )

    assert nnunet.run(nnunet.parse_args(["--workers", "1", "--nnunet", str(folder)])).done == 1

    written = nib.load(TREE / "liver/Task01_B_T2w/imagesTr/a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj).T, IMAGE + 1)
