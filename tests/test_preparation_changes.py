"""Inputs, flags and outputs that change between runs: nothing stale, nothing of the user's lost."""

import json
import os
import shutil
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import (
    LIVER,
    LUNG,
    categorize_all,
    classify_all,
    output,
    prepare_all,
    reallocate_all,
    state_of,
)

import categorize
from utils.errors import InputError
from utils.files.atomic import TEMPORARY, atomic_path
from utils.files.nifti import read_nifti
from utils.files.npz import read_npz
from utils.files.npz_archive import NpzArchive

pytestmark = pytest.mark.usefixtures("workplace")
NPZ = Path("data/npz")
TREE = Path("data/medical_preprocessed")
DONE_1 = "done 1, skipped 0, failed 0"


def box(value, at=0):
    label = np.zeros((4, 6, 9), np.uint8)
    label[at, :3, :4] = value
    return label


def age_everything():
    """Let time pass: records are newer than the last change of their sources."""
    time.sleep(0.02)
    for record in Path("data").rglob(".records/**/*.json"):
        os.utime(record)


def test_folder_put_in_the_place_of_another_is_worked_in(make_case):
    """Renaming a folder changes neither time nor size of the files in it."""
    for folder, at in (("v1", 1), ("v2", 0)):
        image = np.full((4, 6, 9), at, np.uint8)
        arrays = {"imgs": image, "gts": box(2, at), "spacing": np.ones(3)}
        Path(folder).mkdir()
        np.savez(Path(folder, "CT_A_1.npz"), **arrays)  # not compressed: of one size
    Path("data").mkdir()
    Path("v1").rename(NPZ)
    prepare_all()
    age_everything()
    NPZ.rename("v1")
    Path("v2").rename(NPZ)

    assert prepare_all() == [DONE_1] * 3
    assert read_nifti(output(LIVER)).array[0].any()
    assert read_nifti(output(LIVER, "imagesTr")).array.max() == 0


def test_case_that_fails_leaves_no_label_of_its_earlier_content(make_case):
    make_case(NPZ, "CT_A_1")
    make_case(NPZ, "CT_A_2")
    prepare_all()
    make_case(NPZ, "CT_A_1", gts=np.full((4, 6, 9), 0.5), imgs=box(77))

    assert classify_all().exit_code == 1
    assert not Path("data/classified/CT_A/CT_A_1.nii.gz").exists()
    assert Path("data/classified/CT_A/CT_A_2.nii.gz").exists()


def test_image_that_fails_does_not_stay_beside_a_new_label(make_case):
    make_case(NPZ, "CT_A_1")
    prepare_all()
    image = np.zeros((4, 6, 9), np.float32)
    image[0, 0, 0] = np.nan
    make_case(NPZ, "CT_A_1", gts=box(2), imgs=image)

    assert [str(step()) for step in (classify_all, categorize_all)] == [
        "done 1, skipped 0, failed 0"
    ] * 2
    assert reallocate_all().exit_code == 1
    assert not output(LIVER, "imagesTr").exists()
    report = categorize.run(categorize.parse_args(["--check", str(TREE), "--workers", "1"]))
    assert [fault.kind.value for fault in report.faults] == ["missing image"]


def test_image_whose_npz_is_gone_fails_if_its_label_has_changed(make_case):
    make_case(NPZ, "CT_A_1")
    make_case(NPZ, "CT_A_2")
    prepare_all()
    age_everything()
    shutil.copytree(NPZ, "images")
    Path("images/CT_A_1.npz").unlink()

    assert str(reallocate_all("--images", "images")) == "done 0, skipped 2, failed 0"
    make_case(NPZ, "CT_A_1", gts=box(2, at=3))
    classify_all()
    categorize_all()
    assert "has no image" in reallocate_all("--images", "images").failures[0]


def test_cases_that_left_the_input_are_kept_with_a_note_or_pruned(make_case, capsys):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    prepare_all()
    (NPZ / "CT_A_1.npz").unlink()

    assert classify_all().done == 0
    assert "NOTE 1 cases of earlier runs are not in this input, CT_A_1" in capsys.readouterr().err
    assert Path("data/classified/CT_A/CT_A_1.nii.gz").exists()

    for step in (classify_all, categorize_all, reallocate_all):
        step("--prune")
    assert "REMOVED CT_A_1: CT_A/CT_A_1.nii.gz" in capsys.readouterr().err
    assert sorted(path.name for path in Path("data").rglob("CT_A_*.gz")) == ["CT_A_2.nii.gz"] * 5
    assert "CT_A_1" not in (TREE / "manifest_categorize.csv").read_text()


