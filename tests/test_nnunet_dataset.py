"""What dataset.json and flags may say of channels and classes, and what they may not."""

import json
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.preparation.nnunet_dataset import (
    Description,
    chosen_channels,
    classes_of_flags,
    folders_of,
    read_description,
    require_folder_name,
)

V2 = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "Left Kidney": 2},
    "file_ending": ".nii.gz",
}
V1 = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "Left Kidney"}}
CHANNELS = {0: "T1w", 1: "T2-FLAIR (mm)", 12: "0"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dataset.json"


@pytest.mark.parametrize("content", [V2, V1], ids=["v2", "v1"])
def test_both_versions_say_the_same(path, content):
    path.write_text(json.dumps(content))

    classes = {"liver": [1], "Left Kidney": [2]}
    assert read_description(path) == Description({0: "CT"}, classes, ignored=[0])


def test_region_has_several_values_and_the_ignore_label_is_no_class(path):
    labels = {"background": 0, "whole tumor": [3, 1, 1], "tumor core": [3], "ignore": 4}
    path.write_text(json.dumps(V2 | {"labels": labels}))

    said = read_description(path)

    assert said.classes == {"whole tumor": [1, 3], "tumor core": [3]}
    assert said.ignored == [0, 4]


def test_slash_between_words_of_a_class_is_no_path(path):
    path.write_text(json.dumps(V2 | {"labels": {"prostate/uterus": 1}}))

    assert read_description(path).classes == {"prostate/uterus": [1]}


MALFORMED = {
    "no object": ([], r"holds \[\]"),
    "no channels": ({"labels": V2["labels"]}, "has the channels None"),
    "no labels": ({"modality": V1["modality"]}, "has the labels None"),
    "no file ending": ({k: V2[k] for k in ("labels", "channel_names")}, "'file_ending' is None"),
    "another file ending": (V2 | {"file_ending": ".png"}, "'.png'.*convert"),
    "list of channels": (V2 | {"channel_names": ["CT"]}, r"has the channels \['CT'\]"),
    "channel without number": (V2 | {"channel_names": {"CT": "0"}}, "has the channel 'CT'"),
    "channel without name": (V2 | {"channel_names": {"0": 1}}, "has the name 1"),
    "list of labels": (V2 | {"labels": ["liver"]}, r"has the labels \['liver'\]"),
    "text for a value": (V2 | {"labels": {"liver": "one"}}, "has the values"),
    "truth for a value": (V2 | {"labels": {"liver": True}}, "'liver' has the values"),
    "value of no label": (V2 | {"labels": {"liver": 70000}}, "'liver' has the values"),
    "background in a region": (V2 | {"labels": {"liver": [0, 1]}}, "'liver' has the values"),
    "empty region": (V2 | {"labels": {"liver": []}}, "'liver' has the values"),
    "background elsewhere": (V2 | {"labels": {"background": 1}}, "'background' has the values"),
    "no class": (V2 | {"labels": {"background": 0}}, "has the classes {}"),
    "ignored class": (V2 | {"labels": {"liver": 1, "ignore": 1}}, "beside the ignored values"),
    "one folder for two": (V2 | {"labels": {"a b": 1, "A_B": 2}}, "would share the folder 'a_b'"),
    "two classes of one name": (V1 | {"labels": {"1": "a", "2": "a"}}, "share the folder 'a'"),
    "no letter in a class": (V2 | {"labels": {"?": 1}}, "holds no letter or digit"),
    "class above": (V2 | {"labels": {"../liver": 1}}, "has the name '../liver'"),
    "class with dots": (V2 | {"labels": {"a/../../liver": 1}}, "has the name 'a/../../liver'"),
    "absolute class": (V2 | {"labels": {"/liver": 1}}, "has the name '/liver'"),
    "class of lines": (V2 | {"labels": {"liver\n2": 1}}, "has the name"),
    "class with backslash": (V2 | {"labels": {"..\\liver": 1}}, "has the name"),
    "channel above": (V2 | {"channel_names": {"0": "../CT"}}, "has the name '../CT'"),
}


@pytest.mark.parametrize(("content", "found"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_description_is_an_input_error(path, content, found):
    path.write_text(json.dumps(content))

    with pytest.raises(InputError, match=rf"dataset\.json: .*{found}"):
        read_description(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, json.dumps(V2).encode("utf-16")])
def test_description_that_is_no_json_is_an_input_error(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(InputError, match=r"dataset\.json: cannot be (read|used)"):
        read_description(path)


def test_description_that_is_good_but_for_a_repeated_key_is_an_input_error(path):
    text = json.dumps(V2)
    path.write_text(text)
    read_description(path)

    path.write_text(text.replace('"liver": 1', '"liver": 1, "liver": 3'))
    with pytest.raises(InputError, match=r"dataset\.json: .*liver.* twice"):
        read_description(path)


def test_classes_are_given_by_flags():
    classes, ignored = classes_of_flags(["1=liver", "20 = left kidney"], instances=False)

    assert classes == {"liver": [1], "left kidney": [20]}
    assert ignored == []


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["liver"], "'liver'. Expected VALUE=NAME"),
        (["1=left", "kidney"], "'kidney'. Expected VALUE=NAME.*quotes"),
        (["1=liver", "1=spleen"], "Expected each once"),
        (["1=../liver"], "has the name '../liver'"),
        (["70000=liver"], "'liver' has the values"),
    ],
)
def test_flags_that_give_no_classes_are_refused(texts, found):
    with pytest.raises(InputError, match=f"--classes.*{found}"):
        classes_of_flags(texts, instances=False)


