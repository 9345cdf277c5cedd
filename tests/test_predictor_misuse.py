"""Arguments that the predictor cannot use: each is refused, and nothing changes."""

import threading

import numpy as np
import pytest
import torch
from small_networks import RULE, small_sam

from utils.errors import InputError
from utils.prediction.predictor import Predictor
from utils.prediction.region import ZoomRule
from utils.prediction.session import PredictorOptions
from utils.prompts.kinds import BoxPrompt, Click, MaskPrompt, PromptError
from utils.volumes.geometry import CropRule

SHAPE = (14, 30, 26)
SPACING = (1.0, 1.1, 2.5)
HUGE = 10**5000  # Python refuses to print it


@pytest.fixture(scope="module")
def network():
    return small_sam()


@pytest.fixture
def predictor(network):
    predictor = Predictor(network, RULE)
    predictor.set_image(image(), SPACING)
    predictor.add_point((5, 20, 18))
    predictor.add_box((2, 3, 4), (9, 14, 16), target=7)
    return predictor


def image():
    return np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)


def block():
    mask = np.zeros(SHAPE, bool)
    mask[3:9, 10:20, 10:20] = True
    return mask


def with_value(value, dtype=float):
    changed = image().astype(dtype)
    changed[3, 4, 5] = value
    return changed


def require_refusal(predictor, call, error):
    """Check that a call raises ``error``, says what was expected, and changes nothing."""
    before, targets = predictor.segmentation(), predictor.targets
    with pytest.raises(error, match=r"[Ee]xpected|[Gg]ive|[Cc]all") as refusal:
        call(predictor)
    assert str(refusal.value).endswith(".")
    assert predictor.targets == targets
    np.testing.assert_array_equal(predictor.segmentation(), before)


IMAGES = {
    "list": [[[1.0]]],
    "none": None,
    "text": "image.nii.gz",
    "tensor": torch.zeros(4, 4, 4),
    "masked": np.ma.masked_equal(image(), 3),
    "2-D": image()[0],
    "4-D": image()[None],
    "empty": image()[:0],
    "complex": image().astype(complex),
    "objects": image().astype(object),
    "texts": image().astype(str),
    "dates": image().astype("M8[s]"),
    "NaN": with_value(np.nan),
    "NaN in half": with_value(np.nan, np.float16),
    "infinite": with_value(-np.inf, np.float32),
    "beyond float32": with_value(1e39),
    "far beyond float32": with_value(-1e300),
    "squares beyond float32": with_value(1e25, np.float32),
    "huge whole number": with_value(2**62, np.int64),
}


@pytest.mark.parametrize("volume", IMAGES.values(), ids=IMAGES)
def test_an_image_that_is_none_is_refused(predictor, volume):
    require_refusal(predictor, lambda p: p.set_image(volume, SPACING), InputError)


@pytest.mark.parametrize(("value", "text"), [(1e39, "1e+39"), (np.nan, "nan"), (1e25, "1e+25")])
def test_the_voxel_that_no_network_can_take_is_named(predictor, value, text):
    with pytest.raises(InputError, match=r"at \(z, y, x\) = \(3, 4, 5\)") as refusal:
        predictor.set_image(with_value(value), SPACING)
    assert f"first {text} at" in str(refusal.value)


SPACINGS = {
    "zero": (1.0, 0.0, 1.0),
    "negative": (1.0, 1.0, -2.5),
    "NaN": (1.0, np.nan, 1.0),
    "infinite": (np.inf, 1.0, 1.0),
    "tiny": (1e-300, 1.0, 1.0),
    "huge": (1e300, 1.0, 1.0),
    "huge whole number": (HUGE, 1, 1),
    "two": (1.0, 1.0),
    "four": (1.0, 1.0, 1.0, 1.0),
    "one number": 1.0,
    "text": "111",
    "texts": ("1", "1", "1"),
    "complex": (1j, 1.0, 1.0),
    "flags": (True, True, True),
    "nested": ((1.0,), (1.0,), (1.0,)),
}


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_a_spacing_that_is_none_is_refused(predictor, spacing):
    require_refusal(predictor, lambda p: p.set_image(image(), spacing), InputError)


def affine_with(row, column, value):
    affine = np.eye(4)
    affine[row, column] = value
    return affine


