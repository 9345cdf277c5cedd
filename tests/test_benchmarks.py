"""The benchmarks of this project's own parts, on a case small enough for a test."""

import json

import numpy as np
from small import ball, save_student

from benchmarks import geometry, scoring
from utils.phantoms import boxes_of


def test_every_way_from_prompts_to_masks_is_scored(tmp_path):
    truth = np.where(ball(), 1, 0).astype(np.uint8)
    rng = np.random.default_rng(0)
    np.savez_compressed(
        tmp_path / "CT_A_1.npz",
        imgs=(40 + 100 * truth + rng.integers(0, 30, truth.shape)).astype(np.uint8),
        gts=truth,
        spacing=(1.0, 1.1, 1.2),
        boxes=np.array(boxes_of(truth, rng), dtype=object),
    )
    flags = ["--images", tmp_path, "--checkpoint", save_student(tmp_path / "student.pth")]
    flags += ["--num-clicks", 2, "--out", tmp_path / "geometry.json"]
    results = geometry.run(geometry.parse_args(list(map(str, flags))))
    assert list(results) == list(geometry.variants())
    assert json.loads((tmp_path / "geometry.json").read_text()) == results
    curves = {name: tuple(rows[0]["dsc"]) for name, rows in results.items()}
    assert all(len(curve) == 3 for curve in curves.values())
    assert len({curves[name] for name in ("truth", "centre", "last click")}) == 3
    assert geometry.table(results).count("\n") == 1 + len(results)


def test_our_scores_and_clicks_are_the_plain_ones():
    result = scoring.run(
        scoring.parse_args(["--shape", "12", "30", "34", "--classes", "3", "--rounds", "1"])
    )
    assert result["difference"] < 1e-9
    assert result["same_clicks"] == 1