@pytest.mark.parametrize("texts", [["2=tumor"], ["1=tumor", "2=cyst"]])
def test_instances_are_of_the_class_1_alone(texts):
    with pytest.raises(InputError, match="only 1 with --instances"):
        classes_of_flags(texts, instances=True)


@pytest.mark.parametrize(
    ("channels", "folders"),
    [
        ({3: "CT"}, {"image_0003": "D"}),
        (CHANNELS, {"image_0000": "D_T1w", "image_0001": "D_T2_FLAIR_mm", "image_0012": "D_0"}),
        ({0: "noNorm", 1: "nonorm"}, {"image_0000": "D_noNorm_0", "image_0001": "D_nonorm_1"}),
        ({0: "?", 1: "T1"}, {"image_0000": "D_0", "image_0001": "D_T1_1"}),
    ],
    ids=["one channel", "by name", "one name but for case", "no letter"],
)
def test_channels_are_data_sets_of_different_names(channels, folders):
    assert folders_of("D", channels) == folders


def test_channel_whose_data_set_has_too_long_a_name_is_refused():
    with pytest.raises(InputError, match="a channel's data set is called 'D_aaa"):
        folders_of("D", {0: "a" * 200, 1: "b"})


@pytest.mark.parametrize(
    ("wanted", "roles"),
    [
        (["1"], ["image_0001"]),
        (["T2-FLAIR (mm)"], ["image_0001"]),
        (["12", "T1w", "12"], ["image_0000", "image_0012"]),
        (["0"], ["image_0000"]),  # a number before a name
    ],
)
def test_channels_are_chosen_by_number_or_name(wanted, roles):
    assert chosen_channels(Path("D"), CHANNELS, wanted) == roles


def test_unknown_channel_is_refused():
    with pytest.raises(InputError, match=r"D has no channel 'PET'.*T1w"):
        chosen_channels(Path("D"), CHANNELS, ["T1w", "PET"])


@pytest.mark.parametrize("name", ["../b", "a/b", ".a", "..", "", "a\n", "a\\b", "a" * 201])
def test_name_that_is_no_folder_s_is_refused(name):
    with pytest.raises(InputError, match="--dataset is called '"):
        require_folder_name(name, "--dataset")
