"""``--refine``: masks of any network follow the image's edges; without it nothing changes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_helpers import relative_error
from small_cases import write_prepared
from small_networks import save_student, save_teacher, small_config, small_sam
from test_challenge_validation import CLASSES, write_cases
from test_predict import BOXES, predicted, segs_of, write_npz
from test_pyramid3D import CONFIG as PYRAMID
from validation_helpers import rows, run

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
    decode_points,
    encode_image,
    export,
    fingerprint,
    network_configs,
    refined,
    upsample,
)
from segment_anything.onnx_encoder import OnnxError
from utils.errors import InputError
from utils.results.metrics import dsc
from utils.run.flags import REFINE_STRENGTH
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
    released = build_sam3D(network_configs[name])
    config, own = refined(released, 0.3).config, released.config
    assert (own.low_res_size, own.embedding_chans, own.given_clicks) == (32, 384, "last")
    assert (config.low_res_size, config.embedding_chans, config.given_clicks) == (64, 896, "all")
    assert own == network_configs[name]


def moved(voxels):
    return tuple(slice(side.start + voxels, side.stop + voxels) for side in BOX[:1]) + BOX[1:]


def wider(voxels):
    return tuple(slice(side.start - voxels, side.stop + voxels) for side in BOX)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("given", [moved(-2), moved(2), wider(1), wider(2), wider(-1)], ids=str)
def test_a_border_that_is_one_or_two_cells_off_moves_to_the_edge(scale, given):
    crop, inside = phantom(scale * SIZE)
    model = last_click_sam(img_size=scale * SIZE, patch_size=scale * 8)
    wrong = torch.zeros(1, 1, SIZE, SIZE, SIZE)
    wrong[0, 0][given] = 1
    model.mask_decoder = Given(torch.logit(F.avg_pool3d(wrong, 2), eps=0.1))
    click = (CLICK[0] + 0.5) * scale - 0.5, CLICK[1]

    plain = clicked(model, crop, click)
    sharp = clicked(refined(model, REFINE_STRENGTH), crop, click)

    assert plain.shape == (1, 1, 16, 16, 16)
    assert sharp.shape == (1, 1, 32, 32, 32)
    truth = inside[::scale, ::scale, ::scale]
    assert dsc(truth, upsample(plain, SIZE)[0, 0].numpy() > 0) < 0.87
    assert dsc(truth, sharp[0, 0].numpy() > 0) > 0.92


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


@torch.no_grad()
def test_the_network_itself_gets_the_last_click_and_masks_of_its_own_grid():
    model, (crop, _) = last_click_sam(), phantom()
    sharp = refined(model, 0.3)
    embedding, dense_pe = encode_image(sharp, crop), model.prompt_encoder.get_dense_pe()
    coords, labels = torch.tensor([[[25.0, 9.0, 5.0], [16.0, 14.0, 18.0]]]), torch.tensor([[0, 1]])
    masks = 3 * torch.randn(1, 1, SIZE, SIZE, SIZE)
    found, _ = decode_points(sharp, embedding, coords, labels, masks, dense_pe, finish=False)

    own = F.avg_pool3d(masks, 2)
    inputs = model.image_encoder(crop), coords[:, 1:], labels[:, 1:], own, dense_pe
    assert torch.equal(found, upsample(decode_points(model, *inputs)[0], SIZE))


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


@pytest.mark.parametrize(
    ("engine", "precision", "tolerance"),
    [
        ("eager", torch.float32, 1e-5),
        ("eager", torch.bfloat16, 3e-2),
        ("compiled", torch.float32, 1e-4),
    ],
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
    torch._dynamo.reset()
    assert relative_error(found, expected) < tolerance


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
    table = rows(out / "cases.csv")
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
    table = tmp_path / "classes.json"
    table.write_text(json.dumps(CLASSES))
    images = write_cases(tmp_path / "images", count=2)  # the second with boxes
    flags = ["--protocol", "challenge", "--images", images, "--json", table, "--num-clicks", 1]
    flags += ["--checkpoint", save_teacher(tmp_path / "t.pt"), "--pictures", 0]
    found = []
    for out, words in ((tmp_path / "plain", []), (tmp_path / "sharp", ["--refine"])):
        run(validation, [*flags, "--out-dir", out, *words])
        found.append([row["DSC_1"] for row in rows(out / "targets.csv")])
    assert found[0] != found[1]
