"""Challenge files as evaluators have written them: prompts in, in order; answers out."""

import numpy as np
import pytest
from conftest import SHAPE, SPACING_XYZ, write_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.cases.challenge import read_challenge_case, write_segs
from utils.errors import InputError
from utils.prompts.kinds import BoxPrompt, Click

BOX = {
    "z_min": 1, "z_max": 2, "z_mid": 1,
    "z_mid_x_min": 3, "z_mid_y_min": 2, "z_mid_x_max": 7, "z_mid_y_max": 4,
}  # fmt: skip
BOX_PROMPT = BoxPrompt((1, 2, 3), (3, 5, 8), middle_slice=True)
FG, BG = [[1, 2, 3], [1, 3, 5]], [[0, 0, 0]]
CLICKS = {"fg": FG, "bg": BG}
LAST = tuple(n - 1 for n in SHAPE)


def objects(*entries):
    array = np.empty(len(entries), object)
    for number, entry in enumerate(entries):
        array[number] = entry
    return array


def read(folder, **changes):
    return read_challenge_case(write_case(folder, "CT_A_1", **changes))


def kinds(prompts):
    return ["fg" if click.is_foreground else "bg" for click in prompts]


def test_image_spacing_and_a_box_per_class(tmp_path):
    other = BOX | {"z_min": 0, "z_max": 0}
    case = read(tmp_path, boxes=objects(BOX, other))
    assert case.image.shape == SHAPE
    assert case.spacing_xyz == SPACING_XYZ
    assert case.prompts == [[BOX_PROMPT], [BoxPrompt((0, 2, 3), (1, 5, 8), True)]]


def test_the_box_comes_first_then_the_clicks_in_the_order_clicked(tmp_path):
    order = [["fg", "bg", "fg"], ["bg", "fg", "fg"]]
    case = read(
        tmp_path, boxes=objects(BOX, BOX), clicks=objects(CLICKS, CLICKS), clicks_order=order
    )
    first, second = Click((1, 2, 3), True), Click((1, 3, 5), True)
    beside = Click((0, 0, 0), False)
    assert case.prompts[0] == [BOX_PROMPT, first, beside, second]
    assert case.prompts[1] == [BOX_PROMPT, beside, first, second]


def test_clicks_alone_are_enough(tmp_path):
    case = read(tmp_path, clicks=objects({"fg": FG, "bg": []}), clicks_order=[["fg", "fg"]])
    assert case.prompts == [[Click((1, 2, 3), True), Click((1, 3, 5), True)]]


@pytest.mark.parametrize(
    "nothing",
    [{}, {"boxes": []}, {"boxes": np.array(None)}, {"clicks": [], "clicks_order": []}],
    ids=str,
)
def test_a_case_without_prompts_has_no_classes(tmp_path, nothing):
    changes = {key: np.asarray(value) for key, value in nothing.items()}
    assert read(tmp_path, **changes).prompts == []


@pytest.mark.parametrize("no_clicks", [{"fg": [], "bg": []}, {}, None, {"fg": None}], ids=str)
def test_a_class_without_clicks_has_no_prompts(tmp_path, no_clicks):
    case = read(tmp_path, clicks=objects(no_clicks, CLICKS), clicks_order=objects([], ["fg"] * 3))
    assert case.prompts[0] == []
    assert len(case.prompts[1]) == 3


def test_none_in_the_order_is_a_step_without_a_click(tmp_path):
    order = np.array([["bg", None, "fg", "fg"], [None, None, None, "fg"]], object)
    clicks = objects(CLICKS, {"fg": [[3, 5, 8]], "bg": []})
    case = read(tmp_path, clicks=clicks, clicks_order=order)
    assert kinds(case.prompts[0]) == ["bg", "fg", "fg"]
    assert case.prompts[1] == [Click((3, 5, 8), True)]


def test_a_flat_order_is_that_of_the_only_class(tmp_path, caplog):
    case = read(tmp_path, clicks=objects(CLICKS), clicks_order=["bg", "fg", "fg"])
    assert kinds(case.prompts[0]) == ["bg", "fg", "fg"]
    assert not caplog.records


def test_a_flat_order_goes_through_the_classes_step_by_step(tmp_path, caplog):
    second = {"fg": [[3, 5, 8]], "bg": [[3, 0, 0], [3, 0, 1]]}
    order = ["fg", "bg", "bg", "fg", "fg", "bg"]
    case = read(tmp_path, clicks=objects(CLICKS, second), clicks_order=order)
    assert [kinds(prompts) for prompts in case.prompts] == [["fg", "bg", "fg"], ["bg", "fg", "bg"]]
    assert not caplog.records


