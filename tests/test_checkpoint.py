import resource
import signal

import pytest
import torch
from small import RULE, save_student, save_teacher, small_sam, small_student

from segment_anything import checkpoint_payload, fingerprint
from utils.errors import InputError
from utils.files.atomic import WriteError, atomic_path
from utils.run.network import open_network
from utils.training.checkpoint import save_payload
from utils.training.distillation import copy_teacher_blocks


@pytest.fixture
def one_megabyte(monkeypatch):
    """Let no file grow beyond 1 MiB: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, one_megabyte):
    path = tmp_path / "last.pt"
    save_payload(path, {"step": 1})
    with pytest.raises(WriteError, match=r"(?s)last\.pt: cannot be written.*MiB are free"):
        save_payload(path, {"step": 2, "weights": torch.zeros(10**6)})
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with atomic_path(tmp_path / "a" / "b.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / "a").iterdir())


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
    with pytest.raises(InputError, match=r"bare\.pth"):
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


def test_a_student_starts_from_the_teachers_blocks_of_equal_shape():
    teacher = small_sam(depth=4)
    student = small_student()
    copied = copy_teacher_blocks(teacher, student)
    ours, theirs = student.image_encoder.state_dict(), teacher.image_encoder.state_dict()
    assert torch.equal(ours["pos_embed"], theirs["pos_embed"])
    assert torch.equal(ours["blocks.1.attn.qkv.weight"], theirs["blocks.3.attn.qkv.weight"])
    assert torch.equal(ours["blocks.0.mlp.lin1.weight"], theirs["blocks.1.mlp.lin1.weight"])
    assert "blocks.0.attn.qkv.weight" not in ours
    assert len(copied) == len(ours)
