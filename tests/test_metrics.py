"""Scores: worked by hand, against the surface-distance package, and the challenge's own values."""

from pathlib import Path

import numpy as np
import pytest
from metrics_oracle import multi_class_dsc, multi_class_nsd, per_class_dsc, per_class_nsd
from scipy import ndimage
from score_helpers import row, target
from surface_distance import compute_surface_dice_at_tolerance, compute_surface_distances

from utils.errors import InputError
from utils.results.metrics import class_masks, dsc, interaction_auc, nsd
from utils.validation.scores import CaseScore

PARITY = np.load(Path(__file__).parent / "data" / "metrics_seed0.npz")


def bar(start: int, stop: int, axis: int = 0) -> np.ndarray:
    """Return a mask (12, 13, 14) that is one voxel thick and runs along ``axis``."""
    mask = np.zeros((12, 13, 14), dtype=bool)
    index = [5, 6, 7]
    index[axis] = slice(start, stop)
    mask[tuple(index)] = True
    return mask


def blob(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) > 0.05


@pytest.mark.parametrize("case", range(10))
def test_scores_equal_the_challenges(case):
    gt, seg, spacing = (PARITY[f"{key}_{case}"] for key in ("gt", "seg", "spacing"))
    assert multi_class_dsc(gt, seg) == pytest.approx(float(PARITY[f"dsc_{case}"]), abs=1e-9)
    assert multi_class_nsd(gt, seg, spacing) == pytest.approx(
        float(PARITY[f"nsd_{case}"]), abs=1e-9
    )


@pytest.mark.parametrize("case", range(10))
def test_the_scores_of_a_case_equal_the_challenges(case):
    gt, seg, spacing = (PARITY[f"{key}_{case}"] for key in ("gt", "seg", "spacing"))
    dscs, nsds = per_class_dsc(gt, seg), per_class_nsd(gt, seg, spacing)
    targets = [target(dsc=[float(dscs[k])] * 3, nsd_official=[float(nsds[k])] * 3) for k in dscs]
    scores = CaseScore.from_dict(row("case", *targets)).scores
    assert scores.dsc == pytest.approx([float(PARITY[f"dsc_{case}"])] * 3, abs=1e-9)
    assert scores.nsd_official == pytest.approx([float(PARITY[f"nsd_{case}"])] * 3, abs=1e-9)


def test_the_parity_cases_can_tell_the_spacing_order():
    gt, seg, spacing = (PARITY[f"{key}_7"] for key in ("gt", "seg", "spacing"))
    difference = multi_class_nsd(gt, seg, spacing[::-1]) - float(PARITY["nsd_7"])
    assert abs(difference) > 0.01


def test_area_under_the_curve_is_the_challenges_without_the_box_step():
    assert interaction_auc(PARITY["curve"][1:]) == pytest.approx(float(PARITY["curve_auc"]))


def test_five_perfect_clicks_have_area_four():
    assert interaction_auc([1.0] * 5) == 4.0


def test_dsc_by_hand():
    assert dsc(bar(0, 6), bar(4, 8)) == 2 * 2 / (6 + 4)


@pytest.mark.parametrize("score", [dsc, lambda gt, seg: nsd(gt, seg, (1, 2, 3))])
def test_empty_masks_score_one_together_and_zero_alone(score):
    nothing, something = np.zeros((12, 13, 14), dtype=bool), bar(0, 3)
    assert score(nothing, nothing) == 1.0
    assert score(something, nothing) == 0.0
    assert score(nothing, something) == 0.0


@pytest.mark.parametrize(
    ("axis", "expected"), [(0, True), (1, False), (2, False)], ids=["z", "y", "x"]
)
def test_spacing_is_in_array_order(axis, expected):
    """Shifted by two voxels: 1.8 mm along z is within 2 mm, 2.2 and 2.6 mm are not."""
    moved_score = nsd(bar(3, 6, axis), bar(5, 8, axis), (0.9, 1.1, 1.3), tolerance_mm=2.0)
    assert (moved_score == 1.0) is expected


def test_an_element_exactly_at_the_tolerance_is_right():
    assert nsd(bar(3, 6), bar(5, 8), (1.0, 1.0, 1.0), tolerance_mm=2.0) == 1.0
    assert nsd(bar(3, 6), bar(5, 8), (1.0, 1.0, 1.0), tolerance_mm=1.99) < 1.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "spacing",
    [(1, 1, 1), (0.5, 0.5, 0.5), (5.0, 0.8, 0.7), (0.1, 2.0, 7.0), (0.05, 0.04, 0.06)],
    ids=str,
)
def test_nsd_equals_the_surface_distance_package(spacing):
    rng = np.random.default_rng(0)
    for shape in [(9, 14, 21), (20, 8, 5), (3, 3, 17), (16, 16, 16)]:
        gt, seg = blob(rng, shape), blob(rng, shape)
        distances = compute_surface_distances(gt, seg, spacing)
        expected = compute_surface_dice_at_tolerance(distances, 2.0)
        assert nsd(gt, seg, spacing) == pytest.approx(expected, abs=1e-12)


def test_cutting_to_the_masks_changes_nothing():
    rng = np.random.default_rng(1)
    gt, seg = blob(rng, (9, 10, 11)), blob(rng, (9, 10, 11))
    wide_gt, wide_seg = (np.pad(mask, [(0, 9), (7, 0), (5, 6)]) for mask in (gt, seg))
    assert nsd(wide_gt, wide_seg, (3, 1, 2)) == nsd(gt, seg, (3, 1, 2))


