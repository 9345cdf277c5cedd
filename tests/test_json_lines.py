"""Logs of a training: what can be read is kept, and what cannot is kept beside it."""

import json

import pytest

from utils.errors import InputError
from utils.training.json_lines import append_row, resume_rows

ROWS = [{"step": n, "loss": 1 / n, "lr": 0} for n in range(1, 6)]
LINES = [json.dumps(row) + "\n" for row in ROWS]
BAD_LINES = {
    "no JSON": b"{bad",
    "binary": b"\xff\xfe\x00",
    "deep nesting": b"[" * 100_000,
    "a list": b"[1]",
    "no step": b'{"loss": 1}',
    "no loss": b'{"step": 1}',
    "loss as text": b'{"step": 1, "loss": "x"}',
    "step as text": b'{"step": "1", "loss": 1}',
    "step as a fraction": b'{"step": 1.5, "loss": 1}',
    "step as truth": b'{"step": true, "loss": 1}',
    "a key twice": b'{"step": 1, "step": 2, "loss": 1}',
}


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(LINES))
    return path


def beside(log):
    return [path for path in log.parent.iterdir() if path != log]


def test_rows_after_the_checkpoint_are_removed(log):
    assert resume_rows(log, 3, "loss") == ROWS[:3]
    assert log.read_text() == "".join(LINES[:3])
    assert not beside(log)


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_damaged_line_costs_no_other_and_its_bytes_are_kept(log, caplog, bad, place):
    lines = [line.encode() for line in LINES]
    content = b"".join([*lines[:place], BAD_LINES[bad] + b"\n", *lines[place:]])
    log.write_bytes(content)

    assert resume_rows(log, 5, "loss") == ROWS

    assert log.read_text() == "".join(LINES)
    (kept,) = beside(log)
    assert kept.read_bytes() == content
    assert f"1 lines cannot be read, line {place + 1} first" in caplog.text
    assert kept.name in caplog.text


def test_a_last_line_that_a_kill_cut_short_is_dropped(log, caplog):
    log.write_text("".join(LINES) + LINES[0][:12])

    assert resume_rows(log, 5, "loss") == ROWS
    assert not beside(log)
    assert not caplog.text


def test_garbage_without_a_line_end_is_kept_too(log):
    log.write_bytes(b"[" * 100_000)

    assert resume_rows(log, 5, "loss") == []
    assert beside(log)[0].stat().st_size == 100_000


def test_numbers_beyond_json_stay(log):
    append_row(log, {"step": 6, "loss": 0.5, "gradient_norm": float("inf")})

    assert resume_rows(log, 6, "loss")[-1]["gradient_norm"] == float("inf")


def test_a_folder_in_place_of_the_log_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()

    with pytest.raises(InputError, match=r"metrics\.jsonl: is not a regular file"):
        resume_rows(tmp_path / "metrics.jsonl", 1, "loss")
