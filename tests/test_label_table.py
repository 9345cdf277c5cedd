"""The class file: schema, data set of a case, organ folders, and our copy of the challenge's."""

import json
import time
from pathlib import Path

import pytest

from utils.cases.label_table import (
    LabelTableError,
    is_ct,
    modality_of,
    organ_slug,
    read_label_table,
)

CHALLENGE = Path(__file__).parent.parent / "CVPR25.json"


def table_of(tmp_path, content):
    path = tmp_path / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_label_table(path)


def one_class(name="Liver", instance_label=0):
    return {"1": [name], "instance_label": instance_label}


def test_name_may_stand_alone_or_lead_a_list_of_prompts(tmp_path):
    entry = {"1": "Liver", "3": ["Right kidney", "Kidney in CT"], "instance_label": 0}

    labels = table_of(tmp_path, {"CT_A": entry}).labels_of("CT_A")

    assert labels.classes == {1: "Liver", 3: "Right kidney"}
    assert labels.organs == {1: "liver", 3: "right_kidney"}
    assert not labels.instance


@pytest.mark.parametrize(
    ("case_id", "dataset"),
    [
        ("CT_TotalSeg_organs_s0001", "CT_TotalSeg_organs"),
        ("CT_TotalSeg_s0001", "CT_TotalSeg"),
        ("CT_TotalSeg", "CT_TotalSeg"),
    ],
)
def test_longest_prefix_decides(tmp_path, case_id, dataset):
    keys = ("CT_TotalSeg", "CT_TotalSeg_organs", "organs")
    table = table_of(tmp_path, {key: one_class() for key in keys})

    assert table.dataset_of(case_id) == dataset


def test_key_inside_a_name_is_no_match(tmp_path):
    table = table_of(tmp_path, {"AMOS": one_class()})

    with pytest.raises(LabelTableError, match=r"CT_AMOS_1: starts with no data set of .*AMOS"):
        table.dataset_of("CT_AMOS_1")


@pytest.mark.parametrize("key", ["CT_AbdomenCT1K", "CT_Abdomen1K"])
def test_both_published_spellings_name_one_data_set(tmp_path, key):
    table = table_of(tmp_path, {key: one_class()})

    assert table.dataset_of("CT_AbdomenCT1K_0001") == key
    assert table.dataset_of("CT_Abdomen1K_0001") == key


@pytest.mark.parametrize(
    ("name", "modality"),
    [("CT_AMOS", "CT"), ("MR_Heart_ACDC_0001", "MR"), ("Microscopy_x", "Microscopy"), ("CT", "CT")],
)
def test_modality_is_what_stands_before_the_first_underscore(name, modality):
    assert modality_of(name) == modality


def test_a_modality_that_begins_with_ct_is_ct():
    assert [name for name in ("CT_AMOS", "CTA_x", "CT", "MR_CT_x", "C_T") if is_ct(name)] == [
        *("CT_AMOS", "CTA_x", "CT")
    ]


def test_the_challenge_s_modalities():
    names = {modality_of(key) for key in read_label_table(CHALLENGE).datasets}

    assert names == {"CT", "MR", "US", "Microscopy", "autoPET", "cremi", "nucmm"}


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Left gluteus Maximus", "left_gluteus_maximus"),
        ("Urinary_bladder", "urinary_bladder"),
        ("Soft tissue sarcoma (gross tumor volume)", "soft_tissue_sarcoma_gross_tumor_volume"),
        ("Alzheimer's disease  plaque", "alzheimer_s_disease_plaque"),
        ("../Disc C5/C6", "disc_c5_c6"),
    ],
)
def test_slug_is_lower_case_letters_digits_and_single_underscores(name, slug):
    assert organ_slug(name) == slug


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", r"holds \[1\]"),
        ("{}", r"holds \{\}"),
        ('{"A": {}, "A": {}}', "A is there twice"),
        ({"A": 3}, "data set 'A': holds 3"),
        ({"../A": one_class()}, "cannot be a folder's name"),
        ({"": one_class()}, "cannot be a folder's name"),
        ({"A": {"1": "Liver"}}, "'instance_label' is null"),
        ({"A": one_class(instance_label=2)}, "'instance_label' is 2"),
        ({"A": {"instance_label": 0}}, r"has the classes \[\]"),
        ({"A": {"2": "Tumor", "instance_label": 1}}, r"has the classes \[2\]"),
        ({"A": {"0": "Background", "instance_label": 0}}, "'0' is not a label value"),
        ({"A": {"liver": "1", "instance_label": 0}}, "'liver' is not a label value"),
        ({"A": {"1": [], "instance_label": 0}}, r"class 1 holds \[\]"),
        ({"A": one_class(name="?!")}, "holds no letter or digit"),
        (
            {"A": {"1": "Left Lung", "2": "left_lung", "instance_label": 0}},
            "class 1 'Left Lung' and class 2 'left_lung' would share the folder 'left_lung'",
        ),
    ],
)
def test_malformed_class_file_is_refused_with_the_entry(tmp_path, content, message):
    with pytest.raises(LabelTableError, match=rf"classes\.json.*{message}.*Expected"):
        table_of(tmp_path, content)


