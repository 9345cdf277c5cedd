"""Prepared trees of unknown origin: no record and no link makes a step touch a user's file."""

import contextlib
import csv
import json
import os
import shutil
from pathlib import Path
from zlib import crc32

import pytest
from preparation_helpers import (
    LIVER,
    categorize_all,
    classify_all,
    output,
    prepare_all,
    prepare_before,
    reallocate_all,
)

from utils.errors import InputError
from utils.files.lock import FolderInUseError, owned
from utils.preparation.records import is_place
from utils.preparation.shards import owned_shard

pytestmark = pytest.mark.usefixtures("workplace")
NPZ = Path("data/npz")
CLASSIFIED = Path("data/classified")
TREE = Path("data/medical_preprocessed")
RECORD = CLASSIFIED / ".records/classify/CT_A_1.json"
PRECIOUS = b"precious"
STATE = [len(PRECIOUS), crc32(PRECIOUS)]  # the right bytes and CRC-32 of the user's file

OUTSIDE = ["../../victim", "../victim", "CT_A/../../../victim", ".records/../../../victim"]
INSIDE = ["notes.txt", "CT_A/notes.txt", "CT_A/CT_A_2.nii.gz", "CT_A/deep/CT_A_1.nii.gz", ".hidden"]


@pytest.fixture
def victim(workplace):
    """A file of the user's beside the tree."""
    path = workplace / "victim"
    path.write_bytes(PRECIOUS)
    return path


def change(path, to=None, **fields):
    content = json.loads(path.read_text()) | fields
    (to or path).write_text(json.dumps(content))


@pytest.mark.parametrize("state", [None, STATE], ids=["no state", "right state"])
@pytest.mark.parametrize("name", [*OUTSIDE, *INSIDE, "absolute"])
@pytest.mark.parametrize("prune", [False, True], ids=["again", "prune"])
def test_file_that_the_step_never_writes_outlives_a_record_that_lists_it(
    make_case, workplace, capsys, name, state, prune
):
    make_case(NPZ, "CT_A_1")
    classify_all()
    name = str(workplace / "victim") if name == "absolute" else name
    victim = CLASSIFIED / name
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_bytes(PRECIOUS)
    record = RECORD.with_name("CT_A_9.json") if prune else RECORD
    outputs = json.loads(RECORD.read_text())["outputs"] | {name: state}
    change(RECORD, record, case_id=record.stem, settings={"other": 1}, outputs=outputs)

    classify_all(*["--prune"] * prune)

    assert victim.read_bytes() == PRECIOUS
    assert f"NOTE {record}: counts as no record: it lists" in capsys.readouterr().err


def test_record_of_another_case_counts_as_none(make_case, workplace, capsys):
    """Its case id would lead to a file that a plain run deletes with the failed case's record."""
    make_case(NPZ, "CT_A_1")
    classify_all()
    victim = workplace / "victim.json"
    victim.write_bytes(PRECIOUS)
    forged = RECORD.with_name("CT_A_8.json")
    id_outside = "../../../../victim"
    change(RECORD, forged, case_id=id_outside, outcome="failed", outputs={}, sources={})

    classify_all()

    assert victim.read_bytes() == PRECIOUS
    assert f"NOTE {forged}: counts as no record: it is the record of another" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("link", ["liver", "liver/CT_A", "liver/CT_A/labelsTr"])
@pytest.mark.parametrize("prune", [False, True], ids=["again", "prune"])
def test_file_behind_a_link_out_of_the_tree_is_kept(make_case, workplace, link, prune):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    prepare_all()
    outside = workplace / "elsewhere"
    (TREE / link).rename(outside)
    (TREE / link).symlink_to(outside)
    label = output(LIVER).read_bytes()
    if prune:
        (CLASSIFIED / "CT_A/CT_A_1.nii.gz").unlink()
        summary = categorize_all("--prune")
    else:
        summary = categorize_all("--min-side-mm", "100")
        assert "behind a link that leads out of" in summary.failures[0]

    assert output(LIVER).read_bytes() == label


@pytest.mark.parametrize("link", [".records", ".records/classify"])
def test_records_behind_a_link_are_refused(make_case, workplace, link):
    make_case(NPZ, "CT_A_1")
    classify_all()
    (CLASSIFIED / link).rename(workplace / "elsewhere")
    (CLASSIFIED / link).symlink_to(workplace / "elsewhere")

    with pytest.raises(InputError, match=f"{CLASSIFIED / link}: is a link"):
        classify_all("--prune")


def test_table_of_the_user_in_the_manifests_place_is_kept(make_case):
    make_case(NPZ, "CT_A_1")
    manifest = CLASSIFIED / "manifest_classify.csv"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("patient,age\n1,60\n")

    with pytest.raises(InputError, match="is not the manifest of this step"):
        classify_all()
    assert manifest.read_text() == "patient,age\n1,60\n"


def test_file_put_in_the_place_of_a_killed_runs_output_outlives_a_prune(make_case, capsys):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    classify_all()
    place = CLASSIFIED / "CT_A/CT_A_1.nii.gz"
    change(RECORD, outcome="begun", outputs={"CT_A/CT_A_1.nii.gz": None})
    place.write_bytes(PRECIOUS)
    (NPZ / "CT_A_1.npz").unlink()

    classify_all("--prune")

    assert place.read_bytes() == PRECIOUS
    assert "KEPT CT_A_1: CT_A/CT_A_1.nii.gz" in capsys.readouterr().err
    assert not RECORD.exists()


