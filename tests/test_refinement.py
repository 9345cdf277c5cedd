"""``--refine``: masks of any network follow the image's edges; without it nothing changes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cases import write_prepared
from small_networks import save_student, save_teacher, small_config, small_sam
from test_predict import BOXES, predicted, segs_of, write_npz
from test_pyramid3D import CONFIG as PYRAMID
from validation_helpers import run

import validation
import validation_student
from segment_anything import (
    NO_CLICK,
    ConfigError,
    CropPredictor,
    InferenceEngine,
    Interaction,
    Prompted,
    build_sam3D,
    encode_image,
    export,
    fingerprint,
    network_configs,
    refined,
)
from segment_anything.onnx_encoder import OnnxError
from utils.errors import InputError
from utils.results.metrics import dsc
from utils.run.network import open_network

CPU = torch.device("cpu")
SIZE = 32  # voxels of a small network's crop; its masks have 16 cells along each axis, refined 32
BOX = (slice(9, 24), slice(7, 22), slice(11, 26))  # of the phantom: half of its faces cut cells
CLICK = torch.tensor([[16.0, 14.0, 18.0]]), torch.tensor([1])


def phantom(size=SIZE):
    """Return a dark crop (1, 1, size, size, size) with a bright box, and the box."""
    inside = np.zeros((SIZE,) * 3, bool)
    inside[BOX] = True
    inside = inside.repeat(size // SIZE, 0).repeat(size // SIZE, 1).repeat(size // SIZE, 2)
    noise = torch.randn(size, size, size, generator=torch.Generator().manual_seed(0))
    return (2 * torch.from_numpy(inside) + 0.1 * noise)[None, None], inside


class Given(torch.nn.Module):
    """A mask decoder that returns given logits (1, 1, m, m, m) for any prompts."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, **inputs):
        return self.logits, torch.zeros(len(self.logits), 1)


def last_click_sam(**encoder):
    """A small network that, like the released ones, decodes the last click alone."""
    config = small_config(**encoder).to_dict()
    config["prompt"] |= {"click_memory": "last", "click_stamp_sigma": 0.0}
    torch.manual_seed(0)
    return build_sam3D(type(network_configs["tiny"]).from_dict(config)).eval()


@torch.no_grad()
def clicked(model, crop, *clicks):
    interaction = Interaction(model, encode_image(model, crop))
    for coords, labels in clicks or (CLICK,):
        logits, _ = interaction.click(coords, labels)
    return logits


@pytest.mark.parametrize("name", ["vit_b_ori", "fastsam3d"])
def test_a_released_network_has_masks_of_twice_the_resolution(name):
    config = refined(last_click_sam(), 0.3).config
    assert (config.low_res_size, config.embedding_chans) == (32, 48 + 512)
    with torch.device("meta"):
        released = build_sam3D(network_configs[name])
    assert (released.config.low_res_size, released.config.embedding_chans) == (32, 384)
    assert refined(released, 0.3).config.low_res_size == 64
    assert released.prompt_encoder.low_res_size == 32
    assert released.config == network_configs[name]


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("wrong_by", [-4, -2, 2, 4])
def test_a_border_that_is_one_or_two_cells_off_moves_to_the_edge(scale, wrong_by):
    """In voxels: a cell has 2^3 of them, so 4 are two cells; with ``scale`` 2 twice as many."""
    crop, inside = phantom(scale * SIZE)
    model = last_click_sam(img_size=scale * SIZE, patch_size=scale * 8)
    wrong = np.zeros((SIZE,) * 3, bool)
    wrong[tuple(slice(side.start - wrong_by, side.stop + wrong_by) for side in BOX)] = True
    share = torch.nn.functional.avg_pool3d(torch.from_numpy(wrong).float()[None, None], 2)
    model.mask_decoder = Given(torch.logit(share, eps=0.1))
    place = (CLICK[0] + 0.5) * scale - 0.5, CLICK[1]

    plain = clicked(model, crop, place)
    sharp = clicked(refined(model, 0.02), crop, place)

    assert plain.shape == (1, 1, 16, 16, 16)
    assert sharp.shape == (1, 1, 32, 32, 32)
    truth = inside[::scale, ::scale, ::scale]
    before = plain[0, 0].numpy().repeat(2, 0).repeat(2, 1).repeat(2, 2) > 0
    assert dsc(truth, before) < 0.87
    assert dsc(truth, sharp[0, 0].numpy() > 0) > 0.97


