"""The benchmarks of speed run, check the outputs, and report their measurements."""

import json

import pytest
import torch

from benchmarks import floors, growth, latency, rivals


def test_latency_of_the_small_student(tmp_path):
    words = ["--networks", "tiny_fastsam3d", "--no-medim", "--runs", "1", "--batch-sizes", "1", "2"]
    words += ["--no-growth", "--json", str(tmp_path / "latency.json")]
    report = latency.run(latency.parse_args(words))
    assert json.loads((tmp_path / "latency.json").read_text())["rows"] == report["rows"]
    seen = {(row["part"], row["batch"], row["rival"]) for row in report["rows"]}
    names = [f"tiny_fastsam3d, {precision}, eager" for precision in ("float32", "bfloat16")]
    assert seen == {(p, b, n) for p in latency.PARTS for b in (1, 2) for n in names}
    for row in report["rows"]:
        assert row["difference"] < (1e-5 if "float32" in row["rival"] else 2e-2)
        assert row["seconds"]["median"] > 0
    assert latency.latency_table(report["rows"]).count("\n") == 1 + len(report["rows"])


def test_a_further_click_beside_medims(monkeypatch):
    encoded = rivals.network("vit_b_ori").image_encoder(rivals.prompts_for(1).images).detach()
    monkeypatch.setattr(rivals.medim_network().image_encoder, "forward", lambda x: encoded)
    words = ["--networks", "vit_b_ori", "--precisions", "float32", "--parts", "further click"]
    words += ["--batch-sizes", "1", "--runs", "1", "--no-growth"]
    medim, ours = latency.run(latency.parse_args(words))["rows"]
    assert medim["rival"] == "MedIM's SAM-Med3D, float32"
    assert (medim["difference"], medim["faster_than_medim"]) == (0, 1)
    assert ours["rival"] == "vit_b_ori, float32, eager"
    assert 0 < ours["difference"] < 1e-5
    speedup = medim["seconds"]["median"] / ours["seconds"]["median"]
    assert ours["faster_than_medim"] == pytest.approx(speedup)


def test_growth_through_predict(tmp_path):
    words = ["--targets", "1", "3", "--shapes", "16,40,40", "20,48,48", "--runs", "1"]
    rows = growth.run(growth.parse_args([*words, "--json", str(tmp_path / "growth.json")]))
    asked = [(row["shape"], row["targets"]) for row in rows]
    assert asked == [((20, 48, 48), 1), ((20, 48, 48), 3), ((16, 40, 40), 4), ((20, 48, 48), 4)]
    assert all(0 < row["found"] <= row["targets"] for row in rows)
    assert all(row["network"]["median"] > 0 for row in rows)
    assert "20x48x48" in growth.growth_table(rows)
    assert len(json.loads((tmp_path / "growth.json").read_text())["rows"]) == 4


def test_floors_lie_below_what_is_measured(tmp_path):
    words = ["--network", "tiny_fastsam3d", "--runs", "1", "--kernels", "2"]
    report = floors.run(floors.parse_args([*words, "--json", str(tmp_path / "floors.json")]))
    assert [row["part"] for row in report["rows"]] == ["encoder", "decoder", "upsampling"]
    for row in report["rows"]:
        assert row["flops"] > 0
        assert 0.5 < row["times_the_floor"] < 1000, "a floor far above a measured time is wrong"
        assert len(report["kernels"][row["part"]]) == 2
    assert "encoder" in floors.floors_table(report)


def test_operations_are_counted():
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    assert floors.flops_of(lambda: a @ b) == 2 * 8 * 16 * 32
