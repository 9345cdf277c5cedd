"""The networks in weights/: who takes them, what is said, and how a damaged file is found."""

import hashlib
import logging

import pytest
from small_networks import save_student, save_teacher
from test_predict import BOXES, predicted, segs_of, write_npz

import predict
import validation
import validation_student
from utils.errors import InputError
from utils.run.network import open_network
from utils.run.shipped import checkpoint_or_default

VALIDATIONS = {
    "teacher": (validation, "work_dir/teacher_outputs/teacher.pt"),
    "student": (validation_student, "work_dir/student/student.pth"),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7574468\n"


def sign(path):
    """Write the SHA-256 of a file beside it; return the file."""
    beside = path.with_name(path.name + ".sha256")
    beside.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    return path


def predict_on(folder, *flags):
    words = ["--input", folder / "inputs", "--output", folder / "outputs", "--device", "cpu"]
    return predict.run(predict.parse_args([str(word) for word in (*words, *flags)]))


def test_predict_takes_the_shipped_student_and_says_so_in_one_line(tmp_path, weights, caplog):
    path = sign(save_student(weights / "student.pth"))
    case = write_npz(tmp_path / "inputs", boxes=BOXES)
    with caplog.at_level(logging.INFO):
        (written,) = predict_on(tmp_path).written
    (line,) = [text for text in caplog.messages if str(path) in text]
    assert "\n" not in line
    assert "--checkpoint" in line
    (expected,) = predicted(case, tmp_path / "named", path).written
    assert (segs_of(written) == segs_of(expected)).all()
    assert segs_of(written).any()


def test_a_named_checkpoint_is_taken_and_nothing_is_said(tmp_path, weights, caplog):
    (weights / "student.pth").write_text("no network")
    own = save_student(tmp_path / "own.pth")
    write_npz(tmp_path / "inputs", boxes=BOXES)
    with caplog.at_level(logging.INFO):
        assert len(predict_on(tmp_path, "--checkpoint", own).written) == 1
    assert not [text for text in caplog.messages if "checkpoint" in text]


def test_predict_without_any_network_names_the_flag_and_writes_nothing(tmp_path, weights):
    write_npz(tmp_path / "inputs", boxes=BOXES)
    with pytest.raises(InputError, match=r"student\.pth: no such file.*\n.*--checkpoint FILE"):
        predict_on(tmp_path)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("role", VALIDATIONS)
def test_a_validation_without_any_network_names_the_flag(weights, role):
    script, _ = VALIDATIONS[role]
    with pytest.raises(InputError, match=rf"{role}\.pth: no such file.*\n.*--checkpoint FILE"):
        script.run(script.parse_args([]))


@pytest.mark.parametrize("role", VALIDATIONS)
def test_a_validation_opens_the_shipped_network_of_its_role(weights, role):
    script, _ = VALIDATIONS[role]
    for name in VALIDATIONS:
        (weights / f"{name}.pth").write_text("no network")
    with pytest.raises(InputError, match=rf"weights.{role}\.pth: not readable"):
        script.run(script.parse_args([]))


@pytest.mark.parametrize("role", VALIDATIONS)
def test_a_validation_opens_the_users_own_training_before_the_shipped_network(weights, role):
    script, own = VALIDATIONS[role]
    save_teacher(weights / f"{role}.pth")
    path = weights.parent / own
    path.parent.mkdir(parents=True)
    path.write_text("no network")
    with pytest.raises(InputError, match=rf"^{own}: not readable"):
        script.run(script.parse_args([]))


def test_which_of_own_and_shipped_is_taken_is_said(tmp_path, weights, caplog):
    save_student(weights / "student.pth")
    own = tmp_path / "own.pth"
    with caplog.at_level(logging.INFO):
        assert checkpoint_or_default(None, "student", own=own) == weights / "student.pth"
        save_student(own)
        assert checkpoint_or_default(None, "student", own=own) == own
    first, second = caplog.messages
    assert str(weights / "student.pth") in first
    assert str(own) in second


def test_a_file_with_its_own_sha256_beside_it_opens(weights):
    path = sign(save_student(weights / "student.pth"))
    assert open_network(path)[0].config.network == "tiny"


def one_bit_flipped(path):
    """Flip the lowest bit of a weight: a change that shows in nothing but the SHA-256."""
    model, _ = open_network(path)
    weight = model.image_encoder.blocks[0].mlp.lin1.weight.detach().numpy().tobytes()
    content = bytearray(path.read_bytes())
    place = content.find(weight)
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)


def test_a_damaged_file_is_refused_with_both_hashes(weights):
    path = sign(save_student(weights / "student.pth"))
    expected = (weights / "student.pth.sha256").read_text().split()[0]
    one_bit_flipped(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="damaged or was replaced") as error:
        open_network(path)
    assert str(error.value).startswith(f"{path}: {path.stat().st_size:,} bytes")
    assert f"{found}, expected {expected}" in str(error.value)
    (weights / "student.pth.sha256").unlink()
    open_network(path)  # the bit alone is no reason to refuse it


@pytest.mark.parametrize("content", ["", "no digest\n", "ab" * 31 + "  student.pth\n"])
def test_a_sha256_that_is_none_is_refused_by_its_own_name(weights, content):
    path = save_student(weights / "student.pth")
    (weights / "student.pth.sha256").write_text(content)
    with pytest.raises(InputError, match=r"student\.pth\.sha256: begins with .*64 hexadecimal"):
        open_network(path)


@pytest.mark.parametrize("line", ["{}\n", "{}  other.pth\r\n", "{} *student.pth"])
def test_the_forms_of_sha256sum_are_read(weights, line):
    path = save_student(weights / "student.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (weights / "student.pth.sha256").write_text(line.format(digest.upper()))
    open_network(path)


def test_a_pointer_of_git_lfs_is_named_with_the_command_that_helps(weights):
    path = weights / "student.pth"
    path.write_text(POINTER)
    with pytest.raises(InputError, match=r"pointer of Git LFS of \d+ bytes.*\n.*git lfs pull"):
        open_network(path)