def test_a_flat_order_is_that_of_the_class_with_as_many_clicks(tmp_path, caplog):
    clicks = objects({"fg": [], "bg": []}, CLICKS)
    case = read(tmp_path, clicks=clicks, clicks_order=["bg", "fg", "fg"])
    assert kinds(case.prompts[1]) == ["bg", "fg", "fg"]
    assert not caplog.records


@pytest.mark.parametrize("order", [None, [["fg"]], [["up", "fg", "fg"]], [[1, 2, 3]]], ids=str)
def test_without_a_fitting_order_clicks_alternate_and_a_warning_says_so(tmp_path, caplog, order):
    case = read(tmp_path, boxes=objects(BOX), clicks=objects(CLICKS), clicks_order=order)
    assert kinds(case.prompts[0][1:]) == ["fg", "bg", "fg"]
    assert "CT_A_1.npz: class 1: no order fits" in caplog.text


def test_clicks_of_one_kind_need_no_order(tmp_path, caplog):
    case = read(tmp_path, clicks=objects({"fg": FG, "bg": []}))
    assert [click.zyx for click in case.prompts[0]] == [(1, 2, 3), (1, 3, 5)]
    assert not caplog.records


@pytest.mark.parametrize(
    "places",
    [
        np.array(FG),
        np.array(FG, float),
        np.array(FG, object),
        objects(*FG),
        [np.array(place) for place in FG],
        [tuple(place) for place in FG],
        np.array(FG, ">i4"),
    ],
    ids=lambda places: f"{type(places).__name__}-{getattr(places, 'dtype', '')}",
)
def test_clicks_may_be_any_kind_of_list(tmp_path, places):
    case = read(tmp_path, clicks=objects({"fg": places, "bg": np.empty((0, 3))}))
    assert case.prompts[0] == [Click((1, 2, 3), True), Click((1, 3, 5), True)]


def test_whole_arrays_may_be_wrapped_in_one_object(tmp_path):
    wrapped = {"boxes": [BOX], "clicks": [CLICKS], "clicks_order": [["bg", "fg", "fg"]]}
    changes = {}
    for key, value in wrapped.items():
        changes[key] = np.empty((), object)
        changes[key][()] = value
    case = read(tmp_path, **changes)
    assert case.prompts[0][0] == BOX_PROMPT
    assert kinds(case.prompts[0][1:]) == ["bg", "fg", "fg"]


def test_repeated_clicks_and_clicks_on_the_border_are_kept(tmp_path, caplog):
    places = [[0, 0, 0], list(LAST), list(LAST)]
    case = read(tmp_path, clicks=objects({"fg": places, "bg": []}))
    assert [click.zyx for click in case.prompts[0]] == [(0, 0, 0), LAST, LAST]
    assert not caplog.records


def test_a_click_beside_the_image_goes_to_the_nearest_voxel_with_a_warning(tmp_path, caplog):
    places = [[-3, 2, 99], [1, 2.4, 3]]
    case = read(tmp_path, clicks=objects({"fg": places, "bg": []}))
    assert [click.zyx for click in case.prompts[0]] == [(0, 2, LAST[2]), (1, 2, 3)]
    assert caplog.text.count("is not a voxel; used") == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"z_max": 50}, ((1, 2, 3), (4, 5, 8))),
        ({"z_min": -4, "z_max": -2}, ((0, 2, 3), (1, 5, 8))),
        ({"z_mid_x_min": 7, "z_mid_x_max": 3}, ((1, 2, 3), (3, 5, 8))),
    ],
)
def test_a_box_beside_the_image_goes_to_the_nearest_voxels(tmp_path, caplog, change, expected):
    case = read(tmp_path, boxes=objects(BOX | change))
    assert case.prompts == [[BoxPrompt(*expected, middle_slice=True)]]
    assert "is not a box inside the image" in caplog.text


def test_more_clicked_classes_than_boxes_are_all_kept(tmp_path, caplog):
    case = read(tmp_path, boxes=objects(BOX), clicks=objects({}, CLICKS, {"fg": FG}))
    assert [len(prompts) for prompts in case.prompts] == [1, 3, 2]
    assert "1 boxes and 3 entries of clicks" in caplog.text