def test_only_classes_of_the_truth_count():
    gt, seg = np.zeros((2, 6, 7, 8), dtype=np.int16)
    gt[1, 1:3], gt[4, 2:4] = 3, 300
    seg[1, 1:3], seg[0, 0, 0] = 3, 7
    assert per_class_dsc(gt, seg) == {3: 1.0, 300: 0.0}
    assert per_class_nsd(gt, seg, (1, 1, 1)) == {3: 1.0, 300: 0.0}
    assert multi_class_dsc(gt, seg) == 0.5


def test_nsd_is_zero_unless_dsc_is_above_the_floor():
    gt, seg = bar(0, 3), bar(3, 6)
    near = multi_class_nsd(gt, seg, (0.1, 0.1, 0.1), dsc_floor=None)
    assert near == 1.0
    assert multi_class_nsd(gt, seg, (0.1, 0.1, 0.1)) == 0.0


def test_a_truth_without_classes_has_no_score():
    nothing = np.zeros((3, 4, 5), np.uint8)
    assert np.isnan(multi_class_dsc(nothing, nothing))


SHAPES_DIFFER = r"the truth has shape \(D, H, W\) \(3, 4, 5\) and the prediction \(3, 5, 4\)"


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: dsc(np.ones((3, 4, 5), bool), np.ones((3, 5, 4), bool)), SHAPES_DIFFER),
        (lambda: multi_class_dsc(np.ones((3, 4, 5), int), np.ones((3, 5, 4), int)), SHAPES_DIFFER),
        (lambda: dsc(np.ones((3, 4, 5)), np.ones((3, 4, 5))), "gt_mask has dtype float64"),
        (lambda: nsd(bar(0, 2), bar(0, 2), (1, 1)), r"spacing is \(1\.0, 1\.0\); expected 3"),
        (lambda: nsd(bar(0, 2), bar(0, 2), (1, 0, 1)), r"spacing is \(1\.0, 0\.0, 1\.0\)"),
        (lambda: interaction_auc([]), r"scores of shape \(0,\)"),
    ],
    ids=["mask shapes", "label shapes", "probabilities", "two lengths", "zero mm", "no score"],
)
def test_what_cannot_be_scored_is_refused(call, found):
    with pytest.raises(InputError, match=found):
        call()


def test_a_message_names_the_mask_that_cannot_be_scored():
    with pytest.raises(InputError, match=r"^seg_mask has dtype \w+ and shape \(4, 5\)"):
        dsc(np.ones((3, 4, 5), bool), np.ones((4, 5), bool))
    with pytest.raises(InputError, match=r"^gt_mask has dtype float32"):
        nsd(np.ones((3, 4, 5), np.float32), np.ones((3, 4, 5), bool), (1, 1, 1))


@pytest.mark.parametrize("scores", [[[0.5, 0.6]], 0.5], ids=str)
def test_an_area_is_of_one_curve(scores):
    with pytest.raises(InputError, match="cannot take the area under scores of shape"):
        interaction_auc(scores)


def test_classes_come_with_the_box_around_both_masks_and_both_masks_in_it():
    gt, seg = np.zeros((2, 6, 7, 8), np.uint8)
    gt[1:3, 2:4, 3:5], gt[5, 6, 7] = 2, 5
    seg[2:5, 2, 1:4], seg[0, 0, 0] = 2, 7
    (second, box, *masks), (fifth, alone, *others) = class_masks(gt, seg)
    assert (second, fifth) == (2, 5)
    assert box == (slice(1, 5), slice(2, 4), slice(1, 5))
    for mask, volume in zip(masks, (gt, seg), strict=True):
        np.testing.assert_array_equal(mask, volume[box] == 2)
    assert alone == (slice(5, 6), slice(6, 7), slice(7, 8))
    assert [mask.tolist() for mask in others] == [[[[True]]], [[[False]]]]


@pytest.mark.parametrize("value", [0, -1, np.inf, np.nan])
def test_lengths_of_a_voxel_are_finite_and_above_0(value):
    for axis in range(3):
        spacing = np.array([1.0, 2.0, 3.0])
        spacing[axis] = value
        with pytest.raises(InputError, match="spacing is"):
            nsd(bar(0, 2), bar(0, 2), spacing)


@pytest.mark.parametrize("tolerance_mm", [0.4, 1.0, 3.0, 9.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9)], ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nsd_equals_the_package_at_any_tolerance(spacing, tolerance_mm):
    """Small tolerances look up voxels, large ones measure distances."""
    rng = np.random.default_rng(4)
    gt, seg = blob(rng, (9, 14, 12)), blob(rng, (9, 14, 12))
    distances = compute_surface_distances(gt, seg, spacing)
    expected = compute_surface_dice_at_tolerance(distances, tolerance_mm)
    assert nsd(gt, seg, spacing, tolerance_mm) == pytest.approx(expected, abs=1e-12)


def test_masks_of_whole_numbers_are_masks():
    assert dsc(bar(0, 6).astype(int) * 7, bar(4, 8).astype(np.uint16)) == 0.4
    assert nsd(bar(0, 6).astype(int) * 7, bar(0, 6), (1, 1, 1)) == 1.0