def test_pruning_keeps_what_was_edited(make_case):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    prepare_all()
    output(LIVER).write_bytes(b"mine")
    Path("data/classified/CT_A/CT_A_1.nii.gz").unlink()

    categorize_all("--prune")

    assert output(LIVER).read_bytes() == b"mine"
    assert not output(LUNG).exists()


def test_images_of_a_case_without_labels_go_with_them(make_case):
    make_case(NPZ, "CT_A_1")
    make_case(NPZ, "CT_A_2")
    prepare_all()
    make_case(NPZ, "CT_A_1", gts=np.zeros((4, 6, 9), np.uint8))
    prepare_all()

    assert sorted(path.name for path in TREE.rglob("*.gz")) == ["CT_A_2.nii.gz"] * 4


def test_edit_after_a_failure_is_not_overwritten(make_case):
    path = make_case(NPZ, "CT_A_1")
    prepare_all()
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    assert reallocate_all().exit_code == 1
    image = output(LUNG, "imagesTr")
    image.parent.mkdir(parents=True, exist_ok=True)
    image.unlink(missing_ok=True)
    image.write_bytes(b"drawn by hand")
    path.write_bytes(good)

    failures = reallocate_all().failures

    assert image.read_bytes() == b"drawn by hand"
    assert str(image) in failures[0]


def test_link_to_nothing_in_the_place_of_an_output_is_not_replaced(make_case):
    make_case(NPZ, "CT_A_1")
    classify_all()
    output(LIVER).parent.mkdir(parents=True)
    output(LIVER).symlink_to("/nowhere/mine.nii.gz")

    assert "not written by this step" in categorize_all().failures[0]
    assert output(LIVER).is_symlink()


def test_organ_folders_linked_to_one_another_are_refused(make_case):
    make_case(NPZ, "CT_A_1")
    classify_all()
    (TREE / "liver").mkdir(parents=True)
    (TREE / "left_lung").symlink_to("liver")

    assert "two outputs of CT_A/CT_A_1 would be one file" in categorize_all().failures[0]


def test_suffixed_files_do_not_hide_others_of_the_case(make_case):
    for folder, name in (("a", "CT_A_1"), ("b", "CT_A_1"), ("c", "CT_A_1_label")):
        make_case(NPZ / folder, name)

    assert "has 3 files for its label" in classify_all().failures[0]


def test_folder_that_is_not_utf8_is_no_trouble(make_case):
    folder = NPZ / os.fsdecode(b"\xff")
    make_case(folder, "CT_A_1")
    make_case(NPZ, "CT_A_2", gts=None)
    make_case(NPZ, "CT_A_3")

    assert str(classify_all()) == "done 2, skipped 0, failed 1"
    assert str(classify_all()) == "done 0, skipped 2, failed 1"
    assert "\\udcff/CT_A_1.npz" in Path("data/classified/manifest_classify.csv").read_text()


def test_manifest_names_the_label_of_two_files(make_case):
    make_case(Path("val"), "CT_A_1", gts=None)
    make_case(Path("gts/deep"), "CT_A_1", imgs=None, spacing=None)
    classify_all("--labels", "gts", "--images", "val")

    row = Path("data/classified/manifest_classify.csv").read_text().splitlines()[1]
    assert row.startswith("CT_A_1,CT_A,deep/CT_A_1.npz,")