def test_every_click_so_far_is_fixed_where_the_network_decodes_the_last_alone():
    model = last_click_sam()
    model.mask_decoder = Given(torch.full((1, 1, 16, 16, 16), -4.0))
    second = torch.tensor([[3.0, 3.0, 3.0]]), torch.tensor([1])
    third = torch.tensor([[28.0, 3.0, 3.0]]), torch.tensor([0])
    padding = torch.zeros(1, 3), torch.tensor([NO_CLICK])
    crop, _ = phantom()
    logits = clicked(refined(model, 0.3), crop, CLICK, second, third, padding)[0, 0]
    assert logits[16, 14, 18] > 5
    assert logits[3, 3, 3] > 5
    assert logits[28, 3, 3] < -5
    assert logits[0, 0, 0] < 0


def test_the_network_itself_gets_the_last_click_and_masks_of_its_own_grid():
    """At a strength so high that the diffusion changes nothing, both have the same masks."""
    model, (crop, _) = last_click_sam(), phantom()
    other = torch.tensor([[25.0, 9.0, 5.0]]), torch.tensor([0])
    sharp = clicked(refined(model, 1000), crop, CLICK, other)
    grown = torch.nn.functional.interpolate(
        clicked(model, crop, CLICK, other), SIZE, mode="trilinear"
    )
    sure = sharp.abs() < 3  # elsewhere the probabilities' rounding and the clicks show
    assert sure.float().mean() > 0.9
    torch.testing.assert_close(sharp[sure], grown[sure], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("config", [small_config(), PYRAMID], ids=["sam", "pyramid"])
def test_strength_0_is_off_bit_for_bit(config):
    torch.manual_seed(0)
    model = build_sam3D(config).eval()
    size = config.encoder.img_size
    crop = torch.randn(1, 1, size, size, size)
    off = refined(refined(model, 0.3), 0)
    assert fingerprint(off) == fingerprint(model)
    assert torch.equal(clicked(off, crop), clicked(model, crop))
    if config is PYRAMID:
        assert not torch.equal(clicked(refined(model, 0.3), crop), clicked(model, crop))


def test_the_refined_network_shares_its_weights_and_leaves_the_given_one():
    model, (crop, _) = last_click_sam(), phantom()
    before = clicked(model, crop)
    sharp = refined(model, 0.3)
    assert {id(p) for p in sharp.parameters()} == {id(p) for p in model.parameters()}
    assert sharp.training is False
    assert fingerprint(sharp) != fingerprint(model)
    clicked(sharp, crop)
    assert torch.equal(clicked(model, crop), before)


def test_samples_of_a_batch_do_not_mix():
    model, (crop, _) = refined(last_click_sam(), 0.3), phantom()
    crops = torch.cat([torch.randn(crop.shape), crop])
    clicks = torch.cat([CLICK[0] - 9, CLICK[0]]), torch.tensor([0, 1])
    both = clicked(model, crops, clicks)
    torch.testing.assert_close(both[1:], clicked(model, crop), rtol=1e-4, atol=1e-4)


def test_an_embedding_without_the_image_is_refused():
    model, (crop, _) = refined(last_click_sam(), 0.3), phantom()
    interaction = Interaction(model, model.image_encoder(crop))
    with pytest.raises(ValueError, match=r"48 channels, expected 560, .*encode_image"):
        interaction.click(*CLICK)


@pytest.mark.parametrize("strength", [-0.1, 1001, float("nan"), "much", True])
def test_a_strength_out_of_its_range_is_refused(strength):
    with pytest.raises(ConfigError, match="refine_strength is"):
        refined(small_sam(), strength)


def test_a_refined_network_of_form_sam_is_not_exported(tmp_path):
    model = refined(last_click_sam(), 0.3)
    for write in (export.write_encoder, export.write_decoder):
        with pytest.raises(OnnxError, match=r"Export refined\(model, 0\)"):
            write(model, tmp_path / "file.onnx")
    assert list(tmp_path.iterdir()) == []


def compiles():
    return pytest.param("compiled", torch.float32, 1e-4)


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [("eager", torch.float32, 1e-6), ("eager", torch.bfloat16, 3e-2), compiles()],
)
def test_engines_give_the_refined_networks_masks(
    engine, precision, tolerance, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, (crop, _) = refined(last_click_sam(), 0.3), phantom()
    clicks = [((16, 14, 18), True), ((3, 3, 3), False)]
    mask = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    interaction = Interaction(model, encode_image(model, crop))
    with torch.no_grad():
        interaction.click(*CLICK)
        interaction.low_res_masks = mask
        expected, _ = interaction.click(torch.tensor([[3.0, 3.0, 3.0]]), torch.tensor([0]))
    predictor = CropPredictor(model, CPU, precision, engine)
    (found,) = predictor.decode_all([Prompted(predictor.encode(crop[0, 0]), clicks, mask)])
    assert float((found - expected).norm() / expected.norm()) < tolerance
    torch._dynamo.reset()


def test_the_engine_of_a_network_that_is_not_refined_adds_nothing():
    model, (crop, _) = last_click_sam(), phantom()
    with torch.no_grad():
        expected = model.image_encoder(crop)
    assert torch.equal(InferenceEngine(model, CPU).encode(crop), expected)


def test_a_network_is_opened_refined(tmp_path):
    path = save_teacher(tmp_path / "t.pt")
    assert open_network(path)[0].config.decoder.refine_strength == 0
    assert open_network(path, refine=0.5)[0].config.decoder.refine_strength == 0.5
    with pytest.raises(InputError, match="refine_strength is 2000"):
        open_network(path, refine=2000)


def test_predict_refines_on_demand(tmp_path):
    student = save_student(tmp_path / "student.pth")
    source = write_npz(tmp_path / "inputs", boxes=BOXES)
    flags = {"without": [], "off": ["--refine", "0"], "on": ["--refine"], "by": ["--refine", ".3"]}
    found = {}
    for name, words in flags.items():
        report = predicted(source, tmp_path / name, student, *words)
        assert report.failures == []
        found[name] = segs_of(report.written[0])
    np.testing.assert_array_equal(found["off"], found["without"])
    np.testing.assert_array_equal(found["on"], found["by"])
    assert (found["on"] != found["without"]).any()


def scores_of(out: Path) -> list[dict]:
    table = list(csv.DictReader((out / "cases.csv").open()))
    return [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in table]


def test_a_validation_refines_and_keeps_its_scores_apart(tmp_path):
    tree = write_prepared(tmp_path / "tree", cases=2)
    flags = ["--val-datas", tree, "--num-clicks", 2, "--pictures", 0]
    flags += ["--checkpoint", save_student(tmp_path / "student.pth")]
    one, other = tmp_path / "one", tmp_path / "other"
    run(validation_student, [*flags, "--out-dir", one])
    plain = scores_of(one)
    assert "refinement" not in (one / "report.html").read_text()
    run(validation_student, [*flags, "--out-dir", one, "--refine"])
    assert scores_of(one) != plain
    assert "strength 0.3" in (one / "report.html").read_text()
    assert json.loads((one / "args.json").read_text())["refine"] == 0.3
    run(validation, [*flags, "--out-dir", other, "--refine", 0])
    assert scores_of(other) == plain


def test_the_challenge_protocol_refines_too(tmp_path):
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[4:12, 6:14, 8:18] = 1
    write_npz(tmp_path / "images", gts=labels)
    table = tmp_path / "classes.json"
    table.write_text(json.dumps({"CT_A": {"1": "liver", "instance_label": 0}}))
    flags = ["--protocol", "challenge", "--images", tmp_path / "images", "--json", table]
    flags += ["--checkpoint", save_teacher(tmp_path / "t.pt"), "--num-clicks", 1, "--pictures", 0]
    found = []
    for words in ([], ["--refine"]):
        run(validation, [*flags, "--out-dir", tmp_path / f"out{len(words)}", *words])
        (row,) = csv.DictReader((tmp_path / f"out{len(words)}" / "targets.csv").open())
        found.append(row)
    assert found[0] != found[1]
