import json

import numpy as np
import pytest
import torch
from small import RULE, small_sam, write_prepared

from segment_anything import fingerprint
from utils.crops import build_crops, read_crop
from utils.errors import InputError
from utils.geometry import CropRule
from utils.teacher_store import TeacherOutputs, open_store, store_outputs


@pytest.fixture
def index(tmp_path):
    return build_crops([write_prepared(tmp_path / "tree")], tmp_path / "crops", RULE, workers=1)


def store(index, folder, teacher, num_clicks=3):
    return store_outputs(
        teacher, index, folder, rule=RULE, num_clicks=num_clicks, seed=0,
        device=torch.device("cpu"), precision=torch.float32,
    )  # fmt: skip


def test_what_is_stored_is_the_teachers_embedding_of_that_crop(index, tmp_path):
    teacher = small_sam()
    outputs = TeacherOutputs(store(index, tmp_path / "out", teacher), index)
    for number, row in enumerate(index.samples):
        image, _, meta = read_crop(index.folder / row["file"])
        item = outputs[number]
        expected = teacher.image_encoder(torch.from_numpy(image).float()[None, None])[0]
        torch.testing.assert_close(item["image_embedding"].float(), expected, atol=5e-3, rtol=5e-3)
        assert item["id"] == meta["sample_id"] == row["sample_id"]
        assert item["low_res_masks"].shape == (3, 16, 16, 16)
        assert item["click_coords"].shape == (3, 3)
        assert item["click_labels"][0] == 1


def test_each_file_says_whose_it_is(index, tmp_path):
    teacher = small_sam()
    store(index, tmp_path / "out", teacher)
    with np.load(tmp_path / "out" / index.samples[0]["file"]) as arrays:
        meta = json.loads(arrays["meta"].tobytes())
    assert meta["teacher"] == fingerprint(teacher)
    assert meta["crop"]["sample_id"] == "liver/CT_A/CT_A_0"
    assert meta["crop"]["grid"]["size"] == 32
    assert len(meta["crop"]["affine"]) == 4


def test_stored_outputs_are_kept_and_those_of_another_teacher_made_again(index, tmp_path):
    path = tmp_path / "out" / index.samples[0]["file"]
    store(index, tmp_path / "out", small_sam())
    first = path.stat().st_mtime_ns
    store(index, tmp_path / "out", small_sam())
    assert path.stat().st_mtime_ns == first
    store(index, tmp_path / "out", small_sam(seed=9))
    assert path.stat().st_mtime_ns != first


def test_outputs_of_another_sample_or_teacher_are_refused(index, tmp_path):
    folder = tmp_path / "out"
    opened = store(index, folder, small_sam())
    one, other = (folder / s["file"] for s in index.samples[:2])
    one.write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=r"(?s)CT_A_1; expected.*CT_A_0"):
        TeacherOutputs(opened, index)[0]


def test_crops_without_outputs_are_named(index, tmp_path):
    with pytest.raises(InputError, match=r"preparelabel\.py"):
        open_store(tmp_path / "out", index)
    store(index, tmp_path / "out", small_sam())
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["samples"].remove("liver/CT_A/CT_A_1")
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"1 crops.*CT_A_1"):
        open_store(tmp_path / "out", index)


def test_outputs_of_a_crop_cut_anew_since_are_refused(index, tmp_path):
    opened = store(index, tmp_path / "out", small_sam())
    again = build_crops(
        [tmp_path / "tree/liver/CT_A"], tmp_path / "crops", CropRule(32, 0.5), workers=1
    )
    with pytest.raises(InputError, match="as it is cut now"):
        TeacherOutputs(opened, again)[0]
