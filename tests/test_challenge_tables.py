"""Tables of the challenge's scores: columns, who is averaged with whom, and what files hold."""

import csv

import pytest
from score_helpers import row, target

from utils.errors import InputError
from utils.validation.scores import CaseScore
from utils.validation.tables import (
    anatomy_rows,
    challenge_rows,
    grouped,
    markdown,
    overall_rows,
    target_rows,
    write_challenge_tables,
)

#: With a box, two targets; without, one; without, one, over the time limit.
BOXED = row(
    "CT_AMOS_1",
    target("liver", dsc=(0.6, 0.7, 0.8)),
    target("spleen", dsc=(0.2, 0.3, 0.4)),
)
CLICKED = row(
    "MR_BraTS-T1c_2",
    target("enhancing_tissue", dsc=(0.0, 0.1, 0.5), nsd_official=(0.0, 0.9, 0.6)),
    dataset="MR_BraTS-T1c",
    has_box=False,
    seconds=(0.0, 4.0, 5.0),
)
LATE = row(
    "MR_AMOS_3",
    target("liver", dsc=(0.0, 0.9, 0.9)),
    dataset="MR_AMOS",
    has_box=False,
    seconds=(0.0, 50.0, 41.0),
)
SCORES = [CaseScore.from_dict(content) for content in (BOXED, CLICKED, LATE)]


def test_challenge_rows_have_the_evaluators_columns_in_its_order():
    assert list(challenge_rows(SCORES)[0]) == [
        "CaseName",
        "TotalRunningTime",
        "RunningTime_1",
        "RunningTime_2",
        "RunningTime_3",
        "DSC_AUC",
        "NSD_AUC",
        "DSC_Final",
        "NSD_Final",
        "DSC_1",
        "DSC_2",
        "DSC_3",
        "NSD_1",
        "NSD_2",
        "NSD_3",
        "num_class",
        "runtime_upperbound",
    ]


def test_challenge_rows_have_the_official_scores():
    boxed, clicked, late = challenge_rows(SCORES)
    assert boxed["TotalRunningTime"] == 6
    assert [boxed[f"DSC_{k}"] for k in (1, 2, 3)] == pytest.approx([0.4, 0.5, 0.6])
    assert [boxed[f"NSD_{k}"] for k in (1, 2, 3)] == pytest.approx([0.3, 0.4, 0.6])
    assert (boxed["num_class"], boxed["runtime_upperbound"]) == (2, 180)
    # DSC after the first click is not above 0.2, so its NSD of 0.9 counts 0.
    assert (clicked["NSD_2"], clicked["NSD_AUC"]) == pytest.approx((0, 0.3))
    assert [late[k] for k in ("DSC_AUC", "DSC_2", "DSC_Final", "NSD_Final")] == [0, 0, 0, 0]
    assert late["TotalRunningTime"] == 91


def test_target_rows_are_as_measured():
    rows = target_rows(SCORES)
    assert [r["organ"] for r in rows] == ["liver", "spleen", "enhancing_tissue", "liver"]
    assert (rows[2]["NSD_2"], rows[2]["NSD_correct_2"]) == (0.9, 0.5)
    assert (rows[3]["timed_out"], rows[3]["DSC_Final"]) == (1, 0.9)
    assert rows[0]["clicks_zyx"] == "+1,2,3 -4,5,6"
    assert [r["group"] for r in rows[1:3]] == ["abdomen and thorax", "lesion"]
    trained_on = {"enhancing_tissue/MR_BraTS-T1c"}
    assert target_rows(SCORES, trained_on)[2]["group"] == "seen lesion"


def test_cases_are_averaged_as_cases_however_many_targets_they_have():
    (whole,) = grouped(SCORES, "all")
    assert (whole.cases, whole.with_box, whole.targets) == (3, 1, 4)
    assert whole.scores.dsc == pytest.approx([0.4 / 3, (0.5 + 0.1) / 3, (0.6 + 0.5) / 3])


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("prompt", ["with box", "without box"]),
        ("modality", ["CT", "MR"]),
        ("dataset", ["CT_AMOS", "MR_AMOS", "MR_BraTS-T1c"]),
        ("organ", ["enhancing_tissue", "liver", "spleen"]),
        ("group", ["abdomen and thorax", "lesion"]),
    ],
)
def test_groups_are_complete_and_in_order(key, names):
    groups = grouped(SCORES, key)
    assert [group.name for group in groups] == names
    assert sum(group.targets for group in groups) == 4


