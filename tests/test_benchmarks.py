"""The benchmarks of this project's own parts, on a case small enough for a test."""

import json
import time

import numpy as np
import pytest
import torch
from small_cases import ball
from small_networks import save_student, small_sam

from benchmarks import cold_start, geometry, literal_attention, measure, scoring, training
from segment_anything.build_sam3D import FASTSAM3D, VIT_B_ORI
from segment_anything.modeling.attention3D import Attention3D
from utils.cases.phantoms import boxes_of
from utils.errors import InputError

SMALL = (
    "img_size=32 patch_size=8 embed_dim=24 depth=2 num_heads=2 out_chans=48 window_size=5 "
    "neck_kernel=1 global_attn_indexes=1,"
)


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


def test_works_take_turns_and_are_timed_between_synchronisations():
    events = []

    def work(name, seconds):
        events.append(name)
        time.sleep(seconds)

    works = {"a": lambda: work("a", 0.03), "b": lambda: work("b", 0.001)}
    seconds = measure.alternate(works, 2, 1, lambda: events.append("|"))
    assert "".join(events) == "|a||b|" * 3
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}
    assert min(seconds["a"]) >= 0.03 > min(seconds["b"])


def test_summary_interpolates_percentiles():
    summary = measure.summary([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert summary == {"median": 3.5, "p10": 1.5, "p90": 5.5, "runs": 6}


def test_peak_memory_is_seen_after_it_was_given_back():
    with measure.PeakMemory(torch.device("cpu")) as memory:
        block = torch.ones(64, 2**20)
        time.sleep(10 * measure.SAMPLED_EVERY_S)
        del block
    assert 250 < memory.growth / 2**20 < 350
    assert memory.peak == memory.before + memory.growth


def test_relative_difference_counts_what_float32_would_lose():
    expected = torch.ones(4, dtype=torch.float64)
    found = measure.relative_difference(expected + 1e-12, expected)
    assert found == pytest.approx(1e-12, rel=1e-3)


def test_tables_are_aligned():
    assert measure.table(["a", "bc"], [[123, "x"]]).split("\n") == [
        "| a   | bc |",
        "| --- | -- |",
        "| 123 | x  |",
    ]


def _train(*flags):
    fields = [f"encoder.{field}" for field in SMALL.split()]
    flags = ["--set", *fields, "--num-clicks", "2", "--distil-clicks", "2", *flags]
    flags += ["--loss-size", "16", "--batch-size", "2", "--runs", "1", "--precision", "float32"]
    return training.run(training.parse_args(flags))


def test_both_forms_of_every_step_have_the_same_loss_and_gradient(tmp_path):
    report = _train("--json", str(tmp_path / "training.json"))
    assert json.loads((tmp_path / "training.json").read_text()) == report
    assert [(row["step"], row["form"]) for row in report["rows"]] == [
        (step, form)
        for step in ("encoder", "teacher", "distillation")
        for form in ("ours", "literal")
    ]
    assert report["network"]["padded_blocks"] == 1
    for ours, literal in zip(report["rows"][::2], report["rows"][1::2], strict=True):
        assert literal["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert literal["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-3)
        assert ours["gradient_norm"] > 0
        assert literal["times_ours"] == pytest.approx(
            ours["samples_per_s"] / literal["samples_per_s"]
        )
    assert training.report_table(report).count("\n") == 7


def test_a_wrong_literal_form_shows(monkeypatch):
    wrong = lambda attn, x: attn.proj(x)  # noqa: E731
    monkeypatch.setattr(literal_attention, "literal_attention", wrong)
    for row in _train()["rows"][1::2]:
        assert max(row["differences"].values()) > 1e-3


def test_a_form_that_memory_does_not_hold_is_told(monkeypatch):
    def full(attn, x):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 TiB")

    monkeypatch.setattr(literal_attention, "literal_attention", full)
    report = _train("--steps", "teacher")
    assert [row["fits"] for row in report["rows"]] == [True, False]
    assert training.report_table(report).count("out of memory") == 1


def test_networks_without_windows_are_refused():
    with pytest.raises(InputError, match="no block pads"):
        training.run(training.parse_args(["--network", "tiny"]))


def test_the_student_of_the_teacher_is_the_released_one():
    assert training.student_config(VIT_B_ORI).encoder == FASTSAM3D.encoder


def test_only_padding_windows_take_the_literal_form():
    ours, seen = Attention3D.forward, []
    model = small_sam(window_size=5, depth=2, global_attn_indexes=(1,))
    tokens = torch.randn(1, 4, 4, 4, 24)
    with pytest.MonkeyPatch.context() as patch, literal_attention.literal_windows():
        patch.setattr(literal_attention, "literal_attention", lambda *_: seen.append(1) or tokens)
        model.image_encoder(torch.randn(1, 1, 32, 32, 32))
    assert seen == [1]
    assert Attention3D.forward is ours


def test_a_cold_start_is_told_in_parts_that_add_up(tmp_path):
    flags = ["--checkpoints", save_student(tmp_path / "student.pth"), "--runs", "2"]
    flags += ["--warmup", "0", "--device", "cpu", "--json", tmp_path / "cold.json"]
    report = cold_start.run(cold_start.parse_args(list(map(str, flags))))
    assert json.loads((tmp_path / "cold.json").read_text()) == report
    (row,) = report["rows"]
    assert list(row["parts"]) == [*cold_start.PARTS, cold_start.REST]
    assert row["parts"]["imports"] > 0.1
    assert sum(row["parts"].values()) == pytest.approx(row["process"]["median"], rel=0.01)
    assert len(row["seconds"]) == 2
    assert row["voxels"] > 0
    assert row["same_masks"]
    assert cold_start.report_table(report).count("\n") == 2


def test_a_cold_start_that_fails_says_why(tmp_path):
    flags = ["--checkpoints", str(tmp_path / "none.pth"), "--runs", "1", "--device", "cpu"]
    with pytest.raises(InputError, match="no such file"):
        cold_start.run(cold_start.parse_args(flags))


@pytest.mark.parametrize("script", [cold_start, training])
def test_numbers_are_not_written_over_a_checkpoint(tmp_path, script, capsys):
    student = save_student(tmp_path / "student.pth")
    with pytest.raises(SystemExit):
        script.parse_args(["--json", str(student)])
    assert "expected a file that ends in .json" in capsys.readouterr().err
