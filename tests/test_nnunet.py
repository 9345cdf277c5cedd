"""nnU-Net folders, and folders of images and labels -> utils/preparation/nnunet.py -> the tree."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.eulerangles import euler2mat
from preparation_helpers import reallocate_all, run_script, state_of

from utils.cases.prepared import find_cases, read_case
from utils.errors import InputError
from utils.files.nifti import read_nifti
from utils.preparation import ledger, nnunet

pytestmark = pytest.mark.usefixtures("workplace")

SHAPE = (4, 6, 9)  # (D, H, W)
SPACING_XYZ = (0.7, 0.9, 5.0)
TREE = Path("data/medical_preprocessed")
V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "Left Kidney": 2},
    "file_ending": ".nii.gz",
}
V1 = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "Left Kidney"}}
TWO_CHANNELS = V2 | {"channel_names": {"0": "T1w", "1": "T2-FLAIR (mm)"}}
ROTATION = euler2mat(0.3, -0.2, 0.5)


def _affine(rotation=ROTATION, signs=(1, 1, 1)):
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(np.array(signs) * SPACING_XYZ)
    affine[:3, 3] = (-30, 12.5, 7)
    return affine


AFFINES = {
    "straight": _affine(np.eye(3)),
    "flipped": _affine(np.eye(3), (-1, -1, 1)),
    "oblique": _affine(),
    "oblique and flipped": _affine(signs=(1, -1, -1)),
    "axes permuted": _affine(np.eye(3)[[2, 0, 1]]),
}
OBLIQUE = AFFINES["oblique and flipped"]


def _image(dtype=np.int16):
    return np.arange(np.prod(SHAPE), dtype=dtype).reshape(SHAPE) - 50


def _label():
    label = np.zeros(SHAPE, np.uint8)
    label[1:3, 2:4, 3:8] = 1
    label[3:, 5:, 7:] = 2
    return label


def save(path, array, affine=OBLIQUE):
    """Write a (D, H, W) array as others do, with nibabel."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, affine), path)


def make_dataset(
    description=V2, name="Dataset001_Ab", cases=("a_1",), label=None, image=None, ending=".nii.gz"
):
    """Write an nnU-Net folder; channel n of its image is the first plus n."""
    folder = Path("raw", name)
    image = _image() if image is None else image
    for case_id in cases:
        save(folder / f"labelsTr/{case_id}{ending}", _label() if label is None else label)
        for n in map(int, description.get("channel_names", description.get("modality"))):
            save(folder / f"imagesTr/{case_id}_{n:04d}{ending}", image + n)
    Path(folder, "dataset.json").write_text(json.dumps(description))
    return folder


def make_pairs(label=None, name="case 1"):
    save(f"img/{name}.nii.gz", _image())
    save(f"seg/{name}.nii.gz", _label() if label is None else label)


def prepare(*flags):
    flags = ["--workers", "1", *map(str, flags)]
    return nnunet.run(nnunet.parse_args(flags))


def prepare_pairs(*flags, classes=("1=liver", "2=left kidney")):
    source = ("--images", "img", "--labels", "seg", "--dataset", "MR_Ours")
    return prepare(*source, "--classes", *classes, *flags)


def output(folder, kind="labelsTr", case_id="a_1"):
    return TREE / folder / kind / f"{case_id}.nii.gz"


def files_of(folder=TREE):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.nii*"))


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("description", [V2, V1], ids=["v2", "v1"])
def test_both_versions_give_binary_labels_with_their_image(description):
    prepare("--nnunet", make_dataset(description))

    for organ, value in (("liver", 1), ("left_kidney", 2)):
        label = read_nifti(output(f"{organ}/Dataset001_Ab"))
        assert label.array.dtype == np.uint8
        np.testing.assert_array_equal(label.array, _label() == value)
    images = [output(f"{organ}/Dataset001_Ab", "imagesTr") for organ in ("liver", "left_kidney")]
    assert images[0].samefile(images[1])
    assert len(files_of()) == 4


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_without_resampling_voxels_dtype_and_affine_are_the_source_s(dtype, affine):
    folder = make_dataset()
    source, label = folder / "imagesTr/a_1_0000.nii.gz", folder / "labelsTr/a_1.nii.gz"
    save(source, _image(dtype), affine)
    save(label, _label(), affine)
    prepare("--nnunet", folder)

    written = nib.load(output("liver/Dataset001_Ab", "imagesTr"))
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), nib.load(source).dataobj)
    assert written.get_data_dtype() == dtype
    for kind in ("imagesTr", "labelsTr"):
        affine = nib.load(output("liver/Dataset001_Ab", kind)).affine
        np.testing.assert_array_equal(affine, nib.load(source).affine)


