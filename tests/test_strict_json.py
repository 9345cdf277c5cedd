"""JSON text: values as `json` reads them, and repeated keys refused at any depth."""

import json
from dataclasses import dataclass

import pytest

from utils.errors import InputError
from utils.files.strict_json import JsonError, RepeatedKeyError, parse_json, read_json


@pytest.mark.parametrize("text", ['{"a": [1, {"b": null}], "c": {}}', "[1.5]", '"a"', "{}"])
def test_text_without_repeats_is_read_as_json_reads_it(text):
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_a_key_may_stand_in_two_objects():
    assert parse_json('{"a": {"a": 1}, "b": {"a": 2}}') == {"a": {"a": 1}, "b": {"a": 2}}


@pytest.mark.parametrize(
    "text", ['{"b": 1, "a": 2, "b": 3, "a": 4}', '[{"c": {"b":1,"a":2,"b":3,"a":4}}]']
)
def test_keys_that_an_object_has_twice_are_named_in_their_order(text):
    with pytest.raises(RepeatedKeyError) as error:
        parse_json(text)

    assert error.value.keys == ["b", "a"]


def test_what_is_no_json_is_a_value_error():
    with pytest.raises(ValueError, match="Expecting"):
        parse_json("{")


@pytest.mark.parametrize("start", ["\ufeff", "\ufeff".encode()])
def test_a_byte_order_mark_is_skipped(start):
    text = '{"a": "é"}'
    assert parse_json(start + (text if isinstance(start, str) else text.encode())) == {"a": "é"}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[%s]" % ("9" * 5000), b"\xff", "[1] 2", "", b'"\xed\xa0\x80"']
)
def test_hostile_text_is_a_json_error(text):
    with pytest.raises(JsonError):
        parse_json(text)


@dataclass(frozen=True)
class Row:
    name: str
    voxels: dict[str, list[int] | None]


def test_a_value_becomes_the_kind_asked_for():
    row = parse_json('{"name": "a", "voxels": {"b": [1], "c": null}, "more": 1}', Row)

    assert row == Row("a", {"b": [1], "c": None})


@pytest.mark.parametrize(
    "text",
    ["[]", '{"name": "a"}', '{"name": 1, "voxels": {}}', '{"name": "a", "voxels": {"b": 1}}'],
)
def test_a_value_of_another_kind_is_a_json_error(text):
    with pytest.raises(JsonError, match=r"xpected|missing"):
        parse_json(text, Row)


@pytest.mark.parametrize(
    ("content", "found"), [(None, "no such file"), (b"{", "Expecting"), (b'{"a":1,"a":2}', "twice")]
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, content, found):
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=f"{path}: .*{found}.*\n?.*a table of facts"):
        read_json(path, "a table of facts")


def test_only_keys_that_are_there_twice_are_named():
    with pytest.raises(RepeatedKeyError, match=r"has \['b'\] twice") as error:
        parse_json('{"a": 1, "b": 2, "c": 3, "b": 4}')

    assert error.value.keys == ["b"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[" * 100_000, "^it is nested too deeply$"),
        (b"\xff", "utf-8.*invalid start byte"),
        ("[1] 2", "Extra data"),
        ("", "Expecting value"),
    ],
    ids=["deep", "no UTF-8", "two values", "nothing"],
)
def test_the_message_says_what_is_wrong_with_a_text(text, found):
    with pytest.raises(JsonError, match=found):
        parse_json(text)


def test_a_byte_order_mark_inside_a_text_is_kept():
    assert parse_json('["\ufeffa"]') == ["\ufeffa"]


def test_a_file_is_read_as_the_kind_asked_for(tmp_path):
    path = tmp_path / "facts.json"
    path.write_bytes(b'\xef\xbb\xbf{"name": "a", "voxels": {"b": null}}')

    assert read_json(path, "a row", Row) == Row("a", {"b": None})
    assert read_json(path, "anything") == {"name": "a", "voxels": {"b": None}}
    path.write_text('{"name": "a"}')
    with pytest.raises(InputError, match=r"(?s)facts\.json: .*voxels.*Expected a row: repair"):
        read_json(path, "a row", Row)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a regular file"):
        read_json(tmp_path, "a row")