def test_hundreds_of_classes_keep_their_order(tmp_path):
    places = [[k % 4, k % 6, k % 9] for k in range(300)]
    case = read(tmp_path, clicks=objects(*({"fg": [place], "bg": []} for place in places)))
    assert [prompts[0].zyx for prompts in case.prompts] == [tuple(place) for place in places]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"boxes": objects("box")}, "the box of class 1 is .box."),
        ({"boxes": objects(BOX, {"z_min": 1})}, r"the box of class 2 is \{'z_min': 1\}"),
        ({"boxes": objects(BOX | {"z_min": None})}, "found the prompt"),
        ({"boxes": objects(BOX | {"z_min": float("nan")})}, "found the prompt"),
        ({"boxes": np.zeros((1, 6))}, "the box of class 1 is array"),
        ({"clicks": objects("fg")}, "the clicks of class 1 is 'fg'"),
        ({"clicks": objects({"fg": [[1, 2]]})}, r"found the prompt \[\[1, 2\]\]"),
        ({"clicks": objects({"fg": [[1, 2, 3], [1, 2]]})}, "found the prompt"),
        ({"clicks": objects({"fg": [["a", 2, 3]]})}, "found the prompt"),
        ({"clicks": objects({"fg": {"z": 1}})}, "found the prompt"),
        ({"clicks": objects({"fg": [[1, 2, float("inf")]]})}, "found the prompt"),
        ({"imgs": None}, "lacks 'imgs'"),
        ({"spacing": None}, "lacks 'spacing'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_understood_is_an_input_error(tmp_path, changes, found):
    with pytest.raises(InputError, match=rf"(?s)CT_A_1\.npz: {found}.*Expected .*:"):
        read(tmp_path, **changes)


JUNK = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from(["fg", "bg", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["fg", "bg", *BOX]), inner, max_size=7)
    ),
    max_leaves=12,
)


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(boxes=st.lists(JUNK, max_size=3), clicks=st.lists(JUNK, max_size=3), order=JUNK)
def test_made_up_prompts_give_voxels_of_the_image_or_an_input_error(tmp_path, boxes, clicks, order):
    changes = {"boxes": objects(*boxes), "clicks": objects(*clicks), "clicks_order": objects(order)}
    try:
        prompts = read(tmp_path, **changes).prompts
    except InputError:
        return
    for prompt in (prompt for own in prompts for prompt in own):
        zyx = prompt.zyx if isinstance(prompt, Click) else prompt.start_zyx
        assert all(0 <= c <= last for c, last in zip(zyx, LAST, strict=True))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(SHAPE, np.uint8),
        np.full((5, 5, 5), 7, np.uint8),
        np.arange(216, dtype=np.int16).reshape(SHAPE) - 50,
        np.linspace(-1, 1, 216, dtype=np.float32).reshape(SHAPE),
        np.ones((1, 1, 1), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}-{image.shape}",
)
def test_any_image_of_real_numbers_will_do(tmp_path, image):
    case = read(tmp_path, imgs=image, gts=None, clicks=objects({"fg": [[0, 0, 0]], "bg": []}))
    np.testing.assert_array_equal(case.image, image)
    assert case.image.dtype == image.dtype


def test_a_last_answer_of_any_shape_changes_nothing(tmp_path, caplog):
    answer = np.ones(SHAPE, np.uint8)
    for prev_pred in (answer, answer[1:]):
        case = read(tmp_path, boxes=objects(BOX), prev_pred=prev_pred)
        assert case.prompts == [[BOX_PROMPT]]
    assert not caplog.records


def test_an_answer_is_read_back_without_pickles(tmp_path):
    segs = np.arange(216, dtype=np.uint8).reshape(SHAPE)
    write_segs(tmp_path / "out" / "CT_A_1.npz", segs)
    with np.load(tmp_path / "out" / "CT_A_1.npz", allow_pickle=False) as stored:
        assert stored.files == ["segs"]
        assert stored["segs"].dtype == np.uint8
        np.testing.assert_array_equal(stored["segs"], segs)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["CT_A_1.npz"]


def test_a_class_may_be_without_a_box(tmp_path):
    box = {
        **{"z_min": 0, "z_max": 1, "z_mid": 0, "z_mid_y_min": 1, "z_mid_y_max": 2},
        **{"z_mid_x_min": 1, "z_mid_x_max": 2},
    }
    path = write_case(tmp_path, "CT_A_1", boxes=objects(None, box))
    assert [len(own) for own in read_challenge_case(path).prompts] == [0, 1]
