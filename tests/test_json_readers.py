"""Every reader of JSON outside training: repeated keys, byte order marks, damage, mutated bytes."""

import ast
import contextlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

from segment_anything import sam_model_registry3D
from utils.cases.label_table import read_label_table
from utils.errors import InputError
from utils.preparation.ledger import CaseJob, Ledger
from utils.preparation.nnunet_dataset import read_description
from utils.preparation.records import CaseFacts, table_of
from utils.prompts.files import read_prompt_file
from utils.results.curves import training_curve_figure
from utils.run.network_flags import changed
from utils.validation.scores import CaseScore

ROOT = Path(__file__).parent.parent
DEEP = "[" * 100_000
SEED, MUTANTS = 3, 400  # of each reader


def test_json_is_read_in_one_place_alone():
    """``json.loads`` stands in the checked reader, and in the model's own check."""
    allowed = {"utils/files/strict_json.py", "segment_anything/export_files.py"}
    folders = [ROOT / "utils", ROOT / "segment_anything", ROOT / "benchmarks"]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.load", "json.loads")
    }
    assert found == allowed


def prompts(path):
    return read_prompt_file(path, (10, 20, 30), np.eye(4))


def facts(path):
    from utils.training.quantise_encoder import read_facts

    return read_facts(path.parent)


def config():
    return sam_model_registry3D["tiny"]().config.to_dict()


READERS = {
    "class file": (
        read_label_table,
        {"CT_A": {"1": ["Liver", "text"], "2": "Spleen", "instance_label": 0}},
    ),
    "dataset.json": (
        read_description,
        {
            "channel_names": {"0": "T1w", "1": "T2w"},
            "labels": {"background": 0, "tumor": [1, 2], "core": 2},
            "file_ending": ".nii.gz",
        },
    ),
    "prompts": (
        prompts,
        {
            "coordinates": "mm",
            "targets": [
                {"id": 1, "name": "a", "points": [{"at": [3, 4, 5], "positive": True}]},
                {"id": 2, "box": {"from": [1, 2, 3], "to": [4, 5, 6]}},
            ],
        },
    ),
    "metrics.jsonl": (training_curve_figure, {"step": 1, "loss": 0.5, "lr": 1e-4}),
    "export.json": (
        facts,
        {"config": config(), "crop_rule": {"size": 128, "spacing_mm": 1.5, "fit": True}},
    ),
}


def with_first_key_twice(content):
    text = json.dumps(content)
    key = json.dumps(next(iter(content)))
    return "{" + f"{key}: {json.dumps(content[json.loads(key)])}, " + text[1:]


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    """A function that reads a file's bytes with one of the readers, and a good content."""
    read, content = READERS[request.param]
    path = tmp_path / ("export.json" if request.param == "export.json" else "file.json")

    def read_bytes(data):
        path.write_bytes(data)
        return read(path)

    return read_bytes, content


def test_good_file_is_read_with_and_without_a_byte_order_mark(reader):
    read, content = reader
    read(json.dumps(content).encode())
    read(b"\xef\xbb\xbf" + json.dumps(content).encode())


def test_repeated_key_is_refused(reader):
    read, content = reader
    with pytest.raises(InputError, match="twice"):
        read(with_first_key_twice(content).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", DEEP.encode(), b"null", b"[]", b"3", b'"text"', b"{}", b"\0" * 9],
    ids=["empty", "binary", "deep", "null", "list", "number", "text", "object", "zeros"],
)
def test_what_is_no_such_file_is_an_input_error(reader, data):
    read, _ = reader
    with pytest.raises(InputError):
        read(data)


def test_mutated_file_is_read_or_an_input_error(reader):
    """No other exception than `InputError`, whatever the bytes; see `mutants`."""
    read, content = reader
    for data in mutants(json.dumps(content).encode()):
        try:
            read(data)
        except InputError:
            continue


TOKENS = [b"null", b"true", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"[]", b"{}", b"9" * 40, b'"a"']