@pytest.mark.parametrize(
    ("name", "case_id", "is_one"),
    [
        ("liver/CT_A/labelsTr/x.nii.gz", "CT_A/x", True),
        ("left lung/CT_A/labelsTr/x[1]*.nii.gz", "CT_A/x[1]*", True),
        ("liver/CT_A/labelsTr/x1.nii.gz", "CT_A/x[1]", False),
        ("liver/CT_A/labelsTr/y.nii.gz", "CT_A/x", False),
        ("liver/CT_B/labelsTr/x.nii.gz", "CT_A/x", False),
        ("liver/CT_A/imagesTr/x.nii.gz", "CT_A/x", False),
        ("a/b/CT_A/labelsTr/x.nii.gz", "CT_A/x", False),
        ("../CT_A/labelsTr/x.nii.gz", "CT_A/x", False),
        ("/CT_A/labelsTr/x.nii.gz", "CT_A/x", False),
        (".git/CT_A/labelsTr/x.nii.gz", "CT_A/x", False),
        ("li\nver/CT_A/labelsTr/x.nii.gz", "CT_A/x", False),
        ("\udc80/CT_A/labelsTr/x.nii.gz", "CT_A/x", False),
    ],
)
def test_only_the_steps_own_names_of_the_case_are_places(name, case_id, is_one):
    assert is_place(name, case_id, ["*/{dataset}/labelsTr/{case}.nii.gz"]) == is_one


def test_second_run_on_a_tree_is_refused_while_the_first_works(make_case):
    make_case(NPZ, "CT_A_1")
    classify_all()
    make_case(NPZ, "CT_A_2")

    with owned_shard(CLASSIFIED / ".records/classify", "1/1"):
        with pytest.raises(FolderInUseError, match="is in use by process"):
            classify_all()
        with pytest.raises(FolderInUseError):
            classify_all("--shard", "1/2")
        assert "nothing was written" in str(classify_all("--dry-run"))
    assert classify_all().done == 1


def test_shards_of_one_number_run_side_by_side(make_case):
    records = TREE / ".records/categorize"

    with owned_shard(records, "1/2"):
        with owned_shard(records, "2/2"):
            pass
        with pytest.raises(FolderInUseError), owned_shard(records, "1/3"):
            pass
    with owned_shard(records, "1/3"):
        pass


def test_locks_are_no_part_of_a_tree(make_case):
    make_case(NPZ, "CT_A_1")
    prepare_all()
    with contextlib.ExitStack() as stack:
        stack.enter_context(owned(TREE))
        report = categorize_all("--check", str(TREE))

    assert (report.exit_code, report.faults) == (0, [])


@pytest.mark.parametrize("step", [classify_all, categorize_all, reallocate_all])
def test_case_that_a_defect_stops_is_named_and_the_others_are_done(
    make_case, monkeypatch, capsys, step
):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    prepare_before(step)
    _fail_at(monkeypatch, step, "CT_A_1", KeyError("a defect"))

    summary = step()

    assert (summary.done, summary.exit_code) == (1, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "CT_A_1" in line]
    assert len(lines) == 1
    assert "a defect of this program, KeyError: 'a defect'" in lines[0]
    trace = Path(lines[0].rpartition("traceback in ")[2]).read_text()
    assert "KeyError: 'a defect'" in trace
    assert "Traceback (most recent call last)" in trace


@pytest.mark.parametrize("step", [classify_all, categorize_all, reallocate_all])
def test_case_without_memory_is_named_and_the_others_are_done(make_case, monkeypatch, step):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    prepare_before(step)
    _fail_at(monkeypatch, step, "CT_A_1", MemoryError("Unable to allocate 3 GiB"))

    summary = step()

    assert (summary.done, summary.exit_code) == (1, 1)
    assert "CT_A_1: there is too little memory (Unable to allocate 3 GiB)" in summary.failures[0]


def _fail_at(monkeypatch, step, case_id, error):
    """Make the step's own work on one case raise."""
    module = {classify_all: "classify", categorize_all: "categorize", reallocate_all: "reallocate"}
    name = module[step]
    work = getattr(__import__(name), f"{name}_case")

    def broken(job, entry, **options):
        if job.case_id.endswith(case_id):
            raise error
        return work(job, entry, **options)

    monkeypatch.setattr(f"{name}.{name}_case", broken)


def test_plan_that_a_defect_stops_is_the_failure_of_its_case(make_case, monkeypatch):
    for number in (1, 2):
        make_case(NPZ, f"CT_A_{number}")
    of_two = {NPZ / "CT_A_2.npz": NPZ / "CT_A_2.npz"}
    monkeypatch.setattr("classify.file_of", lambda files, role: of_two[files[0]])

    summary = classify_all()

    assert (summary.done, summary.exit_code) == (1, 1)
    assert summary.failures[0].startswith("CT_A_1: a defect of this program, KeyError")


def test_cells_that_a_spreadsheet_would_run_are_text_in_the_manifest(make_case):
    Path("CVPR25.json").write_text(json.dumps({"=cmd": {"1": "-Liver", "instance_label": 1}}))
    make_case(NPZ, "=cmd_1")
    classify_all()

    with (CLASSIFIED / "manifest_classify.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["case"] == "'=cmd_1"
    assert row["data_set"] == "'=cmd"
    assert row["source"] == "'=cmd_1.npz"
    assert row["outputs"] == "'=cmd/=cmd_1.nii.gz"
    assert int(row["bytes"]) == os.stat(NPZ / "=cmd_1.npz").st_size


def test_tree_copied_from_elsewhere_is_read_again_in_full(make_case, workplace):
    """Its records have the inodes and times of another disk."""
    make_case(NPZ, "CT_A_1")
    classify_all()
    shutil.copytree("data", "copied")

    flags = ("--labels", "copied/npz", "--out", "copied/classified")
    assert str(classify_all(*flags)) == "done 0, skipped 1, failed 0"