def test_missing_class_file_is_named(tmp_path):
    with pytest.raises(LabelTableError, match=r"no\.json: cannot be opened"):
        read_label_table(tmp_path / "no.json")


def test_challenge_table_has_its_56_data_sets_each_with_organs():
    table = read_label_table(CHALLENGE)

    assert len(table.datasets) == 56
    assert all(labels.organs for labels in table.datasets.values())
    assert table.labels_of("CT_AMOS").classes[6] == "Liver"
    assert table.labels_of("CT_LiverTumor").instance


def test_challenge_table_matches_every_key_to_itself():
    table = read_label_table(CHALLENGE)

    assert [table.dataset_of(f"{key}_0001") for key in table.datasets] == list(table.datasets)


@pytest.mark.parametrize("second", ["ct_a", "CT_a", "Ct_A"])
def test_data_sets_that_are_one_folder_elsewhere_are_refused_together(tmp_path, second):
    first, last = (f"'{key}'" for key in sorted(("CT_A", second)))

    with pytest.raises(LabelTableError, match=f"{first} and {last} would be one folder"):
        table_of(tmp_path, {"CT_A": one_class(), second: one_class()})


def test_data_sets_in_two_forms_of_one_letter_are_refused_together(tmp_path):
    with pytest.raises(LabelTableError, match="would be one folder"):
        table_of(tmp_path, {"CT_\u00e9": one_class(), "CT_e\u0301": one_class()})


@pytest.mark.parametrize("key", ["CON", "aux", "nul.1", "CT_A.", "CT_A ", "CT:A", "CT_A?", "a\nb"])
def test_data_set_that_cannot_be_a_folder_everywhere_is_refused(tmp_path, key):
    with pytest.raises(LabelTableError, match="cannot be a folder's name"):
        table_of(tmp_path, {key: one_class()})


def test_class_that_would_be_a_device_of_windows_is_refused(tmp_path):
    with pytest.raises(LabelTableError, match="keeps for a device"):
        table_of(tmp_path, {"CT_A": one_class() | {"2": "Con."}})


def test_classes_whose_folders_differ_in_case_folding_only_are_refused(tmp_path):
    with pytest.raises(LabelTableError, match=r"'straße' .* 'strasse' would share the folder"):
        table_of(tmp_path, {"CT_A": one_class() | {"2": "straße", "3": "strasse"}})


@pytest.mark.parametrize("twice", [False, True])
def test_time_of_a_large_class_file_grows_with_its_size(tmp_path, twice):
    """Four times the keys take about four times as long, and far less than sixteen times."""

    def seconds(count):
        entries = [f'"d{k % (count - twice)}": {json.dumps(one_class())}' for k in range(count)]
        path = tmp_path / f"{count}.json"
        path.write_text("{" + ", ".join(entries) + "}")
        started = time.process_time()
        try:
            table = read_label_table(path)
        except LabelTableError:
            assert twice
        else:
            assert [table.dataset_of(f"d{k}_x") for k in range(0, count, 9)][-1].startswith("d")
        return time.process_time() - started

    assert min(seconds(20_000) for _ in range(3)) < 10 * min(seconds(5_000) for _ in range(3))
