import dataclasses
from collections import namedtuple

import pytest
import torch
from small_cases import ball, write_prepared
from small_networks import RULE, small_sam

from segment_anything import fingerprint
from utils.errors import InputError
from utils.files.nifti import read_nifti, write_nifti
from utils.training import store_writer
from utils.training.crop_cache import build_cache, read_target
from utils.training.data_loader import Draw
from utils.training.store_writer import StoreConfig, bytes_per_sample, store_outputs
from utils.training.teacher_store import TeacherOutputs, open_store, require_teacher
from utils.volumes.geometry import CropRule

CONFIG = StoreConfig(num_clicks=3, layers=(1, 2), precision="float16", seed=0)


@pytest.fixture
def index(tmp_path):
    return build_cache([write_prepared(tmp_path / "tree")], tmp_path / "crops", workers=1)


def store(index, folder, teacher, rule=RULE, batch_size=1, **changes):
    return store_outputs(
        teacher, index, folder, rule=rule, config=dataclasses.replace(CONFIG, **changes),
        device=torch.device("cpu"), precision=torch.float32, batch_size=batch_size,
    )  # fmt: skip


def shards(folder):
    return {path.name for path in folder.glob("*.safetensors")}


def change_label(tmp_path, number=1):
    path = tmp_path / f"tree/liver/CT_A/labelsTr/CT_A_{number}.nii.gz"
    write_nifti(path, ball(radius=3).astype("uint8"), read_nifti(path).affine)
    return build_cache([tmp_path / "tree/liver/CT_A"], tmp_path / "crops", workers=1)


@pytest.mark.parametrize(("precision", "atol"), [("float16", 5e-3), ("float32", 1e-5)])
def test_what_is_stored_is_what_the_teacher_says_of_that_crop(index, tmp_path, precision, atol):
    teacher = small_sam()
    opened = store(index, tmp_path / "out", teacher, precision=precision)
    outputs = TeacherOutputs(opened, index, RULE)
    for number, row in enumerate(index.samples):
        crop = read_target(index.folder, row).cut_centred(RULE)
        item = outputs[number]
        expected = teacher.image_encoder.forward_features(torch.from_numpy(crop.image)[None, None])
        embedding, hidden = expected
        assert item["image_embedding"].dtype == getattr(torch, precision)
        for found, wanted in (
            (item["image_embedding"], embedding[0]),
            (item["hidden_1"], hidden[1][0]),
            (item["hidden_2"], hidden[2][0]),
        ):
            torch.testing.assert_close(found.float(), wanted, atol=atol, rtol=atol)
        assert item["id"] == row["sample_id"]
        assert item["low_res_masks"].shape == (3, 16, 16, 16)
        assert item["click_coords"].shape == (3, 3)
        assert item["click_labels"][0] == 1


def test_store_says_whose_it_is_and_how_large_a_sample_is(index, tmp_path):
    teacher = small_sam()
    opened = store(index, tmp_path / "out", teacher)
    assert opened.fingerprint == fingerprint(teacher)
    assert opened.layers == (1, 2)
    item = opened.shards.read("liver/CT_A/CT_A_0")
    assert sum(t.nbytes for t in item.values()) <= bytes_per_sample(teacher.config, CONFIG)
    assert sum(t.nbytes for t in item.values()) > 0.9 * bytes_per_sample(teacher.config, CONFIG)


def test_clicks_of_a_sample_depend_neither_on_the_batch_nor_on_the_rest_of_the_cache(
    index, tmp_path
):
    whole = store(index, tmp_path / "a", small_sam(), batch_size=3)
    part = dataclasses.replace(index, samples=index.samples[1:])
    single = store(part, tmp_path / "b", small_sam())
    for sample_id in single.shards.rows:
        first, second = (s.shards.read(sample_id) for s in (whole, single))
        assert torch.equal(first["click_coords"], second["click_coords"])


def test_stored_outputs_are_kept_and_those_of_another_teacher_made_again(index, tmp_path):
    out = tmp_path / "out"
    store(index, out, small_sam())
    first = shards(out)
    store(index, out, small_sam())
    assert shards(out) == first
    store(index, out, small_sam(seed=9))
    assert not shards(out) & first
    assert len(shards(out)) == len(first)


