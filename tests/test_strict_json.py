"""JSON text: values as `json` reads them, and repeated keys refused at any depth."""

import json

import pytest

from utils.files.strict_json import RepeatedKeyError, parse_json


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
