"""The check of a prepared tree: each thing that can be wrong in it is found, alone and by name."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import CLASSES, categorize_all, state_of

from utils.cases.label_table import DatasetLabels, LabelTable
from utils.errors import InputError
from utils.files.nifti import write_nifti
from utils.preparation.check_tree import Kind, TreeFault, check_tree
from utils.volumes.geometry import affine_from_spacing

SHAPE = (4, 6, 9)
AFFINE = affine_from_spacing((0.7, 0.9, 5.0))
DATASETS = {
    "CT_A": DatasetLabels({1: "Left Lung", 2: "Liver"}, instance=False),
    "CT_A_tumor": DatasetLabels({1: "Tumor"}, instance=True),
}
TABLE = LabelTable(Path("CVPR25.json"), DATASETS)


def voxels(seed, dtype=np.uint8, high=2):
    """Random voxels; two seeds never give the same."""
    return np.random.default_rng(seed).integers(0, high, SHAPE).astype(dtype)


def file(folder, case_id, kind="labelsTr"):
    """The file of a case in an ``organ/data set`` folder of the tree."""
    return Path("tree", folder, kind, f"{case_id}.nii.gz")


def image(folder, case_id):
    return file(folder, case_id, "imagesTr")


LIVER = file("liver/CT_A", "CT_A_1")
TUMOR = file("tumor/CT_A_tumor", "CT_A_tumor_1")


def add_pair(folder, case_id, label, scan, affine=AFFINE):
    """Write a case; ``scan`` is an array, or an image to link."""
    write_nifti(file(folder, case_id), label, affine)
    if isinstance(scan, Path):
        image(folder, case_id).parent.mkdir(parents=True, exist_ok=True)
        os.link(scan, image(folder, case_id))
    else:
        write_nifti(image(folder, case_id), scan, affine)


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    """A clean tree: two cases of lung and liver that share images, and one of instances."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        add_pair("left_lung/CT_A", f"CT_A_{number}", voxels(number), voxels(9 + number, high=99))
        scan = image("left_lung/CT_A", f"CT_A_{number}")
        add_pair("liver/CT_A", f"CT_A_{number}", voxels(5 + number), scan)
    instances = voxels(20, np.uint16, 400)
    add_pair("tumor/CT_A_tumor", "CT_A_tumor_1", instances, voxels(21, np.float32, 999))
    return Path("tree")


def check(table=TABLE):
    """Check the tree, which this leaves as it was."""
    before = state_of("tree")
    report = check_tree(Path("tree"), table, map)
    assert state_of("tree") == before
    assert report.exit_code == bool(report.faults)
    return report


def found(table=TABLE):
    return [(fault.kind, fault.path) for fault in check(table).faults]


def message(table=TABLE):
    """The message of the one fault."""
    (fault,) = check(table).faults
    return fault.message


def test_clean_tree_has_no_faults_and_is_counted():
    report = check()

    assert report.faults == []
    assert report.exit_code == 0
    assert report.totals == {
        "organs": 3,
        "data sets": 2,
        "cases": 3,
        "labels": 5,
        "instance labels": 1,
        "images (distinct files)": 3,
        "voxels read": 8 * np.prod(SHAPE),  # five labels, and each image once
    }


