"""Names that are one file on macOS or Windows, and names that cannot be printed."""

import json
from pathlib import Path

import numpy as np
import pytest
from preparation_helpers import (
    CLASSES,
    LIVER,
    categorize_all,
    classify_all,
    output,
    prepare_all,
    reallocate_all,
)

from utils.cases.prepared import find_cases, require_usable_names
from utils.errors import InputError
from utils.files.names import colliding_names, collision_key, is_portable_folder
from utils.preparation.nnunet_sources import find_sources

pytestmark = pytest.mark.usefixtures("workplace")
NPZ = Path("data/npz")
TREE = Path("data/medical_preprocessed")
TWINS = [("CT_A_x", "CT_A_X"), ("CT_A_\u00e9", "CT_A_e\u0301"), ("CT_A_STRASSE", "CT_A_straße")]


@pytest.mark.parametrize(("first", "second"), TWINS)
def test_cases_that_are_one_file_elsewhere_fail_together_and_the_others_are_done(
    make_case, first, second
):
    for name in (first, second, "CT_A_1"):
        make_case(NPZ, name)

    summary = classify_all()

    assert (summary.done, summary.exit_code) == (1, 1)
    assert len(summary.failures) == 1
    assert all(ascii(name) in summary.failures[0] for name in (first, second))
    assert [path.name for path in Path("data").rglob("*.nii.gz")] == ["CT_A_1.nii.gz"]


@pytest.mark.parametrize("step", [categorize_all, reallocate_all])
def test_outputs_of_cases_that_are_refused_together_stay(make_case, step):
    make_case(NPZ, "CT_A_x")
    prepare_all()
    before = sorted(TREE.rglob("*.nii.gz"))
    if step is categorize_all:
        source = Path("data/classified/CT_A/CT_A_x.nii.gz")
        source.with_name("CT_A_X.nii.gz").write_bytes(source.read_bytes())
    else:
        source = output(LIVER, case_id="CT_A_x")
        source.with_name("CT_A_X.nii.gz").write_bytes(source.read_bytes())
        before.append(source.with_name("CT_A_X.nii.gz"))

    summary = step("--prune")

    assert "CT_A_X' and 'CT_A/CT_A_x' would be one file" in summary.failures[0]
    assert sorted(TREE.rglob("*.nii.gz")) == sorted(before)


def test_organs_that_are_one_folder_elsewhere_are_refused_together(make_case):
    make_case(NPZ, "CT_A_1")
    classify_all()
    categorize_all()
    other = output("Liver/CT_A")
    other.parent.mkdir(parents=True)
    other.write_bytes(output(LIVER).read_bytes())

    assert "organs 'Liver' and 'liver' would be one file or folder" in reallocate_all().failures[0]


def test_data_sets_of_a_tree_that_are_one_folder_elsewhere_are_refused_together(make_case):
    make_case(NPZ, "CT_A_1")
    classify_all()
    categorize_all()
    other = output("liver/ct_a", case_id="ct_a_1")
    other.parent.mkdir(parents=True)
    other.write_bytes(output(LIVER).read_bytes())
    make_case(NPZ, "ct_a_1")

    with pytest.raises(InputError, match="data sets 'CT_A' and 'ct_a' would be one"):
        reallocate_all()


def test_nnunet_folders_that_are_one_folder_elsewhere_are_refused_together():
    from utils.preparation.nnunet import parse_args

    for name in ("Dataset001_X", "dataset001_x"):
        for kind in ("imagesTr", "labelsTr"):
            Path(name, kind).mkdir(parents=True)
            Path(name, kind, "a_0000.nii.gz" if kind == "imagesTr" else "a.nii.gz").touch()
        content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
        Path(name, "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz"}))

    with pytest.raises(InputError, match="data sets 'Dataset001_X' and 'dataset001_x' would be"):
        find_sources(parse_args(["--nnunet", "Dataset001_X", "dataset001_x"]))


@pytest.mark.parametrize("name", ["CT_A_\n1", "CT_A_\x1b[31m", "CT_A_\u2028", "CT_A_\udcff"])
def test_name_with_control_characters_in_a_tree_is_refused_and_writes_no_line(
    make_case, capsys, name
):
    make_case(NPZ, "CT_A_1")
    classify_all()
    source = Path("data/classified/CT_A/CT_A_1.nii.gz")
    source.with_name(f"{name}.nii.gz").write_bytes(source.read_bytes())
    capsys.readouterr()

    summary = categorize_all()

    assert (summary.done, summary.exit_code) == (1, 1)
    assert "unprintable name" in summary.failures[0]
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1
    assert printed.rstrip("\n").isprintable()


def test_organ_folder_with_control_characters_is_refused(make_case):
    make_case(NPZ, "CT_A_1")
    classify_all()
    categorize_all()
    (TREE / "liver").rename(TREE / "li\nver")

    assert "an organ" in reallocate_all().failures[0]


def test_folder_with_a_line_end_forges_no_entry(make_case, capsys):
    make_case(NPZ / "x\nFAILED everything \x1b[2J", "CT_A_1", gts=np.full((4, 6, 9), -1))

    classify_all()

    printed = capsys.readouterr().err
    assert [line for line in printed.splitlines() if not line.startswith("  ")] == [
        "FAILED data/npz/x"
    ]
    assert "\x1b" not in printed


@pytest.mark.parametrize(("first", "second"), [*TWINS, ("a.", "a"), ("a ", "A")])
def test_names_of_one_file_have_one_spelling(first, second):
    assert collision_key(first) == collision_key(second)
    assert colliding_names([first, "other", second, first]) == [sorted([first, second])]


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("CT_A_1", "CT_A_2"), ("é", "e")])
def test_names_of_two_files_have_two_spellings(first, second):
    assert collision_key(first) != collision_key(second)
    assert colliding_names([first, second, first]) == []


@pytest.mark.parametrize("name", ["con", "COM1", "lpt9.x", "a.", "a ", ".a", "a:b", "a\tb", "", 3])
def test_name_that_is_no_folder_everywhere_is_not_portable(name):
    assert not is_portable_folder(name)


@pytest.mark.parametrize("name", [*CLASSES, "icon", "com", "COM10", "a b.c", "Leber_ß"])
def test_name_that_is_a_folder_everywhere_is_portable(name):
    assert is_portable_folder(name)


@pytest.mark.parametrize("names", [("a\n", "b"), ("CT_A/x", "ct_a/x"), ("é", "e\u0301")])
def test_cases_of_a_validation_need_names_that_are_printable_and_one_file_each(names):
    with pytest.raises(InputError, match=r"cannot be a case's name|would be one file"):
        require_usable_names(names)


def test_cases_of_prepared_folders_are_refused_together(tmp_path):
    for dataset in ("CT_A", "ct_a"):
        label = tmp_path / "liver" / dataset / "labelsTr" / "x.nii.gz"
        label.parent.mkdir(parents=True)
        label.touch()

    with pytest.raises(InputError, match="'liver/CT_A/x' and 'liver/ct_a/x' would be one file"):
        find_cases((tmp_path / "liver").iterdir())