def test_organs_average_targets_as_their_cases_count():
    liver = grouped(SCORES, "organ")[1]
    assert (liver.cases, liver.targets) == (2, 2)
    assert liver.scores.dsc == pytest.approx([0.3, 0.35, 0.4])  # the late one counts 0
    assert grouped(SCORES, "organ")[0].scores.nsd_official[1] == 0  # under its case's floor


def test_an_organ_named_like_a_group_is_sorted_among_organs():
    content = row("a", target("spleen"), target("lesion"), target("brain"))
    names = [group.name for group in grouped([CaseScore.from_dict(content)], "organ")]
    assert names == ["brain", "lesion", "spleen"]


def test_overall_table_tells_boxes_from_points():
    assert markdown(overall_rows({"tiny": SCORES}, "128³")).splitlines() == [
        "| Model | Prompt | Cases | Resolution | Inference time (s per case and step) "
        "| Dice (%) | NSD (%) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| tiny | box | 1 | 128³ | 1.00 | 40.00 | 30.00 |",
        "| tiny | box + 1 point | 1 | 128³ | 2.00 | 50.00 | 40.00 |",
        "| tiny | box + 2 points | 1 | 128³ | 3.00 | 60.00 | 60.00 |",
        "| tiny | 1 point | 2 | 128³ | 27.00 | 5.00 | 0.00 |",
        "| tiny | 2 points | 2 | 128³ | 23.00 | 25.00 | 30.00 |",
    ]


def test_anatomy_table_has_a_column_a_group_and_splits_lesions_where_it_can():
    lines = markdown(anatomy_rows({"a|b": SCORES[1:2]})).splitlines()
    assert lines[0] == (
        "| Model | Prompt | abdomen and thorax | bone | brain | cardiac | gland | muscle "
        "| lesion | other |"
    )
    assert lines[-1] == r"| a\|b | 2 points | - | - | - | - | - | - | 50.00 | - |"
    lines = markdown(anatomy_rows({"a": SCORES[1:2]}, {"liver/CT_AMOS"})).splitlines()
    assert "| muscle | seen lesion | unseen lesion | other |" in lines[0]
    assert lines[-1] == "| a | 2 points | - | - | - | - | - | - | - | 50.00 | - |"


def test_one_click_is_named_once():
    content = row("a", target(dsc=(0.5, 0.6), nsd=(0, 0), nsd_official=(0, 0)), seconds=(1.0, 2.0))
    table = markdown(overall_rows({"tiny": [CaseScore.from_dict(content)]}, "128³"))
    assert [line.split(" | ")[1] for line in table.splitlines()[2:]] == ["box", "box + 1 point"]


def test_files_hold_the_tables(tmp_path):
    write_challenge_tables(SCORES, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "challenge.csv",
        "groups.csv",
        "targets.csv",
    ]
    with open(tmp_path / "challenge.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(challenge_rows(SCORES)[0])
    assert (rows[0]["DSC_Final"], rows[0]["num_class"]) == ("0.600000", "2")
    with open(tmp_path / "groups.csv", newline="") as file:
        groups = list(csv.DictReader(file))
    assert [group["by"] for group in groups[:3]] == ["all", "prompt", "prompt"]
    assert float(groups[1]["NSD_correct_AUC"]) == pytest.approx(0.6)


def test_no_case_and_cases_of_different_numbers_of_steps_are_refused():
    short = target(dsc=(0.5, 0.6), nsd=(0.5, 0.6), nsd_official=(0.5, 0.6))
    other = CaseScore.from_dict(row("b", short, seconds=(1.0, 1.0)))
    for scores in ([], [SCORES[0], other]):
        with pytest.raises(InputError, match="expected the same number for all"):
            challenge_rows(scores)