def test_what_the_scripts_keep_in_the_tree_belongs_there(tree):
    for name in (".records/categorize/CT_A_1.json", ".lock-3", "manifest_categorize.csv"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")

    assert found() == []


def test_label_without_image_is_found():
    image("liver/CT_A", "CT_A_1").unlink()

    assert found() == [(Kind.MISSING_IMAGE, LIVER)]


def test_image_without_label_is_found():
    LIVER.unlink()

    assert found() == [(Kind.MISSING_LABEL, image("liver/CT_A", "CT_A_1"))]


@pytest.mark.parametrize(
    ("shape", "affine", "shown"),
    [
        ((5, 6, 9), AFFINE, "(5, 6, 9)"),
        (SHAPE, affine_from_spacing((0.7, 0.9, 3.0)), "(3, 0.9, 0.7) mm"),
        (SHAPE, AFFINE + np.eye(4, k=3), "origin or direction of the axes do not"),
    ],
    ids=["shape", "spacing", "origin"],
)
def test_label_on_another_grid_is_found_and_both_grids_are_shown(shape, affine, shown):
    write_nifti(LIVER, np.resize(voxels(6), shape), affine)

    assert found() == [(Kind.GRID_MISMATCH, LIVER)]
    assert shown in message()
    assert "label liver/CT_A/labelsTr/CT_A_1.nii.gz shape (D, H, W)" in message()
    assert "image liver/CT_A/imagesTr/CT_A_1.nii.gz shape (D, H, W) (4, 6, 9)" in message()


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (voxels(6) * 3, "values up to 3, expected 0 and 1"),
        (voxels(6, np.uint16) * 300, "values up to 300, expected 0 and 1"),
        (voxels(6, np.float32) / 2, "fractions, 0.5 among them"),
        (voxels(6, np.int16) - 1, "negative values, -1 the lowest"),
    ],
)
def test_label_with_other_values_than_0_and_1_is_found(label, shown):
    write_nifti(LIVER, label, AFFINE)

    assert found() == [(Kind.NOT_BINARY, LIVER)]
    assert shown in message()


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (voxels(20, np.uint8, 200), "instances in uint8, expected uint16"),
        (voxels(20, np.float32, 200), "instances in float32, expected uint16"),
        (voxels(20, np.float32) / 2, "fractions"),
        (voxels(20, np.int16) - 1, "negative values"),
    ],
)
def test_instance_label_that_is_not_uint16_numbers_is_found(label, shown):
    write_nifti(TUMOR, label, AFFINE)

    assert found() == [(Kind.NOT_BINARY, TUMOR)]
    assert shown in message()


@pytest.mark.parametrize("table", [None, LabelTable(Path("other.json"), {})])
def test_data_set_that_the_table_does_not_know_numbers_instances_if_it_is_uint16(table):
    assert found(table) == []
    assert check(table).totals["instance labels"] == 1

    write_nifti(TUMOR, voxels(20, np.uint8, 200), AFFINE)

    assert found(table) == [(Kind.NOT_BINARY, TUMOR)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_empty_label_is_found(dtype):
    write_nifti(LIVER, np.zeros(SHAPE, dtype), AFFINE)

    assert found() == [(Kind.EMPTY_LABEL, LIVER)]


def test_empty_labels_of_one_image_are_no_duplicates():
    empty = np.zeros(SHAPE, np.uint8)
    write_nifti(LIVER, empty, AFFINE)
    add_pair("liver/CT_A", "CT_A_3", empty, image("liver/CT_A", "CT_A_1"))

    assert [kind for kind, _ in found()] == [Kind.EMPTY_LABEL] * 2


def damaged(content, how):
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "last byte": content[:-1],
        "checksum": content[:-8] + bytes([content[-8] ^ 1]) + content[-7:],
        "voxels": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "text": b"not found",
    }[how]


@pytest.mark.parametrize("how", ["truncated", "last byte", "checksum", "voxels", "empty", "text"])
@pytest.mark.parametrize("kind", ["imagesTr", "labelsTr"])
def test_damaged_file_is_found(how, kind):
    path = file("tumor/CT_A_tumor", "CT_A_tumor_1", kind)
    path.write_bytes(damaged(path.read_bytes(), how))

    assert found() == [(Kind.UNREADABLE, path)]


def test_damaged_image_that_organs_share_is_found_once():
    first = image("left_lung/CT_A", "CT_A_1")
    first.write_bytes(first.read_bytes()[:50])

    assert found() == [(Kind.UNREADABLE, first)]