def test_each_channel_is_a_data_set_and_the_label_one_file():
    prepare("--nnunet", make_dataset(TWO_CHANNELS))

    datasets = ("Dataset001_Ab_T1w", "Dataset001_Ab_T2_FLAIR_mm")
    for number, dataset in enumerate(datasets):
        image = array_of(output(f"liver/{dataset}", "imagesTr"))
        np.testing.assert_array_equal(image, _image() + number)
    labels = [output(f"liver/{dataset}") for dataset in datasets]
    assert labels[0].samefile(labels[1])
    assert len(files_of()) == 8


@pytest.mark.parametrize("channel", ["1", "T2-FLAIR (mm)"])
def test_channels_are_chosen_by_number_or_name(channel):
    prepare("--nnunet", make_dataset(TWO_CHANNELS), "--channels", channel)

    assert {Path(path).parts[1] for path in files_of()} == {"Dataset001_Ab_T2_FLAIR_mm"}


def test_unchosen_channel_may_be_missing_and_an_unknown_one_is_refused():
    folder = make_dataset(TWO_CHANNELS)
    Path(folder, "imagesTr/a_1_0001.nii.gz").unlink()

    assert prepare("--nnunet", folder, "--channels", "T1w").done == 1
    with pytest.raises(InputError, match="has no channel 'PET'"):
        prepare("--nnunet", folder, "--channels", "PET")


def test_region_is_the_union_of_its_values():
    regions = {"background": 0, "whole tumor": [1, 2], "tumor core": [2], "edema": 1}
    prepare("--nnunet", make_dataset(V2 | {"labels": regions}))

    for organ, values in (("whole_tumor", [1, 2]), ("tumor_core", [2]), ("edema", [1])):
        label = array_of(output(f"{organ}/Dataset001_Ab"))
        np.testing.assert_array_equal(label, np.isin(_label(), values))


def test_ignore_label_is_known_and_no_class():
    labels = {"background": 0, "liver": 1, "ignore": 2}
    summary = prepare("--nnunet", make_dataset(V2 | {"labels": labels}))

    assert summary.exit_code == 0
    assert {Path(path).parts[0] for path in files_of()} == {"liver"}


def test_uncompressed_files_are_read():
    assert prepare("--nnunet", make_dataset(V2 | {"file_ending": ".nii"}, ending=".nii")).done == 1
    assert output("liver/Dataset001_Ab").exists()


def test_test_images_and_images_without_label_are_left_out_with_a_note(capsys):
    folder = make_dataset()
    save(folder / "imagesTs/a_3_0000.nii.gz", _image())
    save(folder / "imagesTr/a_2_0000.nii.gz", _image())

    assert str(prepare("--nnunet", folder)) == "done 1, skipped 0, failed 0"
    assert "NOTE Dataset001_Ab: 1 cases have an image and no label" in capsys.readouterr().err


def test_missing_channel_fails_its_case_only():
    folder = make_dataset(TWO_CHANNELS, cases=("a_1", "a_2"))
    Path(folder, "imagesTr/a_1_0001.nii.gz").unlink()

    summary = prepare("--nnunet", folder)

    assert str(summary) == "done 1, skipped 0, failed 1"
    assert "a_1.nii.gz: has no image a_1_0001.nii.gz" in summary.failures[0]
    assert not any("a_1" in path for path in files_of())


@pytest.mark.parametrize("channel", [0, 1])
def test_other_grid_shows_both_and_writes_nothing_of_the_case(channel):
    folder = make_dataset(TWO_CHANNELS, cases=("a_1", "a_2"))
    moved = OBLIQUE.copy()
    moved[:3, 2] *= 1.5
    save(folder / f"imagesTr/a_1_000{channel}.nii.gz", _image(), moved)

    summary = prepare("--nnunet", folder)

    assert str(summary) == "done 1, skipped 0, failed 1"
    assert "spacing_zyx (5, 0.9, 0.7) mm" in summary.failures[0]
    assert "spacing_zyx (7.5, 0.9, 0.7) mm" in summary.failures[0]
    assert not any("a_1" in path for path in files_of())


