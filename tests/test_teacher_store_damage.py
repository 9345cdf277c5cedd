"""A store of teacher outputs that is damaged or from elsewhere: one message names it."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load, save
from small_cases import write_prepared
from small_networks import RULE, small_config, small_sam

from utils.errors import InputError
from utils.training.crop_cache import build_cache
from utils.training.store_writer import StoreConfig, store_outputs
from utils.training.teacher_store import TeacherOutputs, open_store
from utils.training.tensor_shards import checksum, written_rows

CONFIG = StoreConfig(num_clicks=3, layers=(1,), precision="float16", seed=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    index = build_cache([write_prepared(folder / "tree", cases=1)], folder / "crops", workers=1)
    store_outputs(
        small_sam(), index, folder / "outputs", rule=RULE, config=CONFIG,
        device=torch.device("cpu"), precision=torch.float32,
    )  # fmt: skip
    return folder / "outputs", index


@pytest.fixture
def store(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "outputs")
    return tmp_path / "outputs", whole[1]


def read(store):
    folder, index = store
    outputs = TeacherOutputs(open_store(folder, index, RULE), index, RULE, network=small_config())
    return [outputs[number] for number in range(len(outputs))]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def write_lines(folder, lines):
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_tensors(folder, change):
    """Change tensors, and write their checksums anew: only what they mean is wrong."""
    (shard,) = folder.glob("shard-*")
    tensors = {name: change(name, t).contiguous() for name, t in load(shard.read_bytes()).items()}
    shard.write_bytes(save(tensors))
    head, row = lines_of(folder)
    sums = {key: checksum(tensors[f"{row['sample_id']}/{key}"]) for key in row["tensors"]}
    write_lines(folder, [head, row | {"tensors": sums}])


def of(ending, change):
    return lambda name, tensor: change(tensor) if name.endswith(ending) else tensor


TENSORS = {
    "NaN": of("image_embedding", lambda t: t * torch.nan),
    "one infinity": of("low_res_masks", lambda t: torch.cat([t[:-1], t[-1:] + torch.inf])),
    "shape of the embedding": of("image_embedding", lambda t: t[..., :1]),
    "shape of the masks": of("low_res_masks", lambda t: t[:, :8]),
    "shape of the hidden states": of("hidden_1", lambda t: t[:1]),
    "fewer clicks": of("click_coords", lambda t: t[:1]),
    "integers": of("image_embedding", lambda t: t.to(torch.int64)),
    "another precision": of("image_embedding", lambda t: t.float()),
    "labels 7": of("click_labels", lambda t: t * 0 + 7),
    "clicks beyond the cube": of("click_coords", lambda t: t * 0 + 1e9),
    "clicks before the cube": of("click_coords", lambda t: t * 0 - 1),
}


def test_an_intact_store_is_read(store):
    assert len(read(store)) == 1


@pytest.mark.parametrize("change", TENSORS)
def test_tensors_that_no_teacher_writes_are_refused(store, change):
    change_tensors(store[0], TENSORS[change])

    with pytest.raises(InputError, match=r"(?s)shard-.*CT_A_0 cannot be used.*Delete the file"):
        read(store)


ROWS = {
    "traversal": {"shard": "../../../../etc/passwd"},
    "absolute": {"shard": "/etc/passwd"},
    "another file": {"shard": "teacher.pt"},
    "shard as a number": {"shard": 3},
    "no tensors": {"tensors": None},
    "tensors as a list": {"tensors": [1]},
    "empty tensors": {"tensors": {}},
    "id as a number": {"sample_id": 3},
    "another target": {"target": 3},
    "another grid": {"grid": []},
}


@pytest.mark.parametrize("change", ROWS)
def test_rows_that_cannot_be_right_are_refused(store, change):
    head, row = lines_of(store[0])
    write_lines(store[0], [head, row | ROWS[change]])

    with pytest.raises(InputError, match="outputs"):
        read(store)


def test_shard_elsewhere_is_not_counted_as_written(store):
    head, row = lines_of(store[0])
    (store[0].parent / "shard-0-aa.safetensors").write_bytes(b"")
    write_lines(store[0], [head, row | {"shard": "../shard-0-aa.safetensors"}])

    assert written_rows(store[0], lambda row: True) == {}


FACTS = {"teacher": "00", "rule": RULE.to_dict(), "num_clicks": 3, "layers": [1], "seed": 0}
FACTS["precision"] = "float16"
HEADS = {
    "a list": [1],
    "samples as text": {"samples": "1"},
    "common as a list": {"common": []},
    "empty common": {"common": {}},
    "more samples": {"samples": 2},
    "no clicks": {"common": {**FACTS, "num_clicks": 0}},
    "layers as text": {"common": {**FACTS, "layers": "12"}},
    "unknown precision": {"common": {**FACTS, "precision": "int8"}},
}


@pytest.mark.parametrize("change", HEADS)
def test_heads_that_cannot_be_right_are_refused(store, change):
    head, row = lines_of(store[0])
    found = HEADS[change]
    write_lines(store[0], [head | found if isinstance(found, dict) else found, row])

    with pytest.raises(InputError, match=r"index\.jsonl"):
        read(store)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe", b"\0" * 9])
def test_damaged_index_is_refused(store, content):
    (store[0] / "index.jsonl").write_bytes(content)

    with pytest.raises(InputError, match=r"index\.jsonl"):
        read(store)


SHARDS = {
    "no header": lambda content: b"",
    "header of 2^62 bytes": lambda content: struct.pack("<Q", 2**62) + content[8:],
    "header that is no JSON": lambda content: struct.pack("<Q", 3) + b"[[[",
    "half of it": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("change", SHARDS)
def test_damaged_shard_is_named(store, change):
    (shard,) = store[0].glob("shard-*")
    shard.write_bytes(SHARDS[change](shard.read_bytes()))

    with pytest.raises(InputError, match=shard.name):
        read(store)


def test_folder_in_place_of_a_shard_is_named(store):
    (shard,) = store[0].glob("shard-*")
    shard.unlink()
    shard.mkdir()

    with pytest.raises(InputError, match=shard.name):
        read(store)
