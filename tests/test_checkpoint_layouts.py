"""Weights as other training scripts leave them: they load right, or the message says what to do."""

import argparse
import logging
import pathlib

import numpy as np
import pytest
import torch
from small_networks import small_config, small_sam, small_student

from segment_anything import checkpoint_payload, fingerprint, open_checkpoint, student_payload
from utils.errors import InputError
from utils.run.network import open_network

CONFIG = {"config": small_config().to_dict()}


@pytest.fixture(scope="module")
def model():
    return small_sam()


@pytest.fixture
def opened(tmp_path):
    """Return a function that saves its argument and opens the file as a network."""

    def open_saved(content):
        torch.save(content, tmp_path / "file.pth")
        return open_network(tmp_path / "file.pth")[0]

    return open_saved


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


PREFIXES = [
    *("sam.", "model.", "net.", "network.", "module.", "_orig_mod.", "module._orig_mod."),
    *("_orig_mod.module.", "model._orig_mod.", "model.sam.", "a.b.c.", "module.model.module."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_keys_is_removed(opened, model, prefix):
    weights = prefixed(prefix, model.state_dict())
    found = opened(CONFIG | {"model_state_dict": weights})
    assert fingerprint(found) == fingerprint(model)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_both_parts_of_a_student_is_removed(opened, prefix):
    student = small_student()
    content = student_payload(student)
    for entry in ("model_state_dict", "decoder_state_dict"):
        content[entry] = prefixed(prefix, content[entry])
    assert fingerprint(opened(content)) == fingerprint(student)


LAYOUTS = {
    "lightning": lambda w: {
        "state_dict": prefixed("model.", w),
        "epoch": 3,
        "hyper_parameters": {},
    },
    "medsam": lambda w: {"model": w, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3},
    "state_dict": lambda w: {"state_dict": w},
    "net": lambda w: {"net": w, "scheduler": {"last": torch.ones(1)}},
    "module": lambda w: {"module": w},
    "weights and average": lambda w: {"model": w, "ema": prefixed("x.", w)},
    "average alone": lambda w: {"model_ema": w},
    "leftovers": lambda w: {
        "model_state_dict": w,
        "best": np.float64(0.8),
        "args": argparse.Namespace(lr=1e-4, out=pathlib.Path("x"), device=torch.device("cpu")),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_are_found_under_any_name(opened, model, layout):
    assert fingerprint(opened(CONFIG | layout(model.state_dict()))) == fingerprint(model)


def test_weights_of_half_precision_load(opened, model):
    half = {key: value.half() for key, value in model.state_dict().items()}
    found = opened(CONFIG | {"model_state_dict": half})
    for key, value in found.state_dict().items():
        assert torch.equal(value, half[key].float())


def test_paths_of_windows_do_not_keep_a_file_from_loading(opened, tmp_path, model):
    path = tmp_path / "file.pth"
    content = checkpoint_payload(model, args=pathlib.PurePosixPath("out"))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    name = b"cpathlib\nPurePosixPath\n"
    assert name in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(name, b"cpathlib\nWindowsPath\n"))
    assert fingerprint(open_network(path)[0]) == fingerprint(model)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (lambda w: {"model_state_dict": prefixed("sam.", w)}, "the prefix 'sam.' of all keys"),
        (lambda w: {"model_state_dict": w, "ema_state_dict": w}, "not those under ema_state_dict"),
        (lambda w: {"net": w, "net_ema": w}, "takes the weights under 'net'"),
        (lambda w: {"model_ema": w}, "takes the averaged weights under 'model_ema'"),
    ],
)
def test_the_log_says_which_weights_were_taken(opened, model, caplog, content, note):
    with caplog.at_level(logging.WARNING):
        opened(CONFIG | content(model.state_dict()))
    assert note in caplog.text
    assert "file.pth" in caplog.text


def test_a_file_of_ours_says_nothing(opened, model, caplog):
    opened(checkpoint_payload(model, step=3))
    opened(student_payload(small_student()))
    assert not caplog.records


REFUSED = {
    "another module's weight": (
        lambda w: {"model_state_dict": prefixed("model.", w) | {"loss.weight": torch.ones(2)}},
        r"begin with 'model\.', of \d+\. Save .*k\.removeprefix\('model\.'\)",
    ),
    "teacher and student": (
        lambda w: {"model_state_dict": prefixed("student.", w) | prefixed("teacher.", w)},
        r"begin with 'student\.', \d+ keys begin with 'teacher\.'",
    ),
    "with and without": (
        lambda w: {"model_state_dict": w | prefixed("module.", w)},
        r"holds \d+ weights twice, .* and module\.",
    ),
    "one key more": (
        lambda w: {"model_state_dict": w | {"total_params": torch.tensor(3)}},
        "unexpected: total_params",
    ),
    "two networks": (
        lambda w: {"generator": w, "other": w},
        "2 of them with the weights of a network",
    ),
    "two averages": (
        lambda w: {"ema": w, "model_ema": w},
        "2 of them with the weights of a network",
    ),
    "no weights": (lambda w: {"epoch": 3}, "none of them with the weights of a network"),
    "empty weights beside good ones": (
        lambda w: {"model_state_dict": {}, "ema": w},
        "no named tensors under 'model_state_dict'",
    ),
    "a part in both entries": (
        lambda w: {"model_state_dict": w, "decoder_state_dict": w},
        "both under 'model_state_dict' and under 'decoder_state_dict'",
    ),
    "a prefix of some keys": (
        lambda w: {
            "model_state_dict": {
                ("sam." if key.startswith("mask") else "") + key: value for key, value in w.items()
            }
        },
        r"begin with 'sam\.'",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_weights_that_could_be_meant_otherwise_are_refused(opened, model, content, message):
    with pytest.raises(InputError, match=message) as error:
        opened(CONFIG | content(model.state_dict()))
    assert "file.pth" in str(error.value)


def test_a_whole_pickled_network_is_refused_with_what_to_save(opened, model):
    with pytest.raises(InputError, match=r"Sam3D was not an allowed .*\n.* save its weights alone"):
        opened(model)


def test_names_within_keys_are_no_prefix(tmp_path, model):
    """`blocks.0` and the like stand in front of other names, and stay."""
    weights = {f"model.{k}": v for k, v in model.image_encoder.state_dict().items()}
    torch.save({"model_state_dict": weights}, tmp_path / "file.pth")
    found = open_checkpoint(tmp_path / "file.pth")
    assert found.weights.keys() == {f"image_encoder.{k.removeprefix('model.')}" for k in weights}
