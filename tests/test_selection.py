"""Validation during training: what is scored, which checkpoint is kept, when a run stops."""

import json
from pathlib import Path

import pytest
import torch
from small_cases import write_prepared
from small_networks import RULE, small_sam

from segment_anything import checkpoint_payload, load_checkpoint
from utils.errors import InputError
from utils.training.crop_cache import CropIndex, build_cache
from utils.training.selection import Selection
from utils.training.validation_crops import CropValidation, split_by_patient


def crops_of(folder, dataset="CT_A", cases=3):
    tree = write_prepared(folder / "tree", cases=cases, dataset=dataset)
    return build_cache([tree], folder / f"crops_{dataset}", workers=1)


def validation(index, train, most=0):
    return CropValidation(
        index, train, RULE, most=most, device=torch.device("cpu"), precision=torch.float32
    )


def test_a_network_is_scored_after_one_three_and_five_clicks(tmp_path):
    validate = validation(crops_of(tmp_path, "CT_B"), crops_of(tmp_path))
    model = small_sam().train()

    scores = validate(model)

    assert scores.keys() == {"dsc_1", "dsc_3", "dsc_5", "score"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["score"] == pytest.approx(sum(scores[f"dsc_{n}"] for n in (1, 3, 5)) / 3)
    assert model.training
    assert validate(model) == scores


def test_a_network_that_fills_everything_gets_the_dsc_of_a_full_crop(tmp_path):
    index = crops_of(tmp_path, "CT_B", cases=1)
    validate = validation(index, crops_of(tmp_path))
    model = small_sam()
    model.mask_threshold = -1e9
    share = validate.dataset[0]["label"].float().mean().item()

    assert validate(model)["dsc_1"] == pytest.approx(2 * share / (1 + share), abs=1e-5)


def test_crops_to_score_are_spread_over_the_index(tmp_path):
    index = crops_of(tmp_path, "CT_B", cases=9)

    assert validation(index, crops_of(tmp_path), most=3).numbers == [0, 4, 8]
    assert validation(index, crops_of(tmp_path), most=99).numbers == list(range(9))


def test_cases_that_are_trained_on_are_refused(tmp_path):
    train = crops_of(tmp_path)

    with pytest.raises(InputError, match=r"3 cases are in .* too, \('CT_A', 'CT_A_0'\) first"):
        validation(train, train)


def scores(value):
    return {"dsc_1": value, "score": value}


def test_the_best_network_is_kept_and_each_validation_written_down(tmp_path):
    selection = Selection(tmp_path, 0, patience=0)
    models = [small_sam(seed) for seed in range(3)]
    for step, (model, score) in enumerate(zip(models, (0.3, 0.5, 0.4), strict=True), start=1):
        selection.add(step, scores(score), lambda model=model: checkpoint_payload(model))

    best = small_sam(9)
    load_checkpoint(best, tmp_path / "best.pt")
    expected, found = models[1].state_dict(), best.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(row["step"], row["score"]) for row in rows] == [(1, 0.3), (2, 0.5), (3, 0.4)]
    assert not selection.has_stalled


def test_a_run_stalls_after_patience_validations_without_a_better_one(tmp_path):
    selection = Selection(tmp_path, 0, patience=2)
    stalled = []
    for step, score in enumerate((0.3, 0.5, 0.5, 0.4, 0.6)):
        selection.add(step, scores(score), dict)
        stalled.append(selection.has_stalled)

    assert stalled == [False, False, False, True, False]


def test_a_resumed_run_forgets_validations_after_its_checkpoint(tmp_path):
    selection = Selection(tmp_path, 0, patience=0)
    for step, score in ((10, 0.3), (20, 0.9)):
        selection.add(step, scores(score), lambda step=step: {"step": step})

    resumed = Selection(tmp_path, 15, patience=0)
    resumed.add(20, scores(0.4), lambda: {"again": True})

    assert torch.load(tmp_path / "best.pt") == {"again": True}
    assert len((tmp_path / "validation.jsonl").read_text().splitlines()) == 2


def test_a_patient_is_held_out_with_all_organs_and_modalities():
    def row(organ, dataset, patient):
        return {
            "organ": organ,
            "dataset": dataset,
            "case": f"{organ}/{dataset}/{dataset}_{patient}",
        }

    groups = [("liver", "CT_A"), ("spleen", "CT_A"), ("liver", "MR_A")]
    rows = [row(*group, f"p{n}") for group in groups for n in range(200)]
    kept, held_out = split_by_patient(CropIndex(Path(), rows, []), 0.2)

    patients = [{s["case"].rsplit("_", 1)[-1] for s in part.samples} for part in (kept, held_out)]
    assert not patients[0] & patients[1]
    assert len(held_out.samples) == 3 * len(patients[1])
    assert 0.14 < len(patients[1]) / 200 < 0.26
    fewer = split_by_patient(CropIndex(Path(), rows[:100], []), 0.2)[1]
    assert all(sample in held_out.samples for sample in fewer.samples)


def test_a_split_with_nobody_on_one_side_is_refused():
    rows = [{"dataset": "CT_A", "case": "liver/CT_A/CT_A_1"}]
    with pytest.raises(InputError, match=r"--val-share 0\.5: \d targets to train on"):
        split_by_patient(CropIndex(Path(), rows, []), 0.5)