def test_image_that_is_not_finite_writes_nothing_of_the_case():
    image = np.full(SHAPE, np.nan, np.float32)

    summary = prepare("--nnunet", make_dataset(image=image))

    assert "NaN or infinite" in summary.failures[0]
    assert files_of() == []


def test_values_without_a_name_are_listed():
    label = _label()
    label[0, 0, :2] = (7, 40)

    summary = prepare("--nnunet", make_dataset(label=label))

    assert "a_1.nii.gz: holds the values [7, 40]" in summary.failures[0]
    assert files_of() == []


def test_malformed_description_writes_nothing():
    folder = make_dataset(V2 | {"labels": {"../liver": 1}})

    with pytest.raises(InputError, match=r"dataset\.json: has the name '../liver'"):
        prepare("--nnunet", folder)
    assert not TREE.exists()


def test_data_sets_of_one_name_are_refused():
    first, second = make_dataset(), make_dataset(name="b/Dataset001_Ab")

    with pytest.raises(InputError, match=r"two data sets would be \['Dataset001_Ab'\]"):
        prepare("--nnunet", first, second)


def test_folder_is_called_as_it_is_given():
    Path("CT_Ab").symlink_to(make_dataset())
    prepare("--nnunet", "CT_Ab/")

    assert [case.is_ct for case in find_cases([TREE / "liver/CT_Ab"])] == [True]


def test_second_run_skips_and_inputs_stay_as_they_were():
    folder = make_dataset(TWO_CHANNELS)
    inputs = state_of(folder)
    prepare("--nnunet", folder)
    first = state_of(TREE)

    assert str(prepare("--nnunet", folder)) == "done 0, skipped 1, failed 0"
    assert state_of(TREE) == first
    assert state_of(folder) == inputs


def test_other_flags_do_the_case_again_and_remove_what_it_lost():
    folder = make_dataset(TWO_CHANNELS)
    prepare("--nnunet", folder)

    assert prepare("--nnunet", folder, "--channels", "0", "--min-volume-mm3", "10").done == 1
    dataset = "Dataset001_Ab_T1w"  # the kidney has 2 voxels of 3.15 mm3
    assert files_of() == [f"liver/{dataset}/{kind}/a_1.nii.gz" for kind in ("imagesTr", "labelsTr")]


@pytest.mark.parametrize("flag", ["--images", "--labels"])
def test_other_folder_with_files_of_one_name_and_size_is_worked_in(monkeypatch, flag):
    monkeypatch.setattr(ledger, "CLOCK_MARGIN_NS", 0)  # or the files would be too new to trust
    save("img/case 1.nii", np.zeros(SHAPE, np.uint8))
    save("seg/case 1.nii", _label())
    save("other/case 1.nii", np.ones(SHAPE, np.uint8))
    assert prepare_pairs().done == 1

    assert str(prepare_pairs(flag, "other")) == "done 1, skipped 0, failed 0"
    kind = "imagesTr" if flag == "--images" else "labelsTr"
    assert array_of(output("liver/MR_Ours", kind, "case 1")).all()


def test_moved_folder_is_known_by_its_content():
    folder = make_dataset()
    prepare("--nnunet", folder)
    before = state_of(TREE)
    moved = folder.rename(folder.name)

    assert str(prepare("--nnunet", moved)) == "done 0, skipped 1, failed 0"
    assert state_of(TREE) == before


def test_case_without_a_labelled_voxel_gives_nothing():
    summary = prepare("--nnunet", make_dataset(label=np.zeros(SHAPE, np.uint8)))

    assert str(summary) == "done 1, skipped 0, failed 0"
    assert files_of() == []


def test_file_of_another_origin_is_not_overwritten():
    folder = make_dataset()
    save(output("liver/Dataset001_Ab", "imagesTr"), _image())
    before = state_of(TREE)

    assert "not written by this step" in prepare("--nnunet", folder).failures[0]
    assert {k: v for k, v in state_of(TREE).items() if "manifest" not in k} == before