def mutants(good):
    """Yield ``MUTANTS`` damaged copies: bytes changed, cut, doubled, and values replaced."""
    rng = random.Random(SEED)
    values = [place for place in range(len(good)) if good[place : place + 1] in b'0123456789"[{t']
    for number in range(MUTANTS):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) or 1)
            kind = number % 5
            if kind == 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            elif kind == 1:
                del data[at : at + rng.randint(1, 20)]
            elif kind == 2:
                data[at:at] = data[at : at + rng.randint(1, 30)]
            elif kind == 3:
                data = data[:at]
            else:
                data = _with_value_replaced(data, rng, values)
        yield bytes(data)


def _with_value_replaced(data, rng, values):
    """Put another JSON value in the place of a whole number, text, list or object."""
    try:
        content = json.loads(data)
    except ValueError:
        return data
    places = list(_places(content))
    if not places:
        return data
    parent, key = rng.choice(places)
    parent[key] = "@"
    return bytearray(json.dumps(content).encode().replace(b'"@"', rng.choice(TOKENS)))


def _places(content):
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    if isinstance(content, dict | list):
        for key, value in pairs:
            yield content, key
            if isinstance(value, dict | list):
                yield from _places(value)


def test_mutated_record_is_a_record_or_none_and_its_table_can_be_written(tmp_path):
    source = tmp_path / "in" / "a.txt"
    source.parent.mkdir()
    source.write_text("one")
    ledger = Ledger(tmp_path / "out", "step", [source.parent], ["*/{case}.nii.gz"])
    job = CaseJob("CT_A_1", "CT", {"text": source}, settings={"rule": [1, None, {"a": True}]})
    entry = ledger.open(job)
    output = ledger.folder / "CT" / "CT_A_1.nii.gz"
    entry.claim([output])
    output.parent.mkdir(parents=True)
    output.write_bytes(b"voxels")
    entry.finish(CaseFacts((1, 2, 3), (0.5, 0.5, 2.0), {"Liver": 7}, ("2 of 3 components",)))
    path = ledger.path_of("CT_A_1")
    none = 0

    for data in mutants(path.read_bytes()):
        path.write_bytes(data)
        record = ledger.read("CT_A_1")
        ledger.is_current(job)
        ledger.orphans([])
        table_of(filter(None, [record]))
        ledger.open(job).confirm()
        path.write_bytes(data)
        ledger.write_manifest([])
        path.write_bytes(data)
        with contextlib.suppress(InputError):  # without a record, the output is of another origin
            ledger.open(job).claim([output])
        none += record is None
        ledger.refused.clear()

    assert output.read_bytes() == b"voxels"
    assert none > MUTANTS / 4


def test_mutated_score_is_a_score_or_an_input_error():
    from score_helpers import row, target

    good = json.dumps(row("a", target(), target("spleen"))).encode()
    refused = 0
    for data in mutants(good):
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            continue
        try:
            score = CaseScore.from_dict(content)
            score.scores.mean()
        except InputError:
            refused += 1
    assert refused > MUTANTS / 20


@pytest.mark.parametrize("value", [DEEP, '{"a":1}', "9" * 5000, "\ud800", "NaN"])
def test_value_of_a_flag_that_is_no_field_is_refused_by_the_flag(value):
    tiny = sam_model_registry3D["tiny"]().config
    with pytest.raises(InputError, match=r"--set encoder\.img_size=.* cannot be built"):
        changed(tiny, [f"encoder.img_size={value}"])


def test_nested_value_beyond_the_writers_depth_is_an_input_error(tmp_path):
    """The parser of JSON goes deeper than its writer, which makes the messages."""
    for depth in range(900, 1000):
        value = "[" * depth + "]" * depth
        path = tmp_path / "p.json"
        content = {"coordinates": "zyx", "targets": [{"id": 1, "points": "@"}]}
        path.write_text(json.dumps(content).replace('"@"', value))
        with pytest.raises(InputError):
            prompts(path)
        content = {"CT_A": {"1": "@", "instance_label": 0}}
        path.write_text(json.dumps(content).replace('"@"', value))
        with pytest.raises(InputError):
            read_label_table(path)
