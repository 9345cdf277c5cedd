"""Prompt files whose targets list their prompts one by one, in any order."""

import numpy as np
import pytest
from test_prompt_files import AFFINE, read, write

from utils.errors import InputError
from utils.prompts.files import parse_prompts
from utils.prompts.kinds import BoxPrompt, Click

POINT = {"at": [5, 6, 7]}
BOX = {"box": {"from": [6, 7, 8], "to": [4, 5, 6]}}


def test_prompts_are_read_in_the_order_listed(tmp_path):
    listed = [POINT, BOX, {"at": [1, 2, 3], "positive": False}, BOX]
    (target,) = read(tmp_path, [{"id": 7, "name": "liver", "prompts": listed}])
    box = BoxPrompt((4, 5, 6), (7, 8, 9))
    assert target.prompts == [Click((5, 6, 7), True), box, Click((1, 2, 3), False), box]


@pytest.mark.parametrize("place", ["box", "prompts"])
def test_a_box_may_be_drawn_on_a_slice_in_the_middle(tmp_path, place):
    box = {"from": [4, 5, 6], "to": [6, 7, 8], "middle_slice": True}
    given = {"box": box} if place == "box" else {"prompts": [{"box": box}]}
    (target,) = read(tmp_path, [{"id": 1} | given])
    assert target.prompts == [BoxPrompt((4, 5, 6), (7, 8, 9), True)]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"prompts": [POINT], "points": [POINT]}, "prompts is .* either them or box and points"),
        ({"prompts": [POINT], "box": BOX["box"]}, "prompts is .* either them or box and points"),
        ({"prompts": ""}, 'prompts is "". Expected a list'),
        ({"prompts": [POINT, 3]}, r"prompts\[1\]: the entry is 3"),
        ({"prompts": [POINT | BOX]}, r"prompts\[0\]: unknown 'at'"),
        ({"prompts": [{"at": [10, 0, 0]}]}, r"prompts\[0\]: the click"),
        ({"prompts": [{"box": {"from": [1, 2, 3]}}]}, r"prompts\[0\]: box: missing 'to'"),
        ({"box": BOX["box"] | {"middle_slice": 1}}, "box: middle_slice is 1"),
    ],
    ids=["points", "box", "text", "number", "both", "outside", "half", "flag"],
)
def test_what_is_wrong_with_a_list_is_named_with_its_place(tmp_path, target, said):
    with pytest.raises(InputError, match=rf"(?s)scan\.json: targets\[0\]: (?=.*Expected){said}"):
        read(tmp_path, [{"id": 1} | target])


def test_a_text_is_read_as_its_file_is(tmp_path):
    content = {"coordinates": "zyx", "targets": [{"id": 2, "prompts": [POINT]}]}
    text = write(tmp_path, content).read_bytes()
    (target,) = parse_prompts(text, "given", (10, 20, 30), AFFINE)
    assert (target.id, target.prompts) == (2, [Click((5, 6, 7), True)])
    with pytest.raises(InputError, match="given: is not JSON"):
        parse_prompts(b"{", "given", (10, 20, 30), np.eye(4))