def test_broken_links_and_pipes_are_unreadable_and_do_not_block():
    to_nothing, to_itself = image("left_lung/CT_A", "CT_A_1"), image("liver/CT_A", "CT_A_1")
    for path in (to_nothing, to_itself, LIVER):
        path.unlink()
    to_nothing.symlink_to("nothing")
    to_itself.symlink_to(to_itself.name)
    os.mkfifo(LIVER)

    assert found() == [(Kind.UNREADABLE, path) for path in (to_nothing, to_itself, LIVER)]


def test_file_of_more_than_max_voxels_is_unreadable():
    write_nifti(LIVER, np.ones((5, 6, 9), np.uint8), AFFINE)
    Path("CVPR25.json").write_text(json.dumps(CLASSES))

    report = categorize_all("--check", "tree", "--max-voxels", str(np.prod(SHAPE)))

    assert [fault.path for fault in report.faults] == [LIVER]
    assert "has 270 voxels. Expected at most 216" in report.faults[0].message


def test_folder_that_cannot_be_listed_is_found(tree, monkeypatch):
    closed, scandir = tree / "tumor/CT_A_tumor", os.scandir

    def refuse(folder):
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)

    assert check_tree(tree, TABLE, map).faults == [
        TreeFault(Kind.UNREADABLE, closed, "cannot be listed: Permission denied")
    ]


@pytest.mark.parametrize(
    ("dataset", "case_id"), [("CT_A", "CT_A_3"), ("CT_B", "CT_B_1"), ("CT_B", "CT_A_1")]
)
def test_target_of_one_organ_under_two_names_is_one_duplicate(dataset, case_id):
    add_pair(f"liver/{dataset}", case_id, voxels(6), voxels(10, high=99))

    assert found() == [(Kind.DUPLICATE, file(f"liver/{dataset}", case_id))]
    assert "the same voxels as liver/CT_A/labelsTr/CT_A_1.nii.gz and its image" in message()


@pytest.mark.parametrize("case_id", ["CT_B_1", "CT_A_1"])
@pytest.mark.parametrize(
    ("folder", "label", "scan", "affine"),
    [
        ("kidney/CT_B", 6, 10, AFFINE),
        ("liver/CT_B", 30, 10, AFFINE),
        ("liver/CT_B", 6, 31, AFFINE),
        ("liver/CT_B", 6, 10, np.eye(4)),
        ("liver/CT_B", 6, 10, 2 * AFFINE),
    ],
    ids=["organ", "label", "image", "grid", "voxel size"],
)
def test_target_that_differs_in_one_thing_is_no_duplicate(folder, case_id, label, scan, affine):
    add_pair(folder, case_id, voxels(label), voxels(scan, high=99), affine)

    assert found() == []


def test_targets_whose_images_cannot_be_read_are_not_compared():
    for case_id in ("CT_B_1", "CT_B_2"):
        add_pair("liver/CT_B", case_id, voxels(6), voxels(10))
        image("liver/CT_B", case_id).write_bytes(b"")

    assert [kind for kind, _ in found()] == [Kind.UNREADABLE] * 2


def test_image_that_data_sets_share_is_counted_and_no_fault():
    add_pair("kidney/CT_B", "CT_B_1", voxels(30), image("liver/CT_A", "CT_A_1"))
    add_pair("liver/CT_C", "CT_C_1", voxels(31), voxels(10, high=99))  # a copy, not a link
    add_pair("liver/CT_C", "CT_C_2", voxels(32), voxels(11, high=99))

    report = check()

    assert report.faults == []
    assert report.totals["images shared by 3 cases"] == 1
    assert report.totals["images shared by 2 cases"] == 1
    assert report.totals["images (distinct files)"] == 5


FILES_OUT_OF_PLACE = """
    .tmp-0123abcd-manifest.csv  notes.txt  CT_A_1.nii.gz
    liver/.tmp-0123abcd  liver/CT_A_1.nii.gz
    liver/CT_A/CT_A_1.nii.gz  liver/CT_A/manifest.csv
    liver/CT_A/labelsTr/.tmp-0123abcd-CT_A_1.nii.gz  liver/CT_A/labelsTr/.hidden.nii.gz
    liver/CT_A/labelsTr/CT_A_1.nii  liver/CT_A/imagesTr/CT_A_1.npz
"""
FOLDERS_OUT_OF_PLACE = """
    heart  liver/CT_B  liver/.CT_B  liver/CT_A/labelsTs
    liver/CT_A/labelsTr/CT_A_3  liver/CT_A/labelsTr/CT_A_3.nii.gz
"""


