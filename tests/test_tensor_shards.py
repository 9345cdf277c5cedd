import json
import shutil

import pytest
import torch
from safetensors import safe_open

from utils.errors import InputError
from utils.training.tensor_shards import ShardWriter, finish, open_shards, written_rows


def tensors(number):
    return {"a": torch.full((3, 4), float(number)).half(), "b": torch.tensor([number, 7])}


def write(folder, numbers, rank=0, shard_bytes=100):
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, rank, shard_bytes)
    for number in numbers:
        writer.add(f"liver/{number}", tensors(number), {"of": "one"})
    writer.flush()


def close(folder, common=None):
    finish(folder, common or {"x": 1}, written_rows(folder, lambda row: True).values())
    return open_shards(folder)


def test_what_was_written_is_read_sample_by_sample(tmp_path):
    write(tmp_path, range(5))
    write(tmp_path, range(5, 8), rank=1)
    shards = close(tmp_path)

    assert shards.common == {"x": 1}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 + 1  # three samples of 40 bytes a shard
    for number in range(8):
        read = shards.read(f"liver/{number}")
        assert read.keys() == {"a", "b"}
        for key, expected in tensors(number).items():
            assert read[key].dtype == expected.dtype
            assert torch.equal(read[key], expected)


def test_finished_folder_holds_shards_and_one_index(tmp_path):
    write(tmp_path, range(3))
    close(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".jsonl"}
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["index.jsonl"]


def test_samples_are_added_to_a_finished_store(tmp_path):
    write(tmp_path, range(3))
    close(tmp_path)
    before = {path.name for path in tmp_path.glob("*.safetensors")}
    write(tmp_path, range(3, 5))
    shards = close(tmp_path)

    assert before < {path.name for path in tmp_path.glob("*.safetensors")}
    assert sorted(shards.rows) == [f"liver/{n}" for n in range(5)]


def test_shards_that_no_sample_needs_any_more_are_removed(tmp_path):
    write(tmp_path, range(3))
    write(tmp_path, range(3), rank=1)  # anew
    shards = close(tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        row["shard"] for row in shards.rows.values()
    }
    assert len({row["shard"] for row in shards.rows.values()}) == 1


def test_a_run_that_was_killed_keeps_its_whole_shards(tmp_path):
    writer = ShardWriter(tmp_path, 0, 100)
    for number in range(4):
        writer.add(f"liver/{number}", tensors(number), {})
    del writer  # the fourth was in its hands
    (lines,) = tmp_path.glob("rows-*.jsonl")
    lines.write_text(lines.read_text() + '{"sample_id": "liver/3", "sha')
    assert list(written_rows(tmp_path, lambda row: True)) == ["liver/0", "liver/1", "liver/2"]

    write(tmp_path, [3])  # half a line of another writer hides none of ours
    assert sorted(close(tmp_path).rows) == [f"liver/{n}" for n in range(4)]


def test_rows_of_a_shard_that_is_gone_or_unwanted_do_not_count(tmp_path):
    write(tmp_path, range(2))
    assert written_rows(tmp_path, lambda row: row["sample_id"] == "liver/1").keys() == {"liver/1"}
    next(tmp_path.glob("*.safetensors")).unlink()
    assert written_rows(tmp_path, lambda row: True) == {}


def test_damage_is_found_when_a_sample_is_read(tmp_path):
    write(tmp_path, range(2))
    shards = close(tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    results = []
    for sample_id in shards.rows:
        try:
            results.append(shards.read(sample_id))
        except InputError as error:
            results.append(str(error))
    (message,) = [result for result in results if isinstance(result, str)]
    assert f"{path.name}: the outputs of liver/" in message
    assert "checksum" in message
    assert "run preparelabel.py again" in message
    path.write_bytes(content[:50])
    with pytest.raises(InputError, match=path.name):
        shards.read("liver/0")
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        shards.read("liver/0")


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    write(tmp_path / "whole", range(1))
    close(tmp_path / "whole")
    shard = next((tmp_path / "whole").glob("*.safetensors"))
    content = shard.read_bytes()
    expected = open_shards(tmp_path / "whole").read("liver/0")
    harmless = 0
    for place in range(len(content)):
        folder = tmp_path / f"flipped{place}"
        shutil.copytree(tmp_path / "whole", folder)
        changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        (folder / shard.name).write_bytes(changed)
        try:
            read = open_shards(folder).read("liver/0")
        except InputError:
            continue
        assert all(torch.equal(read[key], expected[key]) for key in expected)
        harmless += 1  # a blank of the header
    assert harmless < len(content) / 10


def test_an_index_that_was_cut_short_is_refused(tmp_path):
    write(tmp_path, range(3))
    close(tmp_path)
    index = tmp_path / "index.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(InputError, match=r"found 2 samples of 3"):
        open_shards(tmp_path)
    index.unlink()
    with pytest.raises(InputError, match=r"preparelabel\.py to its end"):
        open_shards(tmp_path)


def test_shards_are_plain_safetensors_files(tmp_path):
    write(tmp_path, [6])
    shards = close(tmp_path)
    row = shards.rows["liver/6"]
    with safe_open(tmp_path / row["shard"], framework="np") as file:
        assert file.get_tensor("liver/6/b").tolist() == [6, 7]
    assert json.loads((tmp_path / "index.jsonl").read_text().splitlines()[1]) == row
