"""What counts of a case: means, floor, time limit and areas, by hand."""

import json
import math

import pytest
from score_helpers import row, target

from utils.errors import InputError
from utils.validation.scores import CaseScore


def test_a_case_scores_the_mean_over_its_targets():
    low = target(dsc=(0.1, 0.4, 0.6), nsd=(0.0, 0.1, 0.3), nsd_official=(0.0, 0.2, 0.4))
    scores = CaseScore.from_dict(row("a", target(), low)).scores
    assert scores.dsc == pytest.approx([0.3, 0.5, 0.7])
    assert scores.nsd_correct == pytest.approx([0.2, 0.3, 0.5])
    assert scores.nsd_official == pytest.approx([0.15, 0.3, 0.5])


def test_both_nsds_of_a_step_are_0_unless_the_mean_dsc_is_above_a_fifth():
    """Mean DSC is 0.2, 0.25, 0.19: only the middle step is above, though one target always is."""
    high = target(dsc=(0.4, 0.4, 0.38), nsd=(0.8, 0.8, 0.8), nsd_official=(0.6, 0.6, 0.6))
    low = target(dsc=(0.0, 0.1, 0.0), nsd=(0.2, 0.2, 0.2), nsd_official=(0.0, 0.0, 0.0))
    case = CaseScore.from_dict(row("a", high, low))
    assert case.scores.nsd_correct == pytest.approx([0, 0.5, 0])
    assert case.scores.nsd_official == pytest.approx([0, 0.3, 0])
    assert case.target_scores.nsd_correct.tolist() == [[0, 0.8, 0], [0, 0.2, 0]]
    assert case.scores.dsc == pytest.approx([0.2, 0.25, 0.19])


def test_a_case_that_takes_longer_than_90_s_a_target_scores_0():
    two = (target(), target("spleen"))
    in_time = CaseScore.from_dict(row("a", *two, seconds=(60.0, 60.0, 60.0)))
    late = CaseScore.from_dict(row("a", *two, seconds=(60.0, 60.0, 60.5)))
    assert (in_time.seconds_allowed, in_time.timed_out, late.timed_out) == (180, False, True)
    assert in_time.scores.final == pytest.approx((0.8, 0.6, 0.7))
    assert late.scores.final == late.scores.auc == (0, 0, 0)
    assert not late.target_scores.dsc.any()


def test_areas_leave_the_box_step_out():
    """Two clicks, DSC 0.6 and 0.8, are one trapezium: 0.7, whatever the box scored."""
    assert CaseScore.from_dict(row()).scores.auc == pytest.approx((0.7, 0.5, 0.6))
    bad_box = target(dsc=(0.0, 0.6, 0.8))
    assert CaseScore.from_dict(row("a", bad_box)).scores.auc[0] == pytest.approx(0.7)


def test_reading_and_writing_is_lossless():
    content = row("a", target(), target("spleen"))
    score = CaseScore.from_dict(content)
    assert json.loads(json.dumps(score.to_dict())) == content
    assert CaseScore.from_dict(score.to_dict()) == score


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"targets": []}, "no target"),
        ({"targets": [target(dsc=(0.5, 0.6))]}, "curves of other lengths than the steps"),
        ({"targets": [target(nsd=(0.5, 0.6, math.nan))]}, "scores that are not from 0 to 1"),
        ({"targets": [target(nsd=(0.5, 0.6, "0.7"))]}, ""),
        ({"targets": [{"organ": "liver"}]}, "class_id"),
        ({"seconds": [1.0, 2.0]}, "curves of other lengths than the steps"),
        ({"surprise": 1}, "surprise"),
        ({"targets": None}, ""),
    ],
    ids=str,
)
def test_what_is_no_score_is_refused_by_the_name_of_its_case(change, found):
    with pytest.raises(InputError, match=rf"^CT_AMOS_1: .*{found}.*validate it again"):
        CaseScore.from_dict(row() | change)


def test_a_missing_field_and_something_else_altogether_are_refused():
    without = {key: value for key, value in row().items() if key != "seconds"}
    with pytest.raises(InputError, match=r"CT_AMOS_1: .*seconds"):
        CaseScore.from_dict(without)
    with pytest.raises(InputError, match="without a name"):
        CaseScore.from_dict([])