@pytest.mark.parametrize("change", [{"num_clicks": 2}, {"layers": ()}, {"precision": "float32"}])
def test_outputs_under_other_flags_are_made_again(index, tmp_path, change):
    store(index, tmp_path / "out", small_sam())
    first = shards(tmp_path / "out")
    store(index, tmp_path / "out", small_sam(), **change)
    assert not shards(tmp_path / "out") & first


def test_only_a_changed_target_is_stored_again(index, tmp_path):
    before = store(index, tmp_path / "out", small_sam()).shards.rows
    after = store(change_label(tmp_path), tmp_path / "out", small_sam()).shards.rows
    kept = [sample_id for sample_id in after if after[sample_id] == before[sample_id]]
    assert kept == ["liver/CT_A/CT_A_0", "liver/CT_A/CT_A_2"]


def test_a_store_that_was_stopped_resumes_where_it_stopped(index, tmp_path, monkeypatch):
    reads, original = [], store_writer.teacher_outputs

    def dying(*args, **kwargs):
        reads.append(1)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(store_writer, "teacher_outputs", dying)
    with pytest.raises(KeyboardInterrupt):
        store(index, tmp_path / "out", small_sam(), shard_bytes=1)
    with pytest.raises(InputError, match="to its end"):
        open_store(tmp_path / "out", index, RULE)
    opened = store(index, tmp_path / "out", small_sam(), shard_bytes=1)
    assert len(reads) == 3 + 1
    assert list(opened.shards.rows) == [s["sample_id"] for s in index.samples]


def test_crops_without_outputs_are_named(index, tmp_path):
    part = dataclasses.replace(index, samples=index.samples[:2])
    store(part, tmp_path / "out", small_sam())
    with pytest.raises(InputError, match=r"1 crops.*CT_A_2"):
        open_store(tmp_path / "out", index, RULE)


def test_outputs_of_a_target_that_changed_since_are_refused(index, tmp_path):
    store(index, tmp_path / "out", small_sam())
    with pytest.raises(InputError, match=r"(?s)CT_A_1 as it was before.*preparelabel\.py"):
        open_store(tmp_path / "out", change_label(tmp_path), RULE)


def test_outputs_on_other_crops_are_refused(index, tmp_path):
    store(index, tmp_path / "out", small_sam())
    with pytest.raises(InputError, match=r"(?s)'spacing_mm': 1\.0.*'spacing_mm': 0\.5"):
        open_store(tmp_path / "out", index, CropRule(32, 0.5))


def test_outputs_of_another_teacher_are_refused(index, tmp_path):
    opened = store(index, tmp_path / "out", small_sam())
    require_teacher(opened, small_sam())
    with pytest.raises(InputError, match=f"(?s)teacher {opened.fingerprint}.*one and the same"):
        require_teacher(opened, small_sam(seed=9))


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(
    index, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1000))
    with pytest.raises(InputError, match=r"(?s)needs about .* MB, and 0\.00 MB are free.*--online"):
        store(index, tmp_path / "out", small_sam())
    assert not (tmp_path / "out").exists()


def test_numbers_too_large_for_the_precision_are_refused(index, tmp_path):
    teacher = small_sam()
    teacher.image_encoder.neck[-1].weight.data *= 1e6
    with pytest.raises(InputError, match=r"CT_A_0: image_embedding holds.*float16"):
        store(index, tmp_path / "out", teacher)
    store(index, tmp_path / "out", teacher, precision="bfloat16")


def test_a_layer_that_the_teacher_lacks_is_refused(index, tmp_path):
    with pytest.raises(InputError, match=r"--store-layers 3: the teacher has blocks 1 to 2"):
        store(index, tmp_path / "out", small_sam(), layers=(1, 3))


def test_hidden_states_come_only_with_the_draws_that_follow_them(index, tmp_path):
    opened = store(index, tmp_path / "out", small_sam())
    outputs = TeacherOutputs(opened, index, RULE, layered_until=0.4)
    draws = [Draw(0, 7, done) for done in (0.39, 0.4)]
    keys = [{k for k in outputs[draw] if k.startswith("hidden")} for draw in draws]
    assert keys == [{"hidden_1", "hidden_2"}, set()]
