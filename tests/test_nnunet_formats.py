"""prepare_nnunet reads NRRD, MetaImage and DICOM into the same tree as NIfTI."""

import json

import numpy as np
import pytest
import SimpleITK
from dicom_series import voxels, write_series
from preparation_helpers import state_of

from utils.files.images import read_image
from utils.files.nifti import read_nifti
from utils.preparation import nnunet

TRUTH = (voxels() > 0).astype(np.uint8)
DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def write(path, array, like=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.5, 2.0))
    image.SetDirection(DIRECTION)
    SimpleITK.WriteImage(image, str(path))


def prepared(*flags):
    return nnunet.run(nnunet.parse_args([*map(str, flags), "--workers", "1"]))


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr", ".nii"])
def test_an_nnunet_data_set_of_another_ending_is_prepared(tmp_path, ending):
    folder = tmp_path / "Dataset001_Liver"
    write(folder / "imagesTr" / f"a_0000{ending}", voxels())
    write(folder / "labelsTr" / f"a{ending}", TRUTH)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ending}))
    summary = prepared("--nnunet", folder, "--out", tmp_path / "out")
    assert summary.exit_code == 0
    expected = read_image(folder / "imagesTr" / f"a_0000{ending}")
    for kind, array in (("imagesTr", voxels()), ("labelsTr", TRUTH)):
        written = read_nifti(tmp_path / "out/liver/Dataset001_Liver" / kind / "a.nii.gz")
        np.testing.assert_array_equal(written.array, array)
        np.testing.assert_allclose(written.affine, expected.affine, atol=1e-5)


def dicom_pairs(folder):
    write_series(folder / "images" / "a", voxels())
    lps = read_image(folder / "images" / "a")
    image = SimpleITK.ReadImage(
        SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "images" / "a"))
    )
    label = SimpleITK.GetImageFromArray(TRUTH)
    label.CopyInformation(image)
    (folder / "labels").mkdir()
    SimpleITK.WriteImage(label, str(folder / "labels" / "a.nrrd"))
    flags = ["--images", folder / "images", "--labels", folder / "labels", "--dataset", "CT_X"]
    return lps, [*flags, "--classes", "1=liver", "--out", folder / "out"]


def test_a_dicom_series_and_its_label_are_prepared_once(tmp_path):
    volume, flags = dicom_pairs(tmp_path)
    assert prepared(*flags).exit_code == 0
    tree = tmp_path / "out/liver/CT_X"
    written = read_nifti(tree / "imagesTr" / "a.nii.gz")
    np.testing.assert_array_equal(written.array, voxels())
    np.testing.assert_allclose(written.affine, volume.affine, atol=1e-4)
    before = state_of(tree)
    assert prepared(*flags).exit_code == 0
    assert state_of(tree) == before


def test_a_slice_that_changes_is_prepared_again(tmp_path):
    _, flags = dicom_pairs(tmp_path)
    prepared(*flags)
    changed = voxels()
    changed[2] += 5
    write_series(tmp_path / "images" / "a", changed)
    assert prepared(*flags).exit_code == 0
    written = read_nifti(tmp_path / "out/liver/CT_X/imagesTr/a.nii.gz")
    np.testing.assert_array_equal(written.array, changed)


def test_what_is_left_out_is_named(tmp_path, capsys):
    _, flags = dicom_pairs(tmp_path)
    (tmp_path / "images" / "notes.txt").touch()
    (tmp_path / "images" / "b.jpg").touch()
    prepared(*flags)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("NOTE")]
    assert len(lines) == 1
    assert "left out 2 files that are no images, such as b.jpg, notes.txt" in lines[0]
