"""Kept scores: whatever a file of them holds, a run ends with scores of its own, or without it."""

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from score_helpers import row, target

from utils.errors import InputError
from utils.validation.kept import keep_score, kept_score, remove_kept_score
from utils.validation.protocol import ScoreJob
from utils.validation.scores import CaseScore


@dataclass(frozen=True)
class Job(ScoreJob):
    """A job whose scores are given, with one source and one output."""

    protocol = "challenge"

    @property
    def outputs(self):
        return (self.out_dir / "predictions" / f"{self.case}.npz",)

    @property
    def sources(self):
        return (self.out_dir / "source.npz",)

    def make_ready(self):
        """Need nothing."""

    def score(self):
        return CaseScore.from_dict(row(self.case))

    def overlay(self, score):
        return None


@pytest.fixture
def job(tmp_path):
    job = Job("CT_AMOS_1", tmp_path / "out", SimpleNamespace(num_clicks=2, digest="d"))
    for path in (*job.outputs, *job.sources):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"voxels")
    keep_score(job, job.key(), job.score())
    return job


def test_scores_that_are_still_valid_are_kept(job, caplog):
    assert kept_score(job) == job.score()
    assert not caplog.records


def test_what_a_flag_adds_to_a_target_is_kept(job):
    content = json.loads(job.score_path.read_text())
    content["score"]["targets"][0].update(ADDED)
    job.score_path.write_text(json.dumps(content))

    kept = kept_score(job)

    assert kept.targets[0].ceiling.cell_dsc == 0.8
    assert kept.targets[0].images[0].nsd == (0.25, 0.5)
    assert json.loads(json.dumps(kept.to_dict()))["targets"] == content["score"]["targets"]


def test_scores_of_a_source_that_was_changed_under_its_old_time_are_not_kept(job):
    (source,) = job.sources
    times = source.stat()
    source.write_bytes(b"others")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert kept_score(job) is None


def test_missing_scores_are_no_damage(job, caplog):
    job.score_path.unlink()
    assert kept_score(job) is None
    assert not caplog.records


@pytest.mark.parametrize("which", ["source", "output"])
def test_scores_of_changed_files_are_not_kept(job, which, caplog):
    (path,) = job.sources if which == "source" else job.outputs
    path.write_bytes(b"others")
    assert kept_score(job) is None
    assert not caplog.records


DAMAGED = {
    "binary": b"\xff\x00",
    "deep": b"[" * 100_000,
    "list": b"[1]",
    "half": b'{"key": {',
    "twice": b'{"key": {}, "key": {}, "outputs": {}, "score": {}}',
    "empty": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_file_counts_as_none_and_is_named(job, content, caplog):
    job.score_path.write_bytes(content)

    assert kept_score(job) is None
    assert f"{job.score_path}: counts as no score" in caplog.text
    assert len(caplog.records) == 1


CHANGES = {
    "case": {"case": "CT_AMOS_2"},
    "path": {"case": "../../x"},
    "no case": {"case": None},
    "no data set": {"dataset": None},
    "protocol": {"protocol": "clicks"},
    "no protocol": {"protocol": "none"},
    "steps": {"seconds": [1.0, 2.0], "targets": [target("a", (0.5, 0.6), (0.4, 0.5), (0.3, 0.4))]},
    "memory": {"peak_memory_mib": "x"},
    "less than no memory": {"peak_memory_mib": -1.0},
    "seconds": {"seconds": ["1"] * 3},
    "endless": {"seconds": [1.0, float("inf"), 1.0]},
    "shape": {"shape": [0, 50, 60]},
    "four axes": {"shape": [40, 50, 60, 1]},
    "spacing": {"spacing_xyz": [0.8, -0.8, 2.5]},
    "box": {"has_box": "yes"},
    "modality": {"modality": "C\nT"},
    "no targets": {"targets": []},
    "list": [],
}
TARGET_CHANGES = {
    "dsc above 1": {"dsc": [7.0] * 3},
    "dsc below 0": {"dsc": [-0.1] * 3},
    "dsc text": {"dsc": ["a"] * 3},
    "nsd nan": {"nsd": [float("nan")] * 3},
    "organ": {"organ": 3},
    "name": {"name": "a\x1b[2J"},
    "clicks": {"clicks": [[1]]},
    "click outside": {"clicks": [[1, 2, 60, 1]]},
    "click kind": {"clicks": [[1, 2, 3, 2]]},
    "voxels": {"voxels": -1},
    "class": {"class_id": "6"},
    "coverage": {"coverage": 1.5},
    "unknown": {"surprise": 1},
    "less than no thickness": {"thickness_mm": -1.0},
    "ceiling above 1": {"ceiling": [0.9, 0.9, 0.8, 1.5]},
    "half a ceiling": {"ceiling": [0.9, 0.9]},
    "image of other clicks": {"images": [["noise", [0.5], [0.5]]]},
    "image without scores": {"images": [["noise"]]},
    "score of an image": {"images": [["noise", [0.5, 1.5], [0.5, 0.5]]]},
    "name of an image": {"images": [["a\x1b[2J", [0.5, 0.5], [0.5, 0.5]]]},
}

#: What a run may add to a target, beside what `score_helpers` has.
ADDED = {
    "thickness_mm": 12.5,
    "ceiling": [0.9, 1.0, 0.8, 0.9],
    "images": [["noise", [0.5, 0.6], [0.25, 0.5]]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_score_that_this_run_cannot_have_written_counts_as_none(job, change, caplog):
    content = json.loads(job.score_path.read_text())
    content["score"] = content["score"] | change if isinstance(change, dict) else change
    job.score_path.write_text(json.dumps(content))

    assert kept_score(job) is None
    assert f"{job.score_path}: counts as no score" in caplog.text


@pytest.mark.parametrize("change", TARGET_CHANGES.values(), ids=TARGET_CHANGES)
def test_target_that_this_run_cannot_have_written_counts_as_none(job, change, caplog):
    content = json.loads(job.score_path.read_text())
    content["score"]["targets"][0].update(change)
    job.score_path.write_text(json.dumps(content))

    assert kept_score(job) is None
    assert f"{job.score_path}: counts as no score" in caplog.text


@pytest.mark.parametrize("content", [b'{"half', b'{"key": 3}'])
def test_damaged_scores_make_room_for_new_ones(job, content):
    job.score_path.write_bytes(content)
    remove_kept_score(job)
    assert not job.score_path.exists()
    remove_kept_score(job)  # there is nothing left to remove


def test_users_file_in_the_place_of_scores_is_kept(job):
    content = copy.deepcopy({"coordinates": "zyx", "targets": []})
    job.score_path.write_text(json.dumps(content))

    with pytest.raises(InputError, match=r"CT_AMOS_1\.json: is no file of scores"):
        remove_kept_score(job)
    assert json.loads(job.score_path.read_text()) == content


def test_file_behind_a_link_out_of_the_folder_is_kept(job, tmp_path):
    outside: Path = tmp_path / "elsewhere"
    job.score_path.parent.rename(outside)
    job.score_path.parent.symlink_to(outside)

    with pytest.raises(InputError, match="lies behind a link"):
        remove_kept_score(job)
    assert (outside / "CT_AMOS_1.json").exists()
