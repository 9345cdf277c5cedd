"""NPZ -> classify.py -> categorize.py -> reallocate.py -> tree: what is written, and repeats."""

import errno
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from preparation_helpers import (
    LIVER,
    LUNG,
    age,
    categorize_all,
    classify_all,
    output,
    prepare_all,
    reallocate_all,
    state_of,
)

import categorize
import classify
import reallocate

pytestmark = pytest.mark.usefixtures("workplace")


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_default_folders_chain_into_one_tree(make_case):
    make_case(Path("data/npz"), "CT_A_1")

    assert prepare_all() == ["done 1, skipped 0, failed 0"] * 3
    assert sorted(Path("data/medical_preprocessed").rglob("*.gz")) == [
        output(LUNG, "imagesTr"),
        output(LUNG),
        output(LIVER, "imagesTr"),
        output(LIVER),
    ]


def test_arrays_of_the_tree_equal_the_challenge_files(make_case):
    case = np.load(make_case(Path("data/npz"), "CT_A_1"))
    prepare_all()

    for organ, value in ((LUNG, 1), (LIVER, 2)):
        label, image = array_of(output(organ)), array_of(output(organ, "imagesTr"))
        assert label.dtype == image.dtype == np.uint8
        np.testing.assert_array_equal(label, case["gts"] == value)
        np.testing.assert_array_equal(image, case["imgs"])


def test_both_readers_find_the_spacing_of_the_case(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    prepare_all()

    for path in (output(LIVER), output(LIVER, "imagesTr")):
        image = sitk.ReadImage(str(path))
        np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.9, 5), rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-6)
        affine = np.diag([-0.7, -0.9, 5, 1])
        np.testing.assert_allclose(nib.load(path).affine, affine, atol=1e-6)


def test_image_is_one_file_linked_into_every_organ(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    prepare_all()

    assert output(LUNG, "imagesTr").samefile(output(LIVER, "imagesTr"))


def test_image_dtype_is_kept(make_case):
    image = np.linspace(-1, 1, 4 * 6 * 9, dtype=np.float32).reshape(4, 6, 9)
    make_case(Path("data/npz"), "CT_A_1", imgs=image)
    prepare_all()

    np.testing.assert_array_equal(array_of(output(LIVER, "imagesTr")), image)


def test_suffixes_of_images_and_labels_are_dropped(make_case):
    make_case(Path("data/npz"), "CT_A_1_image", gts=None)
    make_case(Path("data/npz"), "CT_A_1_label", imgs=None, spacing=None)

    assert prepare_all() == ["done 1, skipped 0, failed 0"] * 3
    assert output(LIVER, "imagesTr").exists()


def test_labels_may_lie_in_a_second_folder_and_both_in_subfolders(make_case):
    make_case(Path("val/CT"), "CT_A_1", gts=None)
    make_case(Path("val_gts/CT/CT_A"), "CT_A_1", imgs=None, spacing=None)

    assert classify_all("--labels", "val_gts", "--images", "val").done == 1
    assert categorize_all().done == 1
    assert reallocate_all("--images", "val").done == 1
    assert array_of(output(LIVER)).sum() == 2


def test_longest_key_decides_and_instances_keep_their_numbers(make_case):
    instances = np.zeros((4, 6, 9), np.uint16)
    instances[0, 0, :3] = (7, 300, 7)
    make_case(Path("data/npz"), "CT_A_tumor_1", gts=instances)
    prepare_all()

    label = array_of(output("tumor/CT_A_tumor", case_id="CT_A_tumor_1"))
    assert label.dtype == np.uint16
    np.testing.assert_array_equal(label, instances)
    assert not Path("data/classified/CT_A").exists()


def test_case_without_a_labelled_voxel_gives_no_organ(make_case):
    make_case(Path("data/npz"), "CT_A_0", gts=np.zeros((4, 6, 9), np.uint8))
    make_case(Path("data/npz"), "CT_A_1")
    prepare_all()

    assert not output(LIVER, case_id="CT_A_0").exists()
    assert output(LIVER).exists()


def test_several_workers_give_the_same_tree(make_case):
    for number in range(5):
        make_case(Path("data/npz"), f"CT_A_{number}")
    for step in (classify, categorize, reallocate):
        assert step.run(step.parse_args(["--workers", "3"])).done == 5

    for number in range(5):
        assert output(LIVER, "imagesTr", f"CT_A_{number}").exists()


def test_image_is_copied_where_the_disk_has_no_hard_links(make_case, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    image = np.load(make_case(Path("data/npz"), "CT_A_1"))["imgs"]
    prepare_all()

    assert not output(LUNG, "imagesTr").samefile(output(LIVER, "imagesTr"))
    np.testing.assert_array_equal(array_of(output(LIVER, "imagesTr")), image)


def test_second_run_changes_nothing_and_inputs_stay_as_they_were(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    make_case(Path("data/npz"), "CT_A_tumor_1")
    inputs = state_of("data/npz")
    prepare_all()
    first = state_of("data")

    assert prepare_all() == ["done 0, skipped 2, failed 0"] * 3
    assert state_of("data") == first
    assert state_of("data/npz") == inputs


def test_newer_input_is_worked_in_everywhere(make_case):
    path = make_case(Path("data/npz"), "CT_A_1")
    prepare_all()
    age("data")
    label = np.load(path)["gts"]
    label[0, 0, 0] = 2
    make_case(Path("data/npz"), "CT_A_1", gts=label, imgs=label + 10)

    assert prepare_all() == ["done 1, skipped 0, failed 0"] * 3
    np.testing.assert_array_equal(array_of(output(LIVER)), label == 2)
    for organ in (LIVER, LUNG):
        np.testing.assert_array_equal(array_of(output(organ, "imagesTr")), label + 10)


def test_missing_output_is_made_again(make_case):
    make_case(Path("data/npz"), "CT_A_1")
    prepare_all()
    output(LIVER).unlink()
    output(LUNG, "imagesTr").unlink()

    assert prepare_all()[1:] == ["done 1, skipped 0, failed 0"] * 2
    assert output(LIVER).exists()
    assert output(LUNG, "imagesTr").samefile(output(LIVER, "imagesTr"))


def test_organ_that_the_case_lost_is_removed_with_its_image(make_case):
    path = make_case(Path("data/npz"), "CT_A_1")
    prepare_all()
    label = np.load(path)["gts"]
    make_case(Path("data/npz"), "CT_A_1", gts=np.where(label == 2, 0, label))

    assert prepare_all() == ["done 1, skipped 0, failed 0"] * 3
    assert sorted(Path("data/medical_preprocessed").rglob("*.gz")) == [
        output(LUNG, "imagesTr"),
        output(LUNG),
    ]