def test_several_workers_and_shards_give_the_same_tree():
    folder = make_dataset(TWO_CHANNELS, cases=("a_1", "a_2", "a_3"))
    prepare("--nnunet", folder, "--out", "whole")
    for shard in ("1/2", "2/2"):
        prepare("--nnunet", folder, "--out", "parts", "--shard", shard, "--workers", "2")

    tops = ("whole", "parts")
    whole, parts = ({k: Path(top, k).read_bytes() for k in files_of(top)} for top in tops)
    assert len(whole) == 24
    assert whole == parts
    whole, parts = (Path(top, "manifest_nnunet.csv").read_text() for top in tops)
    assert "Dataset001_Ab/a_1," in whole
    assert whole == parts


def test_dry_run_writes_nothing():
    plan = str(prepare("--nnunet", make_dataset(), "--dry-run"))

    assert "would do 1 cases" in plan
    assert not TREE.exists()


def test_tree_reads_as_the_challenge_s_does():
    prepare("--nnunet", make_dataset(TWO_CHANNELS), "--spacing", "1.5")

    cases = find_cases(path.parent for path in TREE.glob("*/*/labelsTr"))
    assert len(cases) == 4
    for case in cases:
        image, label = read_case(case)
        assert image.shape == label.shape == (13, 4, 4)
        assert set(np.unique(label.array)) == {0, 1}


def test_reallocate_leaves_the_cases_alone(make_case):
    prepare("--nnunet", make_dataset())
    make_case(Path("data/npz"), "CT_A_1")
    before = state_of(TREE)

    assert str(reallocate_all()) == "done 0, skipped 1, failed 0"
    assert {k: v for k, v in state_of(TREE).items() if "reallocate" not in k} == before


def test_pairs_of_one_name_belong_together_wherever_they_lie(capsys):
    save("img/deep/case 1.nii", _image())
    save("img/case 2.nii.gz", _image())
    save("seg/case 1.nii.gz", _label())

    assert str(prepare_pairs()) == "done 1, skipped 0, failed 0"
    assert "NOTE MR_Ours: 1 cases have an image and no label" in capsys.readouterr().err
    for organ, value in (("liver", 1), ("left_kidney", 2)):
        label = array_of(output(f"{organ}/MR_Ours", case_id="case 1"))
        np.testing.assert_array_equal(label, _label() == value)
        image = array_of(output(f"{organ}/MR_Ours", "imagesTr", "case 1"))
        np.testing.assert_array_equal(image, _image())


def test_label_without_image_and_two_files_of_a_case_are_failures():
    make_pairs()
    save("seg/case 2.nii.gz", _label())
    save("img/case 3.nii.gz", _image())
    save("seg/case 3.nii.gz", _label())
    save("seg/other/case 3.nii", _label())

    summary = prepare_pairs()

    assert str(summary) == "done 1, skipped 0, failed 2"
    assert "seg/case 2.nii.gz: has no image case 2.nii.gz" in summary.failures[0]
    assert "is one of 2 files" in summary.failures[1]


def test_instances_keep_their_numbers():
    label = np.zeros(SHAPE, np.int32)
    label[0, 0, :3] = (7, 300, 65535)
    make_pairs(label)
    prepare_pairs("--instances", classes=("1=tumor",))

    written = array_of(output("tumor/MR_Ours", case_id="case 1"))
    assert written.dtype == np.uint16
    np.testing.assert_array_equal(written, label)


def test_few_instances_are_uint16_too():
    make_pairs()
    prepare_pairs("--instances", classes=("1=tumor",))

    assert array_of(output("tumor/MR_Ours", case_id="case 1")).dtype == np.uint16


def test_hostile_file_name_is_listed_and_the_others_are_done():
    make_pairs()
    make_pairs(name="a\nb")

    summary = prepare_pairs()

    assert summary.done == 1
    assert r"a\nb.nii.gz" in summary.failures[0]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--classes", "1=liver", "1=spleen"], "Expected each once"),
        (["--dataset", "../b"], "--dataset is called '../b'"),
        (["--instances"], "only 1 with --instances"),
        (["--labels", "img"], "is given for images and for labels"),
        (["--channels", "0"], "--nnunet is not given"),
        (["--nnunet", "raw"], "--nnunet is given with --images"),
        (["--spacing", "1", "2"], "one number or three"),
        (["--spacing", "0"], r"--spacing is \[0.0\]"),
        (["--spacing", "nan"], r"--spacing is \[nan\]"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, found):
    make_pairs()

    with pytest.raises(InputError, match=found):
        prepare_pairs(*flags)


