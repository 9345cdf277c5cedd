"""Folders of the Medical Segmentation Decathlon, as they are downloaded, into the tree."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_cases import ball

from utils.cases.prepared import Case, find_cases, read_modality, write_modality
from utils.errors import InputError
from utils.files.nifti import read_nifti
from utils.preparation import nnunet

pytestmark = pytest.mark.usefixtures("workplace")

SHAPE = (20, 24, 28)
LABEL = ball(SHAPE).astype(np.uint8)
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])
BRAIN = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
TREE = Path("data/medical_preprocessed")


def channel(number):
    """The (D, H, W) image of a channel; each voxel differs from those of other channels."""
    return np.arange(LABEL.size, dtype=np.float32).reshape(SHAPE) + 100_000 * number


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def make_task(name, modality, cases=("a_001",), classes=None, dataset_json=None):
    """Write a task's folder, with the hidden files that macOS leaves in the archives."""
    folder = Path("raw", name)
    several = len(modality) > 1
    for case_id in cases:
        image = np.stack([channel(n).T for n in range(len(modality))], -1)
        save(folder / f"imagesTr/{case_id}.nii.gz", image if several else image[..., 0])
        save(folder / f"labelsTr/{case_id}.nii.gz", LABEL.T)
        save(folder / f"imagesTs/test_{case_id}.nii.gz", image)
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind / f"._{case_id}.nii.gz").write_bytes(b"\0\5\x16\7")
    content = {
        "name": name,
        "tensorImageSize": "4D",
        "modality": modality,
        "labels": classes or {"0": "background", "1": "tumour"},
        "numTraining": len(cases),
        "training": [
            {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases
        ],
        "test": [f"./imagesTs/test_{c}.nii.gz" for c in cases],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def prepare(*flags):
    return nnunet.run(nnunet.parse_args(["--workers", "1", "--nnunet", *map(str, flags)]))


def image_of(dataset, case_id="a_001"):
    return read_nifti(TREE / "tumour" / dataset / "imagesTr" / f"{case_id}.nii.gz").array


def test_each_channel_of_a_4d_image_is_a_data_set(capsys):
    summary = prepare(make_task("Task01_BrainTumour", BRAIN))

    assert str(summary) == "done 1, skipped 0, failed 0"
    assert "NOTE" not in capsys.readouterr().err
    for number, name in enumerate(BRAIN.values()):
        dataset = f"Task01_BrainTumour_{name}"
        np.testing.assert_array_equal(image_of(dataset), channel(number))
        label = read_nifti(TREE / "tumour" / dataset / "labelsTr/a_001.nii.gz")
        np.testing.assert_array_equal(label.array, LABEL)


@pytest.mark.parametrize("chosen", ["2", "t1gd"])
def test_a_channel_is_chosen_by_number_or_name(chosen):
    prepare(make_task("Task01_BrainTumour", BRAIN), "--channels", chosen)

    assert [folder.name for folder in (TREE / "tumour").iterdir()] == ["Task01_BrainTumour_t1gd"]
    np.testing.assert_array_equal(image_of("Task01_BrainTumour_t1gd"), channel(2))


def test_channels_are_resampled_each_by_itself():
    prepare(make_task("Task01_BrainTumour", BRAIN), "--channels", "1", "--spacing", "3")

    image = image_of("Task01_BrainTumour_T1w")
    assert image.shape == (13, 12, 14)
    assert 100_000 <= image.min() < image.max() < 200_000


def test_a_3d_task_is_prepared_and_ct_by_what_its_description_says():
    prepare(make_task("Task09_Spleen", {"0": "CT"}), make_task("Task02_Heart", {"0": "MRI"}))

    np.testing.assert_array_equal(image_of("Task09_Spleen"), channel(0))
    cases = find_cases([TREE / "tumour/Task02_Heart", TREE / "tumour/Task09_Spleen"])
    assert [(c.dataset, c.modality, bool(c.is_ct)) for c in cases] == [
        ("Task02_Heart", "MRI", False),
        ("Task09_Spleen", "CT", True),
    ]


def test_case_names_that_end_like_a_channel_are_cases(capsys):
    summary = prepare(make_task("Task01_BrainTumour", BRAIN, cases=("brats_0001", "brats_0002")))

    assert str(summary) == "done 2, skipped 0, failed 0"
    assert "NOTE" not in capsys.readouterr().err
    np.testing.assert_array_equal(image_of("Task01_BrainTumour_T2w", "brats_0002"), channel(3))


def test_files_of_one_channel_are_preferred_to_one_of_all():
    folder = make_task("Task01_BrainTumour", BRAIN)
    save(folder / "imagesTr/a_001_0001.nii.gz", channel(7).T)

    prepare(folder, "--channels", "1")

    np.testing.assert_array_equal(image_of("Task01_BrainTumour_T1w"), channel(7))


def test_a_case_with_another_number_of_channels_fails_alone():
    folder = make_task("Task01_BrainTumour", BRAIN, cases=("a_001", "a_002"))
    save(folder / "imagesTr/a_002.nii.gz", np.stack([channel(n).T for n in range(3)], -1))

    summary = prepare(folder)

    assert summary.done == 1
    (failure,) = summary.failures
    assert "a_002.nii.gz" in failure
    assert "holds 3 volumes, where the data set has 4 channels" in failure


def test_time_series_are_no_channels_of_a_task_with_one():
    folder = make_task("Task09_Spleen", {"0": "CT"})
    save(folder / "imagesTr/a_001.nii.gz", np.stack([channel(n).T for n in range(3)], -1))

    (failure,) = prepare(folder).failures

    assert "holds a series of 3 volumes (time points or channels)" in failure


def test_a_second_run_skips_the_case_and_other_channels_are_added():
    folder = make_task("Task01_BrainTumour", BRAIN)
    prepare(folder, "--channels", "0")

    assert str(prepare(folder, "--channels", "0")) == "done 0, skipped 1, failed 0"
    assert str(prepare(folder)) == "done 1, skipped 0, failed 0"
    assert len(list((TREE / "tumour").iterdir())) == 4


def test_the_modality_of_a_data_set_is_kept_and_a_damaged_one_refused():
    write_modality(Path("tree"), "Task09", "CT (portal venous)")
    write_modality(Path("tree"), "Other", "")

    assert read_modality(Path("tree"), "Task09") == "CT (portal venous)"
    assert read_modality(Path("tree"), "Other") == ""
    assert [path.name for path in Path("tree/.modalities").iterdir()] == ["Task09.json"]
    Path("tree/.modalities/Task09.json").write_text('{"modalities": 5}')
    with pytest.raises(InputError, match=r"Task09\.json: cannot be used as JSON"):
        read_modality(Path("tree"), "Task09")


@pytest.mark.parametrize(
    ("dataset", "modality", "is_ct"),
    [("CT_A", "", True), ("A", "CT", True), ("A", "ct1", False), ("CT_A", "MR", True)],
)
def test_a_case_is_ct_by_its_name_or_its_description(dataset, modality, is_ct):
    case = Case("liver", dataset, "a", Path("i"), Path("l"), modality)

    assert bool(case.is_ct) == is_ct