@pytest.mark.parametrize("part", ["outputs", "sources", "found", "settings"])
def test_record_of_the_wrong_form_counts_as_none(make_case, part):
    make_case(NPZ, "CT_A_1")
    classify_all()
    path = Path("data/classified/.records/classify/CT_A_1.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: None}))

    assert "not written by this step" in classify_all().failures[0]


@pytest.mark.parametrize("step", [categorize_all, reallocate_all])
def test_shard_without_a_case_is_no_error(make_case, step):
    make_case(NPZ, "CT_A_1")
    shard = "1/2" if classify_all("--shard", "2/2", "--dry-run").plan.count("CT_A  ") else "2/2"

    assert str(classify_all("--shard", shard)) == "done 0, skipped 0, failed 0"
    assert str(step("--shard", shard)) == "done 0, skipped 0, failed 0"


def test_temporary_of_a_living_process_is_left_to_it(make_case):
    make_case(NPZ, "CT_A_1")
    with atomic_path(Path("data/classified/CT_A/CT_A_1.nii.gz")) as living:
        living.write_bytes(b"half")
        machine = TEMPORARY.match(living.name)[1]
        dead = living.with_name(f".tmp-{machine}-7ffffff0-12345678-CT_A_1.nii.gz")
        dead.write_bytes(b"half")
        classify_all()
        assert living.exists()
        assert not dead.exists()


def test_deflate_without_an_end_is_refused_not_carried_over(make_case):
    """NumPy reads it; a gzip file made of it would be unreadable."""
    path = make_case(NPZ, "CT_A_1")
    image = np.load(path)["imgs"]
    with zipfile.ZipFile(path) as archive:
        inflated = archive.read("imgs.npy")
    compress = zlib.compressobj(6, zlib.DEFLATED, -15)
    endless = compress.compress(inflated) + compress.flush(zlib.Z_SYNC_FLUSH)
    _replace_member(path, "imgs.npy", endless, inflated)

    assert np.array_equal(np.load(path)["imgs"], image)
    assert [str(step()) for step in (classify_all, categorize_all)] == [
        "done 1, skipped 0, failed 0"
    ] * 2
    assert "has no last deflate block" in reallocate_all().failures[0]
    assert not list(TREE.rglob("imagesTr/*.gz"))


def _replace_member(path, name, deflated, inflated):
    """Write the archive again with one member's deflated bytes as given."""
    with zipfile.ZipFile(path) as archive:
        others = {n: archive.read(n) for n in archive.namelist() if n != name}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for other, content in others.items():
            archive.writestr(other, content)
        archive.writestr(name, deflated)
        info = archive.getinfo(name)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(inflated)
        info.CRC = zipfile.crc32(inflated)
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, info.header_offset + 8, zipfile.ZIP_DEFLATED)
    struct.pack_into(
        "<III", content, info.header_offset + 14, info.CRC, len(deflated), len(inflated)
    )
    path.write_bytes(content)


def test_components_of_a_column_of_voxels_are_counted(make_case):
    label = np.zeros((4, 6, 9), np.uint8)
    label[[0, 2], 1, 1] = 1
    make_case(NPZ, "CT_A_1", gts=label)
    classify_all()

    assert "1 of 2 components, 1 of 2 voxels" in categorize_all("--keep-components", "1").dropped[0]


@pytest.mark.parametrize("scale", [1e-6, 1, 1e3])
def test_grids_are_compared_at_the_scale_of_their_voxels(make_case, scale):
    """Electron microscopy has voxels of nanometres."""
    make_case(NPZ, "CT_A_1", spacing=np.array([4, 4, 40]) * scale)
    classify_all()
    categorize_all()
    make_case(Path("images"), "CT_A_1", spacing=np.array([4.01, 4, 40]) * scale)

    assert "are on different grids" in reallocate_all("--images", "images").failures[0]
    assert reallocate_all().done == 1


def test_messages_stay_short_whatever_the_file_holds(make_case):
    make_case(NPZ, "CT_A_1", spacing=np.ones(100_000))
    make_case(NPZ, "CT_A_2", gts=np.arange(216).reshape(4, 6, 9))
    make_case(NPZ, "CT_A_3", spacing=(1e-320, 1, 1))

    messages = [*classify_all().failures, *categorize_all().failures]

    assert len(messages) == 3
    assert all(len(message) < 500 for message in messages)


def test_archive_of_hundreds_of_members_is_refused(make_case):
    arrays = {f"a{number}": np.zeros(1) for number in range(100)}
    make_case(NPZ, "CT_A_1", **arrays)

    assert "103 arrays" in classify_all().failures[0]


def test_tree_in_its_own_input_is_refused():
    from utils.preparation import nnunet

    Path("ct").mkdir()
    Path("ct/a.nii.gz").touch()
    flags = ["--images", "ct", "--labels", "ct2", "--dataset", "CT_X", "--classes", "1=liver"]
    shutil.copytree("ct", "ct2")

    with pytest.raises(InputError, match="lies in ct, which is read"):
        nnunet.run(nnunet.parse_args([*flags, "--out", "ct/tree"]))
    assert state_of("ct").keys() == {"ct/a.nii.gz"}


def test_limit_that_was_raised_holds_for_every_reading(make_case, monkeypatch):
    make_case(NPZ, "CT_A_1")
    monkeypatch.setattr(NpzArchive.__init__, "__defaults__", (8,))
    monkeypatch.setattr(read_npz, "__kwdefaults__", {"optional": (), "max_voxels": 8})

    assert str(classify_all("--max-voxels", "1000")) == DONE_1
    assert str(categorize_all()) == DONE_1
    assert str(reallocate_all("--max-voxels", "1000")) == DONE_1