def test_no_source_and_empty_folders_are_refused():
    Path("img").mkdir()
    Path("img/readme.txt").touch()

    with pytest.raises(InputError, match="--nnunet is not given"):
        prepare()
    with pytest.raises(InputError, match=r"img: holds no \.nii\.gz or \.nii file"):
        prepare_pairs("--labels", "img")
    with pytest.raises(InputError, match=r"dataset\.json: no such file"):
        prepare("--nnunet", "raw/Dataset002_None")


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_resampled_label_stays_in_place_for_simpleitk(affine):
    shape = (12, 40, 36)
    label = np.zeros(shape, np.uint8)
    label[3:6, 10:22, 20:31] = 1
    save("img/r.nii.gz", label * 100, affine)
    save("seg/r.nii.gz", label, affine)
    prepare_pairs("--spacing", "1.5")

    centres = []
    for path in ("seg/r.nii.gz", output("liver/MR_Ours", case_id="r")):
        image = sitk.ReadImage(str(path))
        centre_zyx = np.argwhere(sitk.GetArrayFromImage(image)).mean(axis=0)
        centres.append(image.TransformContinuousIndexToPhysicalPoint(centre_zyx[::-1].tolist()))
    assert np.abs(np.subtract(*centres)).max() < 0.75  # half a new voxel
    assert set(np.unique(array_of(output("liver/MR_Ours", case_id="r")))) == {0, 1}
    assert len(np.unique(array_of(output("liver/MR_Ours", "imagesTr", "r")))) > 2  # linear


def test_resampling_to_the_spacing_that_is_there_changes_nothing():
    make_pairs()
    prepare_pairs("--spacing", *SPACING_XYZ)

    image = nib.load(output("liver/MR_Ours", "imagesTr", "case 1"))
    np.testing.assert_array_equal(image.affine, nib.load("img/case 1.nii.gz").affine)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).T, _image())


def test_class_that_resampling_loses_is_told_and_not_written():
    label = _label()
    label[label == 2] = 0
    label[0, 0, 0] = 2
    make_pairs(label)

    summary = prepare_pairs("--spacing", "3", "0.9", "5")

    assert summary.dropped == ["MR_Ours/case 1: left kidney: no voxel is left at this spacing"]
    assert {Path(path).parts[0] for path in files_of()} == {"liver"}


def test_instances_that_resampling_loses_are_counted():
    label = np.zeros(SHAPE, np.uint16)
    label[1:3, 1:5, 1:8], label[0, 0, 0] = 1000, 3
    make_pairs(label)

    summary = prepare_pairs("--instances", "--spacing", "3", classes=("1=tumor",))

    assert "1 of 2 instances: no voxel is left" in summary.dropped[0]
    assert set(np.unique(array_of(output("tumor/MR_Ours", case_id="case 1")))) == {0, 1000}


def test_too_fine_a_spacing_is_a_failure_of_the_case():
    make_pairs()

    summary = prepare_pairs("--spacing", "0.0001")

    assert "choose a larger --spacing" in summary.failures[0]
    assert files_of() == []


def test_help_is_the_manual_and_failures_give_exit_code_1():
    manual = run_script("utils/preparation/nnunet.py", "--help")
    failed = run_script("utils/preparation/nnunet.py", "--nnunet", "raw/none")

    for part in ("Reads", "Writes", "--workers", "python -m utils.preparation.nnunet --nnunet"):
        assert part in manual.stdout
    assert failed.returncode == 1
    assert failed.stderr.startswith("InputError: raw/none/dataset.json: no such file")


def test_other_data_sets_are_no_orphans_of_this_run(capsys):
    prepare("--nnunet", make_dataset(TWO_CHANNELS))
    other = make_dataset(TWO_CHANNELS, name="Dataset002_Cd")
    prepare("--nnunet", other, "--prune")

    assert "NOTE" not in capsys.readouterr().err
    assert len({path.parent.parent.name for path in Path("data").rglob("*.gz")}) == 4