AFFINES = {
    "singular": affine_with(1, 1, 0.0),
    "two axes alike": np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    "almost singular": np.array([[1, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    "NaN": affine_with(0, 1, np.nan),
    "infinite": affine_with(0, 3, np.inf),
    "huge": affine_with(0, 0, 1e300),
    "tiny": affine_with(0, 0, 1e-300),
    "no last row": affine_with(3, 3, 0.0),
    "(3, 3)": np.eye(3),
    "(3, 4)": np.eye(4)[:3],
    "complex": np.eye(4).astype(complex),
    "objects": np.eye(4).astype(object),
    "ragged": [[1.0], [0.0, 1.0]],
    "text": "eye",
    "number": 3,
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_an_affine_that_is_none_is_refused(predictor, affine):
    require_refusal(predictor, lambda p: p.set_image(image(), affine=affine), InputError)


def test_both_spacing_and_affine_are_refused(predictor):
    both = lambda p: p.set_image(image(), SPACING, affine=np.eye(4))  # noqa: E731
    require_refusal(predictor, both, InputError)


def test_an_affine_is_copied(network):
    predictor, affine = Predictor(network, RULE), np.eye(4)
    predictor.set_image(image(), affine=affine)
    predictor.add_point((5, 20, 18))
    before = predictor.mask()
    affine[0, 0] = np.nan
    predictor.reset()
    predictor.add_point((5, 20, 18))
    np.testing.assert_array_equal(predictor.mask(), before)


PLACES = {
    "outside": (14, 0, 0),
    "negative": (0, -1, 0),
    "between voxels": (1.5, 0, 0),
    "NaN": (np.nan, 0, 0),
    "infinite": (0, 0, np.inf),
    "two": (1, 2),
    "four": (1, 2, 3, 4),
    "none": None,
    "number": 3,
    "text": "123",
    "bytes": b"\1\2\3",
    "texts": ("1", "2", "3"),
    "complex": (1j, 2, 3),
    "flags": (True, True, True),
    "nested": ((1,), (2,), (3,)),
    "table": {1: 1, 2: 2, 3: 3},
    "array of two axes": np.ones((3, 3), int),
    "huge": (10**400, 1, 1),
    "too huge to print": (HUGE, 1, 1),
}


@pytest.mark.parametrize("zyx", PLACES.values(), ids=PLACES)
def test_a_click_that_is_none_is_refused(predictor, zyx):
    require_refusal(predictor, lambda p: p.add_point(zyx), PromptError)
    require_refusal(predictor, lambda p: p.add(Click(zyx, True)), PromptError)


FLAGS = {"word": "no", "none": None, "minus one": -1, "two": 2, "half": 0.5, "array": np.ones(2)}


@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
def test_a_flag_that_is_neither_true_nor_false_is_refused(predictor, flag):
    box = (2, 3, 4), (9, 14, 16)
    require_refusal(predictor, lambda p: p.add_point((1, 2, 3), flag), PromptError)
    require_refusal(predictor, lambda p: p.add_box(*box, middle_slice=flag), PromptError)
    require_refusal(predictor, lambda p: p.set_image(image(), SPACING, hounsfield=flag), InputError)


CORNERS = {
    "reversed": ((9, 14, 16), (2, 3, 4)),
    "empty": ((2, 3, 4), (2, 14, 16)),
    "outside": ((20, 3, 4), (25, 14, 16)),
    "before the image": ((-9, 3, 4), (0, 14, 16)),
    "NaN": ((2, np.nan, 4), (9, 14, 16)),
    "infinite": ((2, 3, 4), (9, 14, np.inf)),
    "two": ((2, 3), (9, 14)),
    "none": ((2, 3, 4), None),
    "texts": (("2", "3", "4"), ("9", "14", "16")),
    "complex": ((2j, 3, 4), (9, 14, 16)),
    "huge start": ((HUGE, 3, 4), (HUGE + 1, 14, 16)),
}


@pytest.mark.parametrize("corners", CORNERS.values(), ids=CORNERS)
def test_a_box_that_is_none_is_refused(predictor, corners):
    require_refusal(predictor, lambda p: p.add_box(*corners), PromptError)
    require_refusal(predictor, lambda p: p.add(BoxPrompt(*corners)), PromptError)


def test_a_box_beyond_every_number_is_cut_to_the_image(predictor):
    predictor.add_box((-HUGE, -1e300, 0), (HUGE, 1e300, 26), target=2)
    predictor.add_box((0, 0, 0), SHAPE, target=3)
    np.testing.assert_array_equal(predictor.logits(2).values, predictor.logits(3).values)


MASKS = {
    "list": [[[True]]],
    "none": None,
    "tensor": torch.ones(SHAPE),
    "masked": np.ma.masked_equal(block(), False),
    "another shape": block()[1:],
    "transposed": block().T,
    "2-D": block()[4],
    "4-D": block()[None],
    "empty": np.zeros(SHAPE, bool),
    "no voxel at all": block()[:0],
    "NaN": np.where(block(), np.nan, 0),
    "infinite": np.where(block(), np.inf, 0),
    "logits": np.where(block(), 4.0, -4.0),
    "complex": block().astype(complex),
    "objects": block().astype(object),
    "texts": block().astype(str),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_that_is_none_is_refused(predictor, mask):
    require_refusal(predictor, lambda p: p.add_mask(mask), PromptError)
    require_refusal(predictor, lambda p: p.add(MaskPrompt(mask)), PromptError)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.float32])
def test_a_mask_may_be_of_any_real_dtype(predictor, dtype):
    predictor.add_mask(block(), target=2)
    predictor.add_mask((block() * 7).astype(dtype), target=3)
    np.testing.assert_array_equal(predictor.logits(2).values, predictor.logits(3).values)


@pytest.mark.parametrize("prompt", [None, (1, 2, 3), ((1, 2, 3), True), block(), "click"])
def test_a_prompt_of_no_kind_is_refused(predictor, prompt):
    require_refusal(predictor, lambda p: p.add(prompt), PromptError)


IDS = {
    "background": 0,
    "negative": -3,
    "fraction": 1.5,
    "too large": 65536,
    "huge": HUGE,
    "NaN": np.nan,
    "infinite": np.inf,
    "text": "1",
    "flag": True,
    "complex": 1 + 0j,
    "list": [1],
    "array": np.array([1, 2]),
}
CALLS = {
    "add_point": lambda p, number: p.add_point((1, 2, 3), target=number),
    "add_box": lambda p, number: p.add_box((2, 3, 4), (9, 14, 16), target=number),
    "add_mask": lambda p, number: p.add_mask(block(), target=number),
    "add": lambda p, number: p.add(Click((1, 2, 3), True), target=number),
    "undo": lambda p, number: p.undo(target=number),
    "reset": lambda p, number: p.reset(number),
    "mask": lambda p, number: p.mask(target=number),
    "logits": lambda p, number: p.logits(number),
}


@pytest.mark.parametrize("number", IDS.values(), ids=IDS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_id_that_no_target_can_have_is_refused(predictor, call, number):
    require_refusal(predictor, lambda p: call(p, number), PromptError)


@pytest.mark.parametrize("call", [CALLS["undo"], CALLS["logits"]], ids=["undo", "logits"])
def test_a_target_without_prompts_is_refused_with_those_that_have_some(predictor, call):
    require_refusal(predictor, lambda p: call(p, 9), PromptError)
    with pytest.raises(PromptError, match=r"\[1, 7\]"):
        call(predictor, 9)


def test_a_number_of_another_type_names_the_same_target(predictor):
    for number in (np.uint8(7), 7.0, np.float32(7)):
        np.testing.assert_array_equal(predictor.mask(target=number), predictor.mask(target=7))
    predictor.undo(target=np.int64(7))
    assert predictor.targets == [1]


@pytest.mark.parametrize(
    "call", [*CALLS.values(), lambda p, _: p.segmentation()], ids=[*CALLS, "segmentation"]
)
def test_without_an_image_every_call_is_refused(network, call):
    predictor = Predictor(network, RULE)
    if call is CALLS["reset"]:
        call(predictor, 1)  # nothing to remove
    else:
        with pytest.raises(InputError, match=r"no image yet|no prompt"):
            call(predictor, 1)
    assert predictor.targets == []


PARTS = {
    "model": {"model": "student.pth"},
    "rule": {"rule": (32, 1.0)},
    "device": {"device": "cpu"},
    "precision": {"precision": torch.int8},
    "precision's name": {"precision": "float32"},
    "options": {"options": {"tiles": 3}},
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_a_predictor_of_wrong_parts_is_refused(network, part):
    parts = {"model": network, "rule": RULE} | part
    with pytest.raises(InputError, match="Expected"):
        Predictor(parts.pop("model"), parts.pop("rule"), **parts)


def test_a_crop_rule_of_another_network_is_refused_with_the_right_one(network):
    predictor = Predictor(network, CropRule(size=64, spacing_mm=1.0))
    predictor.set_image(image(), SPACING)
    predictor.add_point((5, 20, 18))
    with pytest.raises(InputError, match=r"got a volume of shape .*64.* Expected the crop rule"):
        predictor.mask()


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((PredictorOptions, "far_share", value) for value in (-0.1, 1.1, np.nan, "0.1", None)),
        *((PredictorOptions, "near_share", value) for value in (0.0, -1.0, np.inf)),
        *((PredictorOptions, "tile_above", value) for value in (-1.0, np.nan)),
        *((PredictorOptions, "tiles", value) for value in (0, 2.5, True, 10**9)),
        *((PredictorOptions, "most_clicks", value) for value in (0, -1, 1.5)),
        *((PredictorOptions, field, 1) for field in ("box_mask", "only_prompted", "honour_clicks")),
        (PredictorOptions, "zoom", None),
        *((ZoomRule, "fill", value) for value in (0.0, 1.5, np.nan)),
        *((ZoomRule, "least_fill", value) for value in (-0.1, 2.0)),
        *((ZoomRule, "growth", value) for value in (0.5, np.inf)),
        *((ZoomRule, "passes", value) for value in (-1, 0.5, 10**9)),
        *((ZoomRule, "in_plane", value) for value in (0.0, np.nan)),
        *((ZoomRule, field, value) for field in ("finest", "coarsest") for value in (0.0, np.inf)),
        (ZoomRule, "same", -0.1),
    ],
)
def test_an_option_out_of_its_range_is_refused(kind, field, value):
    with pytest.raises(InputError, match=rf"{kind.__name__}\.{field}: found .*, expected a"):
        kind(**{field: value})


def test_threads_take_turns(predictor):
    expected = predictor.segmentation()
    errors, answers = [], []

    def click_and_undo(target):
        try:
            for _ in range(3):
                predictor.add_point((1, 2, target), target=target)
                predictor.segmentation()
                predictor.undo(target=target)
            answers.append(predictor.logits(7).values)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=click_and_undo, args=(n,)) for n in range(10, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(answers) == 4
    np.testing.assert_array_equal(predictor.segmentation(), expected)