@pytest.mark.parametrize("name", FILES_OUT_OF_PLACE.split())
def test_file_out_of_place_is_stray(tree, name):
    (tree / name).write_text("")

    assert found() == [(Kind.STRAY, tree / name)]


@pytest.mark.parametrize("name", FOLDERS_OUT_OF_PLACE.split())
def test_folder_that_is_empty_or_out_of_place_is_stray(tree, name):
    (tree / name).mkdir()

    assert found() == [(Kind.STRAY, tree / name)]


def test_data_set_of_empty_folders_is_one_stray(tree):
    for kind in ("imagesTr", "labelsTr"):
        (tree / "heart/CT_B" / kind).mkdir(parents=True)

    assert found() == [(Kind.STRAY, tree / "heart/CT_B")]


@pytest.mark.parametrize("name", ["loop", "liver/loop", "liver/CT_B"])
@pytest.mark.parametrize("target", [".", "tree", "tree/liver/CT_A"])
def test_link_that_leads_back_into_the_tree_is_stray(tree, name, target):
    (tree / name).symlink_to(Path(target).absolute())

    assert found() == [(Kind.STRAY, tree / name)]


def test_data_set_on_another_disk_may_be_linked(tree):
    (tree / "liver/CT_A").rename("elsewhere")
    (tree / "liver/CT_A").symlink_to(Path("elsewhere").absolute())

    assert check().totals["labels"] == 5
    assert found() == []


def test_all_faults_are_printed_by_kind_and_path_between_the_counts_and_the_totals(tree):
    for number in (2, 1):
        image("liver/CT_A", f"CT_A_{number}").unlink()
    (tree / os.fsdecode(b"\xff.txt")).write_text("")

    counts, faults, totals = str(check()).split("\n\n")

    assert [line.split()[-1] for line in counts.splitlines()] == list("00020010")
    assert faults.splitlines()[:3] == [
        "findings: 3",
        "missing image  liver/CT_A/labelsTr/CT_A_1.nii.gz: has no image: run reallocate.py",
        "missing image  liver/CT_A/labelsTr/CT_A_2.nii.gz: has no image: run reallocate.py",
    ]
    assert faults.splitlines()[3].startswith("stray          \\udcff.txt: file out of place")
    assert totals.startswith("organs ")


def test_every_finding_takes_one_line():
    image("liver/CT_A", "CT_A_1").write_bytes(b"")
    write_nifti(TUMOR, np.ones((1, 1, 1), np.uint16), AFFINE)

    _, faults, _ = str(check()).split("\n\n")

    assert [line[:13] for line in faults.splitlines()[1:]] == ["grid mismatch", "unreadable   "]


def test_work_can_be_sent_to_other_processes_and_come_back_in_any_order(tree):
    image("liver/CT_A", "CT_A_1").unlink()
    file("left_lung/CT_A", "CT_A_2").unlink()

    def elsewhere(function, items):
        function, items = pickle.loads(pickle.dumps((function, items)))
        return pickle.loads(pickle.dumps([function(item) for item in reversed(items)]))

    assert str(check_tree(tree, TABLE, elsewhere)) == str(check())


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        ("nowhere", "nowhere: holds no label; nowhere: cannot be listed: No such file"),
        ("empty", r"empty: holds no label\.\nExpected <organ>"),
        ("tree/liver", "tree/liver: holds no label; .*CT_A/imagesTr/CT_A_1.nii.gz: file out of"),
    ],
)
def test_folder_without_labels_is_refused_with_what_was_found_instead(folder, shown):
    Path("empty").mkdir()

    with pytest.raises(InputError, match=shown):
        check_tree(Path(folder), TABLE, map)
