"""Network files: what `open_network` rebuilds, and what it refuses."""

import pytest
import torch
from small_networks import RULE, save_student, save_teacher, small_sam

from segment_anything import checkpoint_payload, fingerprint
from utils.errors import InputError
from utils.run.network import open_network, save_payload


def test_a_network_comes_back_with_its_crops(tmp_path):
    model, rule = open_network(save_teacher(tmp_path / "t.pt"))
    assert rule == RULE
    assert fingerprint(model) == fingerprint(small_sam())


def _saved_with(path, values):
    model = small_sam()
    with torch.no_grad():
        model.image_encoder.pos_embed.view(-1)[:2] = torch.tensor(values)
    save_payload(path, checkpoint_payload(model))
    return model


@pytest.mark.parametrize("values", [(float("inf"), -float("inf")), (0.0, float("nan"))])
def test_weights_that_are_not_finite_are_named(tmp_path, values):
    _saved_with(tmp_path / "t.pt", values)
    with pytest.raises(InputError, match=r"1 weights are not finite, image_encoder\.pos_embed"):
        open_network(tmp_path / "t.pt")


def test_finite_weights_may_have_a_sum_that_is_not(tmp_path):
    model = _saved_with(tmp_path / "t.pt", (3e38, 3e38))
    assert fingerprint(open_network(tmp_path / "t.pt")[0]) == fingerprint(model)


def test_a_file_without_our_configuration_needs_a_name(tmp_path):
    torch.save({"model_state_dict": small_sam().state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(InputError, match="vit_b_ori"):
        open_network(tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"bare\.pth: the weights are not those of vit_b_ori"):
        open_network(tmp_path / "bare.pth", "vit_b_ori")


def test_a_student_file_is_complete_and_takes_another_teachers_decoder(tmp_path):
    own, _ = open_network(save_student(tmp_path / "s.pth"))
    teacher_path = save_teacher(tmp_path / "t.pt", seed=7)
    with_teacher, _ = open_network(tmp_path / "s.pth", decoder_checkpoint=teacher_path)
    teacher, _ = open_network(teacher_path)
    for name, weights in teacher.mask_decoder.state_dict().items():
        assert torch.equal(with_teacher.mask_decoder.state_dict()[name], weights)
    for name, weights in own.image_encoder.state_dict().items():
        assert torch.equal(with_teacher.image_encoder.state_dict()[name], weights)
