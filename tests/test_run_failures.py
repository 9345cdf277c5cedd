"""One failed case: named in a line, its traceback in a log, and the other cases go on."""

import errno

import numpy as np
import pytest
import torch
from small_networks import save_student
from test_predict import BOXES, predicted, write_npz
from validation_helpers import fail_once

from utils.errors import InputError, exit_on_input_error, is_out_of_memory
from utils.files.atomic import WriteError
from utils.run.failures import explain, new_log


@pytest.fixture
def student(tmp_path):
    return save_student(tmp_path / "student.pth")


def error_of(function):
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        function()
    return raised.value


OUT_OF_MEMORY = {
    "NumPy": error_of(lambda: np.empty(2**60, np.uint8)),
    "PyTorch on a CPU": error_of(lambda: torch.empty(2**60, dtype=torch.uint8)),
    "PyTorch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    "Python": MemoryError(),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    "the operating system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("who", OUT_OF_MEMORY)
def test_who_runs_out_of_memory_is_known(who):
    assert is_out_of_memory(OUT_OF_MEMORY[who])


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), KeyError("out of memory"), OSError(errno.EIO, "no")]
)
def test_other_errors_are_no_want_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OUT_OF_MEMORY["NumPy"], "there is not enough memory"),
        (OUT_OF_MEMORY["PyTorch on a CPU"], "there is not enough memory"),
        (OUT_OF_MEMORY["PyTorch on a GPU"], "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
        (KeyError("a\nb"), "failed by a defect of this program (KeyError"),
    ],
)
def test_predict_names_the_case_and_answers_the_others(
    tmp_path, student, monkeypatch, caplog, error, said
):
    for name in ("CT_A_1", "CT_A_2"):
        write_npz(tmp_path / "inputs", name, boxes=BOXES)
    fail_once(monkeypatch, np, "savez_compressed", error)
    report = predicted(tmp_path / "inputs", tmp_path / "out", student)
    assert [path.name for path in report.written] == ["CT_A_2.npz"]
    (failure,) = report.failures
    assert f"CT_A_1.npz: {said}" in failure
    assert "\n" not in failure
    assert failure in caplog.messages
    assert not any(record.exc_info for record in caplog.records)
    (log,) = (tmp_path / "out").glob("*.log")
    assert str(log) in failure
    text = log.read_text()
    assert "CT_A_1.npz" in text
    assert "Traceback (most recent call last)" in text
    assert type(error).__name__ in text


def test_a_full_disk_ends_the_run(tmp_path, student, monkeypatch):
    for name in ("CT_A_1", "CT_A_2"):
        write_npz(tmp_path / "inputs", name, boxes=BOXES)
    full = OSError(errno.ENOSPC, "No space left on device")
    fail_once(monkeypatch, np, "savez_compressed", full)
    with pytest.raises(WriteError, match="No space left"):
        predicted(tmp_path / "inputs", tmp_path / "out", student)
    assert list((tmp_path / "out").iterdir()) == []


def test_logs_of_two_runs_are_two_files(tmp_path):
    first = new_log(tmp_path)
    explain("a", KeyError("x"), first)
    second = new_log(tmp_path)
    assert first.is_file()
    assert second != first
    explain("b", KeyError("y"), first)
    assert "KeyError: 'x'" in first.read_text()
    assert "KeyError: 'y'" in first.read_text()


def test_an_error_of_the_user_has_no_traceback(tmp_path):
    log = tmp_path / "errors.log"
    assert explain("a.npz", InputError("is damaged"), log) == "a.npz: is damaged"
    assert explain("a.npz", InputError("a.npz: is damaged"), log) == "a.npz: is damaged"
    assert not log.exists()


@pytest.mark.parametrize("who", OUT_OF_MEMORY)
def test_a_script_that_runs_out_of_memory_ends_with_one_message(who, capsys):
    @exit_on_input_error
    def main():
        raise OUT_OF_MEMORY[who]

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_defect_of_a_script_keeps_its_traceback():
    @exit_on_input_error
    def main():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        main()
