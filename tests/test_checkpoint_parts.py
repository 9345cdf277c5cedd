"""What is read from a checkpoint and what is loaded: parts, entries, keys, names, fingerprints."""

import dataclasses
import re

import pytest
import torch
from small_networks import small_config, small_sam, small_student

from segment_anything import (
    CheckpointError,
    build_sam3D,
    checkpoint_payload,
    fingerprint,
    load_checkpoint,
    open_checkpoint,
    read_checkpoint,
    student_payload,
)
from segment_anything.checkpoint import PARTS, require_decoder, student_num_heads


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves its argument and returns the path."""

    def save(content):
        torch.save(content, tmp_path / "file.pth")
        return tmp_path / "file.pth"

    return save


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def changed(part, **fields):
    """Return a small network whose config has other fields in one part."""
    config = small_config()
    other = dataclasses.replace(getattr(config, part), **fields)
    torch.manual_seed(3)
    return build_sam3D(dataclasses.replace(config, **{part: other}))


def test_an_open_file_has_weights_config_and_facts_apart(saved):
    model = small_sam()
    path = saved(checkpoint_payload(model, step=7, crop_rule={"size": 32}))
    opened = open_checkpoint(path)
    assert opened.path == path
    assert opened.weights.keys() == model.state_dict().keys()
    assert opened.config == model.config.to_dict()
    assert opened.facts.keys() == {"config", "step", "crop_rule"}
    assert (opened.facts["step"], opened.facts["crop_rule"]) == (7, {"size": 32})
    assert open_checkpoint(opened) is opened
    assert open_checkpoint(str(path)).path == path


def test_a_bare_state_dict_has_neither_config_nor_facts(saved):
    opened = open_checkpoint(saved(small_sam().state_dict()))
    assert opened.config is None
    assert not opened.facts
    assert all(opened.holds(part) for part in PARTS)


@pytest.mark.parametrize("config", [{"lr": 1e-4}, "fastsam3d", None])
def test_a_config_that_names_no_network_is_not_ours(saved, config):
    opened = open_checkpoint(
        saved({"model_state_dict": small_sam().state_dict(), "config": config})
    )
    assert opened.config is None
    assert opened.facts == {"config": config}
    load_checkpoint(small_sam(1), opened)


def test_a_students_file_is_its_encoder_and_its_decoder_apart(saved):
    student = small_student()
    content = student_payload(student, step=3)
    assert content["model_state_dict"].keys() == student.image_encoder.state_dict().keys()
    assert {key.split(".")[0] for key in content["decoder_state_dict"]} == set(PARTS[1:])
    assert (content["step"], content["config"]) == (3, student.config.to_dict())
    opened = open_checkpoint(saved(content))
    assert opened.weights.keys() == student.state_dict().keys()
    assert opened.facts.keys() == {"config", "step"}
    target = small_student(9)
    load_checkpoint(target, opened)
    assert same(target, student)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_compiled_and_parallel_networks_are_dropped(saved, prefix):
    source = small_student()
    content = student_payload(source)
    for entry in ("model_state_dict", "decoder_state_dict"):
        content[entry] = {prefix + key: value for key, value in content[entry].items()}
    target = small_student(9)
    load_checkpoint(target, saved(content))
    assert same(target, source)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_is_loaded_and_the_rest_stays(saved, part):
    source, target, before = small_sam(0), small_sam(1), small_sam(1)
    load_checkpoint(target, saved(checkpoint_payload(source)), parts=[part])
    for each in PARTS:
        origin = source if each == part else before
        assert same(getattr(target, each), getattr(origin, each))
    assert not same(getattr(source, part), getattr(before, part))


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_of_the_file_may_be_of_another_network(saved, part):
    weights = small_sam().state_dict()
    for key in weights:
        if not key.startswith(part):
            weights[key] = torch.zeros(3)
    load_checkpoint(small_sam(1), saved({"model_state_dict": weights}), parts=[part])


def test_a_file_opened_once_may_be_loaded_by_part(saved):
    encoder = {"model_state_dict": small_sam().image_encoder.state_dict()}
    opened = open_checkpoint(saved(encoder))
    assert [opened.holds(part) for part in PARTS] == [True, False, False]
    with pytest.raises(CheckpointError, match="no weights of prompt_encoder and mask_decoder:"):
        load_checkpoint(small_sam(1), opened)
    with pytest.raises(CheckpointError, match="holds an image encoder alone"):
        require_decoder(opened)
    require_decoder(open_checkpoint(saved(checkpoint_payload(small_sam()))))


@pytest.mark.parametrize(
    ("part", "loaded", "field", "value", "found"),
    [
        ("encoder", "image_encoder", "mlp_residual", "normalised", "is normalised, expected input"),
        ("prompt", "prompt_encoder", "dense_pe_axes", (1, 0, 2), r"is .*1, 0, 2.*expected .*0, 1"),
        ("decoder", "mask_decoder", "num_heads", 4, r"is 4, expected 8"),
    ],
)
def test_a_config_of_another_network_is_refused_for_the_part_that_differs(
    saved, part, loaded, field, value, found
):
    path = saved(checkpoint_payload(changed(part, **{field: value})))
    with pytest.raises(CheckpointError, match=rf"(?s)file\.pth: .*{part}\.{field} {found}"):
        load_checkpoint(small_sam(), path, parts=[loaded])
    others = [each for each in PARTS if each != loaded]
    load_checkpoint(small_sam(), path, parts=others)


def test_prompt_fields_that_do_not_change_the_weights_may_differ(saved):
    path = saved(checkpoint_payload(changed("prompt", click_memory="last")))
    load_checkpoint(small_sam(), path)


def test_a_message_names_at_most_eight_keys(saved):
    weights = small_sam().state_dict()
    more = {f"image_encoder.extra{n}": torch.zeros(1) for n in range(9)}
    with pytest.raises(CheckpointError, match=r"extra7, and 1 more\n"):
        load_checkpoint(small_sam(), saved({"model_state_dict": weights | more}))
    del more["image_encoder.extra8"]
    with pytest.raises(CheckpointError, match=r"extra6, image_encoder\.extra7\n"):
        load_checkpoint(small_sam(), saved({"model_state_dict": weights | more}))


def test_a_message_says_how_many_tensors_of_which_parts_were_expected(saved):
    weights = small_sam().state_dict()
    del weights["mask_decoder.iou_token.weight"]
    count = sum(key.startswith("mask_decoder.") for key in small_sam().state_dict())
    with pytest.raises(CheckpointError, match=f"expected: {count} tensors of mask_decoder\n"):
        load_checkpoint(small_sam(), saved({"model_state_dict": weights}), parts=["mask_decoder"])


@pytest.mark.parametrize(
    ("network", "file", "found"),
    [
        (small_student, small_sam, "Block 0 has attention in the file and none in tiny"),
        (small_sam, small_student, "Block 0 has no attention in the file and some in tiny"),
        (small_sam, lambda: small_sam(out_chans=96), "the network that wrote the file"),
    ],
)
def test_weights_that_do_not_fit_get_advice_from_their_keys(saved, network, file, found):
    path = saved({"model_state_dict": file().state_dict()})
    with pytest.raises(CheckpointError, match=found):
        load_checkpoint(network(), path)


def test_heads_follow_from_the_widths_of_the_tables():
    assert student_num_heads(small_sam().state_dict()) == 2
    assert student_num_heads(small_sam().image_encoder.state_dict()) == 2
    assert student_num_heads(small_sam(num_heads=3).state_dict()) == 3
    without = {"image_encoder.pos_embed": torch.zeros(1, 4, 4, 4, 24)}
    with pytest.raises(CheckpointError, match=r"s\.pth: found the keys image_encoder\.pos_embed"):
        student_num_heads(without, "s.pth")
    with pytest.raises(CheckpointError, match=r"^the weights: found the keys"):
        student_num_heads({"a.rel_pos_d": torch.zeros(3, 12)})


def test_a_fingerprint_is_16_digits_of_weights_names_types_and_config():
    model = small_sam()
    seen = {fingerprint(model), fingerprint(small_sam(1)), fingerprint(small_student(0))}
    assert fingerprint(small_sam()) in seen
    with torch.no_grad():
        weight = model.mask_decoder.iou_token.weight
        weight[0, [0, 1]] = weight[0, [1, 0]]
    seen.add(fingerprint(model))
    seen.add(fingerprint(changed("prompt", click_memory="last")))
    seen.add(fingerprint(small_sam().half()))
    assert len(seen) == 6
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in seen)


def test_content_is_read_onto_the_cpu_as_it_was_saved(saved):
    content = {"model_state_dict": {"a": torch.arange(3)}, "step": 7, "name": "x"}
    found = read_checkpoint(saved(content))
    assert found.keys() == content.keys()
    assert found["model_state_dict"]["a"].tolist() == [0, 1, 2]
    assert found["model_state_dict"]["a"].device.type == "cpu"


def test_an_error_of_the_disk_is_no_damage_of_the_file(saved, monkeypatch):
    def broken(*_, **__):
        raise OSError("broken disk")

    path = saved({"a": torch.zeros(1)})
    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(OSError, match="broken disk"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{}, {"a": torch.zeros(1), "b": 3}, {"model_state_dict": {}}])
def test_a_dictionary_without_weights_is_refused(saved, content):
    with pytest.raises(CheckpointError, match=r"file\.pth: found the entries .*'model_state_dict'"):
        open_checkpoint(saved(content))
