"""Every class has a group, and the groups split lesions by what training held."""

import json
from pathlib import Path

import pytest

from utils.cases.label_table import read_label_table
from utils.results import anatomy
from utils.results.anatomy import REPORT_GROUPS, group_of, report_group

ENTRIES = json.loads(Path(anatomy.__file__).with_suffix(".json").read_text("utf-8"))
ALL_ENTRIES = [entry for entries in ENTRIES.values() for entry in entries]
TABLE = read_label_table(Path(anatomy.__file__).parents[2] / "CVPR25.json")


@pytest.mark.parametrize("dataset", sorted(TABLE.datasets))
def test_every_class_of_the_challenge_has_an_entry(dataset):
    organs = TABLE.datasets[dataset].organs.values()
    assert [o for o in organs if not {o, f"{o}/{dataset}"} & set(ALL_ENTRIES)] == []


def test_no_organ_has_two_groups_and_every_group_is_reported():
    assert len(ALL_ENTRIES) == len(set(ALL_ENTRIES))
    assert set(ENTRIES) < set(REPORT_GROUPS)


@pytest.mark.parametrize(
    ("dataset", "organ", "group"),
    [
        ("CT_AMOS", "liver", "abdomen and thorax"),
        ("CT_TotalSeg_muscles", "left_femur", "bone"),
        ("CT_TotalSeg_muscles", "left_autochthon", "muscle"),
        ("CT_HaN-Seg", "optic_chiasm", "brain"),
        ("CT_AMOS", "aorta", "cardiac"),
        ("CT_AMOS", "left_adrenal_gland", "gland"),
        ("MR_BraTS-T1c", "enhancing_tissue", "lesion"),
        ("cremi", "synaptic_clefts", "other"),
    ],
)
def test_an_organ_has_the_group_that_a_reader_expects(dataset, organ, group):
    assert group_of(dataset, organ) == group


def test_a_data_set_can_mean_something_else_by_a_name():
    assert group_of("Microscopy_SELMA3D_vessel", "vessel") == "other"
    assert group_of("CT_Mine", "vessel") == "cardiac"


def test_a_known_organ_of_an_unknown_data_set_keeps_its_group_and_an_unknown_organ_is_other():
    assert group_of("CT_Mine", "liver") == "abdomen and thorax"
    assert group_of("CT_Mine", "third_antler") == "other"


def test_a_lesion_is_seen_if_its_own_folder_was_trained_on():
    trained_on = {"lesion/autoPET", "liver/CT_AMOS"}
    assert report_group("autoPET", "lesion", trained_on) == "seen lesion"
    assert report_group("CT_WholeBodyTumor", "lesion", trained_on) == "unseen lesion"
    assert report_group("autoPET", "lesion", frozenset()) == "unseen lesion"


def test_what_is_no_lesion_is_neither_seen_nor_unseen():
    assert report_group("CT_AMOS", "liver", {"liver/CT_AMOS"}) == "abdomen and thorax"
    assert report_group("autoPET", "lesion", None) == "lesion"
