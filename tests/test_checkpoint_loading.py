"""Checkpoints: what loads, what is refused, and what the refusal says."""

import argparse
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from segment_anything import (
    CheckpointError,
    SamConfig,
    build_from_checkpoint,
    build_sam3D,
    checkpoint_payload,
    fingerprint,
    load_checkpoint,
    read_checkpoint,
    sam_model_registry3D,
    student_payload,
)
from segment_anything.build_sam3D import FASTSAM3D, TINY, TINY_FASTSAM3D
from segment_anything.checkpoint import student_num_heads


def _small(config=TINY, **encoder):
    """Return a narrow network in the form of ``config``, for 64^3 volumes."""
    changes = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2}
    if config is TINY:
        changes["attention_free_blocks"] = ()
    changes |= encoder
    encoder = dataclasses.replace(config.encoder, **changes)
    return build_sam3D(dataclasses.replace(config, encoder=encoder))


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves its argument and returns the path."""

    def save(content):
        path = tmp_path / "file.pth"
        torch.save(content, path)
        return path

    return save


@pytest.fixture(scope="module")
def student_files(tmp_path_factory):
    """Files of a 6-head FastSAM3D encoder alone, and of the teacher it belongs to."""
    folder = tmp_path_factory.mktemp("released")
    config = dataclasses.replace(
        FASTSAM3D, encoder=dataclasses.replace(FASTSAM3D.encoder, num_heads=6)
    )
    student = build_sam3D(config)
    torch.save({"model_state_dict": student.image_encoder.state_dict()}, folder / "student.pth")
    decoder = {k: v for k, v in student.state_dict().items() if not k.startswith("image")}
    teacher = {"image_encoder.blocks.0.norm1.weight": torch.zeros(768)} | decoder
    torch.save({"model_state_dict": teacher}, folder / "teacher.pth")
    return folder, student


def _same_weights(model, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def _prefixed(prefix):
    return lambda weights: {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    "rewrite",
    [
        dict,
        _prefixed("module."),
        _prefixed("module.module."),
        lambda weights: {key.replace(".", ".module.", 1): v for key, v in weights.items()},
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_whole_network_loads_under_any_wrapping(saved, rewrite, bare):
    source, target = _small(), _small()
    weights = rewrite(source.state_dict())
    load_checkpoint(target, saved(weights if bare else {"model_state_dict": weights, "epoch": 3}))
    assert _same_weights(target, source)


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "module.image_encoder.", "module."])
def test_encoder_alone_loads_with_and_without_its_prefix(saved, prefix):
    source, target = _small().image_encoder, _small()
    path = saved({"model_state_dict": _prefixed(prefix)(source.state_dict())})
    load_checkpoint(target, path, parts=["image_encoder"])
    assert _same_weights(target.image_encoder, source)


@pytest.mark.parametrize("numpy_core", [b"numpy._core", b"numpy.core"])  # NumPy 2 and 1
def test_file_with_training_leftovers_is_read(tmp_path, numpy_core):
    leftovers = {
        "args": argparse.Namespace(lr=1e-4, out=Path("work_dir"), size=[128, 128]),
        "best_dice": np.float64(0.5),
        "losses": [np.float32(1.5), np.arange(3)],
        "step": np.int64(7),
    }
    path = tmp_path / "leftovers.pth"
    torch.save(leftovers, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", numpy_core))
    content = read_checkpoint(path)
    assert content["args"].out == Path("work_dir")
    assert content["best_dice"] == 0.5
    assert content["losses"][1].tolist() == [0, 1, 2]


def test_old_format_is_read(tmp_path):
    model = _small()
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(_small(), tmp_path / "old.pth")


class Surprise:
    """An object that cannot be rebuilt without running code."""


UNUSABLE = {
    "missing": "no such file",
    "empty": "not readable",
    "truncated": "not readable",
    "text": "not readable",
    "code": "not readable",
    "tensor": "holds a Tensor, expected a dictionary",
    "no weights": "found the entries weights_of_the_model",
}


@pytest.mark.parametrize(("damage", "found"), UNUSABLE.items(), ids=UNUSABLE)
def test_unusable_file_is_named_with_what_to_do(tmp_path, damage, found):
    path = tmp_path / "file.pth"
    torch.save({"model_state_dict": _small().state_dict()}, path)
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "text":
            path.write_text("<html>quota exceeded</html>")
        case "code":
            torch.save({"model_state_dict": _small().state_dict(), "args": Surprise()}, path)
        case "tensor":
            torch.save(torch.zeros(3), path)
        case "no weights":
            torch.save({"weights_of_the_model": {}}, path)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: {found}") as error:
        load_checkpoint(_small(), path)
    assert "expected" in str(error.value)
    assert str(error.value).endswith(".")


def test_mismatch_names_missing_unexpected_and_reshaped_keys_and_loads_nothing(saved):
    weights = _small().state_dict()
    weights["image_encoder.extra"] = weights.pop("image_encoder.pos_embed")
    weights["mask_decoder.iou_token.weight"] = torch.zeros(1, 7)
    target, untouched = _small(), _small()
    untouched.load_state_dict(target.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(target, saved({"model_state_dict": weights}))
    assert "missing: image_encoder.pos_embed" in str(error.value)
    assert "unexpected: image_encoder.extra" in str(error.value)
    assert "reshaped: mask_decoder.iou_token.weight (1, 7) for (1, 192)" in str(error.value)
    assert _same_weights(target, untouched)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "reshaped"])
def test_one_key_that_does_not_fit_is_enough_to_refuse_a_file(saved, fault):
    weights = _small().state_dict()
    match fault:
        case "missing":
            del weights["mask_decoder.iou_token.weight"]
        case "unexpected":
            weights["mask_decoder.iou_token.bias"] = torch.zeros(3)
        case "reshaped":
            weights["mask_decoder.iou_token.weight"] = torch.zeros(1, 7)
    target, untouched = _small(), _small()
    untouched.load_state_dict(target.state_dict())
    with pytest.raises(CheckpointError, match=rf"{fault}: mask_decoder\.iou_token\.") as error:
        load_checkpoint(target, saved({"model_state_dict": weights}))
    assert str(error.value).count("iou_token") == 1
    assert _same_weights(target, untouched)


def test_long_lists_of_keys_are_shortened(saved):
    with pytest.raises(CheckpointError, match=r"missing: .*, and \d+ more"):
        load_checkpoint(_small(depth=4), saved(_small().state_dict()))


def test_encoder_alone_says_that_the_decoder_is_elsewhere(saved):
    path = saved({"model_state_dict": _small().image_encoder.state_dict()})
    with pytest.raises(CheckpointError, match="decoder_checkpoint"):
        load_checkpoint(_small(), path)


def test_teacher_offered_to_a_student_is_recognised(saved):
    path = saved({"model_state_dict": _small().state_dict()})
    with pytest.raises(CheckpointError, match="Block 0 has attention in the file"):
        load_checkpoint(_small(TINY_FASTSAM3D), path)


def test_equal_keys_of_another_network_are_refused_by_the_config(saved):
    """The residual shows in no key and no shape: without the config a wrong one would load."""
    path = saved(checkpoint_payload(_small()))
    with pytest.raises(CheckpointError, match=r"encoder\.mlp_residual is input, expected normalis"):
        load_checkpoint(_small(mlp_residual="normalised"), path)


def test_our_file_rebuilds_its_network(saved):
    model = _small()
    rebuilt = build_from_checkpoint(saved(checkpoint_payload(model, step=5)))
    assert rebuilt.config == model.config
    assert fingerprint(rebuilt) == fingerprint(model)


def test_weights_that_a_file_overwrites_are_not_drawn(saved):
    model = _small()
    path = saved(checkpoint_payload(model))
    matrix = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    torch.manual_seed(0)
    torch.randn_like(matrix)
    expected = torch.rand(1)
    torch.manual_seed(0)
    rebuilt = build_from_checkpoint(path)
    assert torch.rand(1) == expected
    assert _same_weights(rebuilt, model)
    assert all(p.requires_grad for p in rebuilt.parameters())
    for (name, found), (_, buffer) in zip(
        rebuilt.named_buffers(), model.named_buffers(), strict=True
    ):
        assert torch.equal(found, buffer), name
    volume = torch.randn(1, 1, 64, 64, 64)
    assert torch.equal(rebuilt.image_encoder(volume), model.image_encoder(volume))


@pytest.mark.filterwarnings("error")
def test_our_student_file_is_released_layout_and_self_contained(saved):
    student = _small(TINY_FASTSAM3D)
    path = saved(student_payload(student, teacher="abc"))
    assert read_checkpoint(path)["model_state_dict"].keys() == (
        student.image_encoder.state_dict().keys()
    )
    assert fingerprint(build_from_checkpoint(path)) == fingerprint(student)


def test_decoder_checkpoint_replaces_the_other_parts(tmp_path):
    student, teacher = _small(TINY_FASTSAM3D), _small()
    torch.save(student_payload(student), tmp_path / "student.pth")
    torch.save(checkpoint_payload(teacher), tmp_path / "teacher.pth")
    model = build_from_checkpoint(
        tmp_path / "student.pth", decoder_checkpoint=tmp_path / "teacher.pth"
    )
    assert _same_weights(model.image_encoder, student.image_encoder)
    assert _same_weights(model.mask_decoder, teacher.mask_decoder)


def test_unnamed_file_needs_a_name_from_the_registry(saved):
    path = saved(_small().state_dict())
    with pytest.raises(CheckpointError, match="vit_b_ori, fastsam3d, tiny, tiny_fastsam3d"):
        build_from_checkpoint(path)


def test_wrong_name_for_our_file_is_refused(saved):
    with pytest.raises(CheckpointError, match="holds the network 'tiny', expected 'fastsam3d'"):
        build_from_checkpoint(saved(checkpoint_payload(_small())), network="fastsam3d")


def test_config_of_another_version_is_refused(saved):
    payload = checkpoint_payload(_small())
    payload["config"]["encoder"]["rotary"] = True
    with pytest.raises(CheckpointError, match="rotary"):
        build_from_checkpoint(saved(payload))


def test_wrong_network_name_reports_keys(saved):
    path = saved({"model_state_dict": sam_model_registry3D["tiny"]().state_dict()})
    with pytest.raises(CheckpointError, match=r"unexpected: image_encoder\.blocks\.3\.norm1"):
        build_from_checkpoint(path, network="tiny_fastsam3d")


def test_six_heads_are_read_from_a_released_student(student_files):
    folder, student = student_files
    weights = read_checkpoint(folder / "student.pth")["model_state_dict"]
    assert student_num_heads(weights) == 6
    with pytest.warns(UserWarning, match="untrained until decoder_checkpoint"):
        model = sam_model_registry3D["fastsam3d"](checkpoint=folder / "student.pth")
    assert model.config.encoder.num_heads == 6
    assert _same_weights(model.image_encoder, student.image_encoder)


@pytest.mark.filterwarnings("error")
def test_released_student_takes_its_decoder_from_the_teachers_file(student_files):
    folder, student = student_files
    model = build_from_checkpoint(
        folder / "student.pth", "fastsam3d", decoder_checkpoint=folder / "teacher.pth"
    )
    assert _same_weights(model, student)


def test_fingerprint_changes_with_a_weight_and_with_the_config():
    model = _small()
    before = fingerprint(model)
    assert fingerprint(model) == before
    values = model.config.to_dict()
    values["prompt"]["click_memory"] = "last"
    relabelled = build_sam3D(SamConfig.from_dict(values))
    relabelled.load_state_dict(model.state_dict())
    assert fingerprint(relabelled) != before
    with torch.no_grad():
        model.mask_decoder.iou_token.weight[0, 0] += 1e-3
    assert fingerprint(model) != before
