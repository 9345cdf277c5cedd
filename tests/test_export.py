"""ONNX files give PyTorch's numbers, are refused if they do not, and can replace the encoder."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from parity_helpers import relative_error
from small_cases import ball, write_prepared
from small_networks import RULE, save_student, small_config, small_sam, small_student
from test_pyramid3D import CONFIG as PYRAMID

import predict
from segment_anything import (
    NO_CLICK,
    CropPredictor,
    DecoderConfig,
    PromptConfig,
    Prompted,
    SamConfig,
    box_points,
    build_from_checkpoint,
    build_sam3D,
    sam_model_registry3D,
)
from segment_anything import export as export_module
from segment_anything.export import (
    DECODER,
    ENCODER,
    FACTS,
    decoder_differences,
    encoder_differences,
    export,
    require_same,
    stamp_at_once,
    write_decoder,
    write_encoder,
)
from segment_anything.onnx_encoder import (
    OnnxError,
    OnnxImageEncoder,
    open_session,
    use_onnx_encoder,
)
from utils.errors import InputError
from utils.training import quantise_encoder
from utils.training.crop_cache import build_cache


def released_form() -> SamConfig:
    """Windows with padding, the last click alone, no stamps: everything that small_config lacks."""
    return SamConfig(
        network="tiny",
        encoder=small_config(window_size=6, global_attn_indexes=(1,), neck_kernel=3).encoder,
        prompt=PromptConfig(),
        decoder=DecoderConfig(depth=1, mlp_dim=32),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with the small student's checkpoint and the files that the command writes."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = save_student(folder / "student.pth")
    code = export_module.main(["--checkpoint", str(checkpoint), "--out", str(folder / "onnx")])
    assert code == 0
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    build_cache([write_prepared(folder / "tree")], folder / "crops", workers=1)
    return folder / "crops"


def prompts(model, batch, clicks):
    """Return inputs of other sizes and values than those that the command itself checks."""
    generator = torch.Generator().manual_seed(99)
    size, cells = model.config.encoder.img_size, model.prompt_encoder.low_res_size
    image = torch.randn(batch, 1, *[size] * 3, generator=generator)
    points = torch.rand(batch, clicks, 3, generator=generator) * size
    labels = torch.randint(0, 2, (batch, clicks), generator=generator)
    masks = torch.randn(batch, 1, *[cells] * 3, generator=generator)
    return image, points, labels, masks


@torch.no_grad()
def by_pytorch(model, image, points, labels, masks):
    embedding = model.image_encoder(image)
    sparse, dense = model.prompt_encoder((points, labels), None, masks)
    dense_pe = model.prompt_encoder.get_dense_pe()
    return embedding, *model.mask_decoder(embedding, dense_pe, sparse, dense, False)


def by_onnx(folder, image, points, labels, masks):
    (embedding,) = open_session(folder / ENCODER).run(None, {"image": image.numpy()})
    inputs = {"image_embedding": embedding, "point_coords": points.numpy()}
    inputs |= {"point_labels": labels.numpy(), "mask_input": masks.numpy()}
    return embedding, *open_session(folder / DECODER).run(["low_res_masks", "iou"], inputs)


@pytest.mark.parametrize(("batch", "clicks"), [(1, 1), (1, 3), (3, 3), (2, 11)])
def test_both_files_together_do_what_the_network_does(exported, batch, clicks):
    model = build_from_checkpoint(exported / "student.pth").eval()
    inputs = prompts(model, batch, clicks)
    for found, expected in zip(
        by_onnx(exported / "onnx", *inputs), by_pytorch(model, *inputs), strict=True
    ):
        assert relative_error(found, expected) <= 1e-4


def test_padded_windows_and_the_released_prompts_are_exported_too(tmp_path):
    torch.manual_seed(3)
    model = build_sam3D(released_form())
    facts = json.loads(export(model, tmp_path, tolerance=1e-4).read_text())
    inputs = prompts(model, 1, 3)
    for found, expected in zip(by_onnx(tmp_path, *inputs), by_pytorch(model, *inputs), strict=True):
        assert relative_error(found, expected) <= 1e-4
    assert facts["config"] == model.config.to_dict()


def test_the_real_student_encoder_is_exported(tmp_path):
    torch.manual_seed(0)
    model = sam_model_registry3D["tiny_fastsam3d"]().eval()
    write_encoder(model, tmp_path / ENCODER)
    image = torch.randn(1, 1, 128, 128, 128)
    with torch.no_grad():
        expected = model.image_encoder(image)
    assert relative_error(OnnxImageEncoder(tmp_path / ENCODER)(image), expected) <= 1e-4


def test_facts_say_what_was_exported(exported):
    facts = json.loads((exported / "onnx" / FACTS).read_text())
    decoder = facts["files"][DECODER]
    assert facts["crop_rule"] == RULE.to_dict()
    assert facts["network"] == "tiny"
    assert decoder["inputs"]["point_coords"]["shape"] == ["batch", "clicks", 3]
    assert decoder["outputs"]["low_res_masks"]["shape"] == ["batch", 1, 16, 16, 16]
    worst = facts["relative_difference_to_pytorch"][DECODER]
    assert {"batch 1, clicks 1", "batch 1, clicks 2", "batch 1, clicks 5"} <= worst.keys()
    assert sorted(path.name for path in (exported / "onnx").iterdir()) == sorted(
        [ENCODER, DECODER, FACTS]
    )


@pytest.mark.parametrize("clicks", [1, 2, 7])
def test_stamps_at_once_are_stamps_one_after_the_other(clicks):
    prompt_encoder = small_sam().prompt_encoder
    coords = torch.rand(2, clicks, 3) * 31
    coords[:, -1] = 8.5  # the centre of a cell, where nothing is left of the mask
    coords[1] = coords[1, :1]  # all at one place: the last one counts
    labels = torch.randint(-1, 2, (2, clicks))
    labels[:, -1] = 1
    masks = 20 * torch.randn(2, 1, 16, 16, 16)
    expected = prompt_encoder.stamp_clicks(masks, coords, labels)
    torch.testing.assert_close(
        stamp_at_once(prompt_encoder, masks, coords, labels), expected, rtol=1e-4, atol=1e-4
    )


def test_a_file_of_other_weights_is_caught(exported):
    other = small_student(seed=5).eval()
    of_encoder = encoder_differences(other, exported / "onnx" / ENCODER)
    of_decoder = decoder_differences(other, exported / "onnx" / DECODER)
    with pytest.raises(OnnxError, match=r"image_embedding \(batch .\) differs"):
        require_same(ENCODER, of_encoder, 1e-4)
    with pytest.raises(OnnxError, match="differs from PyTorch"):
        require_same(DECODER, of_decoder, 1e-4)


def test_not_a_number_is_no_agreement():
    with pytest.raises(OnnxError, match=r"iou \(b\)"):
        require_same("file", {"a": {"iou": 0.0}, "b": {"iou": float("nan")}}, 1e-4)


def test_what_misses_the_tolerance_is_not_written(tmp_path, capsys):
    checkpoint = save_student(tmp_path / "student.pth")
    out = tmp_path / "onnx"
    arguments = ["--checkpoint", str(checkpoint), "--out", str(out), "--tolerance", "1e-12"]
    assert export_module.main(arguments) == 1
    assert "expected at most 1e-12; nothing was written" in capsys.readouterr().err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_message(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    checkpoint = save_student(tmp_path / "student.pth")
    code = export_module.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "onnx")])
    error = capsys.readouterr().err
    assert code == 1
    assert f"the package {package}, which is not installed" in error
    assert "pip install -r requirements-export.txt" in error


def test_importing_the_modules_imports_no_onnx():
    code = (
        "import sys, segment_anything.export, utils.training.quantise_encoder; "
        "print([name for name in sys.modules if name.startswith('onnx')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_released_encoder_without_decoder_asks_for_the_teacher(tmp_path, capsys):
    torch.save(small_student().image_encoder.state_dict(), tmp_path / "encoder.pth")
    arguments = ["--checkpoint", str(tmp_path / "encoder.pth"), "--out", str(tmp_path / "onnx")]
    assert export_module.main(arguments) == 1
    assert "--teacher" in capsys.readouterr().err


def answer(model):
    """Return the logits of two clicks on a random crop."""
    predictor = CropPredictor(model, torch.device("cpu"))
    crop = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(4))
    clicks = [((9.0, 12.0, 15.0), True), ((20.0, 5.0, 9.0), False)]
    return predictor.decode_all([Prompted(predictor.encode(crop), clicks)])[0]


def test_the_encoder_takes_the_place_of_the_networks_own(exported):
    model = build_from_checkpoint(exported / "student.pth")
    expected = answer(model)
    use_onnx_encoder(model, exported / "onnx" / ENCODER)
    found = answer(model)
    assert isinstance(model.image_encoder, OnnxImageEncoder)
    assert relative_error(found, expected) <= 1e-4
    assert torch.equal(found > 0, expected > 0)


def test_copies_and_other_processes_open_the_file_anew(exported):
    encoder = OnnxImageEncoder(exported / "onnx" / ENCODER)
    image = torch.randn(1, 1, 32, 32, 32)
    expected = encoder(image)
    assert torch.equal(copy.deepcopy(encoder)(image), expected)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(image), expected)


def test_an_encoder_of_other_weights_is_refused(exported):
    other = small_student(seed=5)
    with pytest.raises(OnnxError, match="Export the encoder from the checkpoint"):
        use_onnx_encoder(other, exported / "onnx" / ENCODER)


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.onnx", "no such file"), ("student.pth", "cannot be opened"), (DECODER, "one volume")],
)
def test_what_is_no_encoder_is_refused(exported, name, message):
    path = exported / "onnx" / name if name == DECODER else exported / name
    with pytest.raises(OnnxError, match=message):
        OnnxImageEncoder(path)


def test_a_volume_of_another_size_is_refused(exported):
    encoder = OnnxImageEncoder(exported / "onnx" / ENCODER)
    with pytest.raises(ValueError, match=r"\(1, 1, 16, 32, 32\), expected \(B, 1, 32, 32, 32\)"):
        encoder(torch.zeros(1, 1, 16, 32, 32))


def test_the_int8_encoder_is_small_near_and_used(exported, cache):
    folder = exported / "onnx"
    arguments = ["--folder", str(folder), "--calibrate", str(cache), "--crops", "3"]
    path, difference = quantise_encoder.run(quantise_encoder.parse_args(arguments))
    facts = json.loads((folder / FACTS).read_text())
    path.rename(exported / path.name)  # other tests list the folder
    assert facts[path.name]["relative_difference_to_float32"] == difference
    assert 1e-3 < difference < 0.05  # 8 bits; less would not be 8 bits
    model = build_from_checkpoint(exported / "student.pth")
    expected = answer(model)
    use_onnx_encoder(model, exported / path.name)
    found = answer(model)
    assert 1e-5 < relative_error(found, expected) < 0.1


def test_the_int8_encoder_multiplies_integers(exported, cache, tmp_path):
    onnx = pytest.importorskip("onnx")
    crop = np.random.default_rng(0).standard_normal((1, 1, 32, 32, 32), dtype=np.float32)
    path = tmp_path / "int8.onnx"
    quantise_encoder.quantise(exported / "onnx" / ENCODER, path, iter([crop]))
    tensors = onnx.load(path).graph.initializer
    wide = [
        t.name for t in tensors if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 2000
    ]
    narrow = sum(np.prod(t.dims) for t in tensors if t.data_type == onnx.TensorProto.INT8)
    weights = sum(
        p.numel() for p in small_student().image_encoder.blocks.parameters() if p.dim() == 2
    )
    assert narrow > 0.9 * weights
    assert all("pos_embed" in name or "patch" in name for name in wide)


def test_a_folder_without_an_export_is_named(tmp_path, cache):
    arguments = ["--folder", str(tmp_path), "--calibrate", str(cache)]
    with pytest.raises(InputError, match="Export the network first"):
        quantise_encoder.run(quantise_encoder.parse_args(arguments))


def predicted(folder, name, *flags):
    """Return the masks that predict.py writes for a click on a bright ball."""
    rng = np.random.default_rng(0)
    clicks = np.array([{"fg": [[9, 12, 15]], "bg": []}], dtype=object)
    image = (60 + 90 * ball() + rng.integers(0, 30, ball().shape)).astype(np.uint8)
    np.savez(folder / "CT_A_1.npz", imgs=image, spacing=(1.0, 1.0, 1.0), clicks=clicks)
    words = ["--input", folder / "CT_A_1.npz", "--output", folder / name]
    words += ["--checkpoint", folder / "student.pth", *flags]
    report = predict.run(predict.parse_args(list(map(str, words))))
    assert not report.failures
    with np.load(folder / name / "CT_A_1.npz") as arrays:
        return arrays["segs"]


def test_predict_runs_the_exported_encoder(exported, monkeypatch):
    own = predicted(exported, "own")
    runs = []
    forward = OnnxImageEncoder.forward
    monkeypatch.setattr(
        OnnxImageEncoder, "forward", lambda self, x: runs.append(x.shape) or forward(self, x)
    )
    by_file = predicted(exported, "by_file", "--encoder", exported / "onnx" / ENCODER)
    assert runs
    assert own.any()
    assert np.array_equal(by_file, own)


def test_predict_refuses_the_encoder_of_another_checkpoint(exported, tmp_path):
    save_student(tmp_path / "student.pth", seed=7)
    with pytest.raises(InputError, match="Export the encoder from the checkpoint"):
        predicted(tmp_path, "out", "--encoder", exported / "onnx" / ENCODER)


def test_a_pyramid_decoder_is_exported_with_its_diffusion_and_its_boxes(tmp_path):
    torch.manual_seed(0)
    config = dataclasses.replace(
        PYRAMID,
        prompt=dataclasses.replace(PYRAMID.prompt, boxes=True),
        decoder=dataclasses.replace(PYRAMID.decoder, refine_strength=0.3),
    )
    model = build_sam3D(config).eval()
    write_decoder(model, tmp_path / DECODER)
    for case, differences in decoder_differences(model, tmp_path / DECODER).items():
        assert max(differences.values()) <= 1e-4, case
    _require_that_an_exported_box_counts(model, tmp_path / DECODER)


def _require_that_an_exported_box_counts(model, path):
    """Compare the file with PyTorch on one box, after the click loop; and without that box."""
    embedding = model.image_encoder(torch.randn(1, 1, 64, 64, 64)).detach()
    corners, kinds = box_points(torch.tensor([[[8.0, 20, 12], [40, 44, 50]]]), torch.tensor([True]))
    inputs = {
        "image_embedding": embedding.numpy(),
        "point_coords": torch.cat([corners, torch.zeros(1, 1, 3)], 1).numpy(),
        "point_labels": torch.cat([kinds, torch.tensor([[NO_CLICK]])], 1).numpy(),
        "mask_input": np.zeros((1, 1, 32, 32, 32), np.float32),
    }
    found, _ = open_session(path).run(None, inputs)
    prompted = Prompted(embedding, [], box=((8, 20, 12), (40, 44, 50)))
    predictor = CropPredictor(model, torch.device("cpu"))
    assert relative_error(found, predictor.decode_all([prompted])[0]) <= 1e-4
    inputs["point_labels"][:] = NO_CLICK
    assert relative_error(open_session(path).run(None, inputs)[0], found) > 1e-2
