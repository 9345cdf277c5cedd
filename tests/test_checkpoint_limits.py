"""Checkpoints made to do harm or damaged: each is refused before it takes memory or time."""

import copy
import subprocess
import sys
import zipfile

import pytest
import torch
from preparation_helpers import ROOT
from small_networks import save_teacher, small_sam

from segment_anything import CheckpointError, build_from_checkpoint, checkpoint_payload
from utils.errors import InputError
from utils.run.network import open_network, trained_on

KEY = "image_encoder.pos_embed"
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.pth"


@pytest.fixture
def content():
    return checkpoint_payload(small_sam())


def refused(path, content, match):
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=match) as error:
        build_from_checkpoint(path)
    assert "file.pth" in str(error.value)


def zero(shape):
    return torch.zeros(1).expand(shape)


TENSORS = {
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "whole numbers": lambda t: t.to(torch.int8),
    "flags": lambda t: t.to(torch.bool),
    "complex": lambda t: t.to(torch.complex64),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "one value for all": lambda t: zero(t.shape),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch's about quantised tensors
@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_is_no_plain_array_is_named(path, content, change):
    content["model_state_dict"][KEY] = change(content["model_state_dict"][KEY])
    refused(path, content, rf"not plain numbers: {KEY} \(")


@pytest.mark.parametrize("key", [KEY, "image_encoder.more"])
def test_a_tensor_of_a_few_bytes_and_a_huge_shape_is_refused(path, content, key):
    content["model_state_dict"][key] = zero((10**12,))
    refused(path, content, rf"(reshaped|unexpected): {key}")


def test_many_weights_that_share_a_few_bytes_are_refused(path, content):
    weights = content["model_state_dict"]
    shared = torch.zeros(max(value.numel() for value in weights.values()))
    for key, value in weights.items():
        weights[key] = shared[: value.numel()].view(value.shape)
    refused(path, content, "its weights share .* bytes and would take")


def test_tied_weights_load(path, content):
    weights = content["model_state_dict"]
    first, second = (f"prompt_encoder.point_embeddings.{n}.weight" for n in range(2))
    weights[second] = weights[first]
    torch.save(content, path)
    assert torch.equal(build_from_checkpoint(path).state_dict()[second], weights[first])


@pytest.mark.parametrize("key", [1, (1, 2), None])
def test_keys_that_are_no_names_are_refused(path, content, key):
    refused(path, {key: torch.zeros(3)}, "none of them with the weights")
    content["model_state_dict"][key] = torch.zeros(3)
    refused(path, content, "no named tensors under 'model_state_dict'")


def test_a_compressed_archive_is_refused(path, content, tmp_path):
    torch.save(content, tmp_path / "good.pth")
    with (
        zipfile.ZipFile(tmp_path / "good.pth") as good,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in good.infolist():
            packed.writestr(member.filename, good.read(member))
    with pytest.raises(CheckpointError, match=r"file\.pth: .*a compressed archive"):
        build_from_checkpoint(path)


FIELDS = [
    *(("encoder", "depth", value) for value in (10**9, 65, -1, True, 1.5, "2", None, 10**400)),
    *(("encoder", "img_size", value) for value in (0, 33, 2**62, 10**400, -32)),
    *(("encoder", "patch_size", value) for value in (0, 1, 32.0, 10**9)),
    *(("encoder", "embed_dim", value) for value in (0, 24 * 10**7, "24", INF)),
    *(("encoder", "num_heads", value) for value in (0, 5, 10**9)),
    *(
        ("encoder", "mlp_ratio", value)
        for value in (float("nan"), float("inf"), 1e12, 0, -4.0, "4")
    ),
    *(("encoder", "out_chans", value) for value in (48 * 10**6, 0, 47)),
    *(("encoder", "window_size", value) for value in (-3, 10**9, 2, None)),
    *(("encoder", "neck_kernel", value) for value in (10**9 + 1, 2, 0, -1)),
    *(("encoder", "detail_chans", value) for value in (10**9, -1, 4)),
    *(
        ("encoder", "global_attn_indexes", value)
        for value in ([-1], [10**9], 3, "12", [1.5], [[1]])
    ),
    *(("encoder", "attention_free_blocks", value) for value in (["a"], [7], [[0]], [0] * 10**5)),
    *(("encoder", "stem", value) for value in ([], "x", 3, {}, "conv")),
    *(("encoder", "mlp_residual", value) for value in ("x", None, ["input"])),
    *(("encoder", "relative_terms", value) for value in ("x", 1)),
    *(("prompt", "click_stamp_sigma", value) for value in (NAN, -1.0, 1e9, "1")),
    *(("prompt", "click_stamp_logit", value) for value in (INF, 1e30, None)),
    *(("prompt", "dense_pe_axes", value) for value in (["a", 1, 2], [0, 0, 1], [], 3)),
    *(("prompt", "click_memory", value) for value in ("first", 1, [])),
    *(("decoder", "mlp_dim", value) for value in (10**12, 0, 32.5)),
    *(("decoder", "depth", value) for value in (10**9, 0, "two")),
    *(("decoder", "num_heads", value) for value in (0, -8, 10**9)),
]


def shown(case):
    return str(case)[:40] if not isinstance(case, int) or case < 10**20 else "huge"


@pytest.mark.parametrize(("part", "field", "value"), FIELDS, ids=shown)
def test_a_configuration_out_of_range_is_refused(path, content, part, field, value):
    content["config"][part][field] = value
    refused(path, content, f"its config cannot be used .*{field.split('_')[0]}")


@pytest.mark.parametrize(
    "config",
    [
        {"network": "tiny", "encoder": 3},
        {"network": "tiny", 3: 1},
        {"network": "tiny", "more": {}},
        {"network": ["tiny"]},
        {"network": 3},
        {"network": ""},
        {"network": "a\x1b[31m"},
        {"network": "a" * 10**6},
    ],
)
def test_a_configuration_of_another_form_is_refused(path, content, config):
    refused(path, content | {"config": config}, "its config cannot be used")


def test_a_configuration_of_too_many_weights_is_refused(path, content):
    content["config"]["encoder"] |= {"embed_dim": 8192, "depth": 64, "num_heads": 64}
    refused(path, content, r"about \de\+10 weights, expected at most 5e\+09")


CHANGES = [
    *(("encoder", "depth", 64), ("encoder", "embed_dim", 4800), ("encoder", "out_chans", 7680)),
    *(
        ("encoder", "mlp_ratio", 64.0),
        ("encoder", "neck_kernel", 15),
        ("decoder", "mlp_dim", 65536),
    ),
    *(("decoder", "depth", 64), ("encoder", "img_size", 128)),
]


@pytest.mark.parametrize(("part", "field", "value"), CHANGES, ids=str)
def test_a_configuration_of_other_weights_is_refused_by_their_keys_and_shapes(
    path, content, part, field, value
):
    content["config"][part][field] = value
    refused(path, content, r"the weights are not those of tiny\.\n  (missing|reshaped)")


def test_a_hostile_configuration_takes_no_memory(path, content):
    """A network of about 15 GB, which the ranges allow, from a file of a small one."""
    content["config"]["encoder"] |= {"embed_dim": 4800, "depth": 12, "out_chans": 6144}
    torch.save(content, path)
    code = (
        "import resource, sys; from segment_anything import *\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30,) * 2)\n"
        "try: build_from_checkpoint(sys.argv[1])\n"
        "except CheckpointError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "the weights are not those of tiny" in done.stdout


@pytest.mark.parametrize("names", [3, "liver", {"liver": 1}, [1], [["liver"]]], ids=str)
def test_a_list_of_folders_that_is_none_is_refused(path, content, names):
    torch.save(content | {"trained_on": names}, path)
    with pytest.raises(InputError, match="its trained_on is a"):
        trained_on(path)


def test_a_deep_copy_of_the_content_is_what_loads(path, content):
    """The file of these tests is good: what they change is the reason of the refusal."""
    torch.save(copy.deepcopy(content), path)
    build_from_checkpoint(path)
    open_network(save_teacher(path))
