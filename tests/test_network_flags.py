"""``preparelabel.py --set``: fields of a network trained from scratch."""

import dataclasses

import pytest

from preparelabel import build_teacher, parse_args
from segment_anything import network_configs
from utils.errors import InputError
from utils.run.network_flags import changed

TINY, VIT_B_ORI = network_configs["tiny"], network_configs["vit_b_ori"]


@pytest.mark.parametrize(
    ("text", "part", "field", "value"),
    [
        ("encoder.relative_terms=textbook", "encoder", "relative_terms", "textbook"),
        ("encoder.depth=4", "encoder", "depth", 4),
        ("encoder.mlp_ratio=2.5", "encoder", "mlp_ratio", 2.5),
        ("prompt.dense_pe_axes=1,0,2", "prompt", "dense_pe_axes", (1, 0, 2)),
        ("decoder.refine_strength=0", "decoder", "refine_strength", 0),
        ("prompt.click_memory=last", "prompt", "click_memory", "last"),
        ("decoder.mlp_dim=64", "decoder", "mlp_dim", 64),
    ],
)
def test_a_field_is_set_and_the_others_stay(text, part, field, value):
    expected = dataclasses.replace(getattr(TINY, part), **{field: value})
    assert expected != getattr(TINY, part)
    assert changed(TINY, [text]) == dataclasses.replace(TINY, **{part: expected})


def test_fields_are_checked_together():
    fields = ["encoder.relative_terms=textbook", "encoder.window_size=0"]
    encoder = changed(VIT_B_ORI, fields).encoder
    assert (encoder.relative_terms, encoder.window_size) == ("textbook", 0)
    with pytest.raises(InputError, match="textbook relative_terms are not supported with windows"):
        changed(VIT_B_ORI, fields[:1])


def test_no_field_leaves_the_network_as_it_is():
    assert changed(VIT_B_ORI, []) == VIT_B_ORI


@pytest.mark.parametrize(
    "text",
    [
        *(
            "encoder.windows=3",
            "head.depth=2",
            "depth=2",
            "encoder=3",
            "encoder.",
            "",
            "network=tiny",
        ),
    ],
)
def test_unknown_field_is_refused_with_the_names_of_all(text):
    with pytest.raises(InputError, match="no such field") as refusal:
        changed(TINY, [text])
    named = str(refusal.value).rstrip(".").split(" with one of ")[1].split(", ")
    parts = {name: getattr(TINY, name) for name in ("encoder", "prompt", "decoder")}
    assert named == [f"{p}.{f.name}" for p, c in parts.items() for f in dataclasses.fields(c)]


@pytest.mark.parametrize(
    "text",
    [
        *("encoder.num_heads=5", "encoder.stem=linear", "encoder.window_size=wide"),
        *("encoder.out_chans=100", "encoder.img_size", "prompt.dense_pe_axes=0,0,1"),
        *("prompt.dense_pe_axes=2", "prompt.click_stamp_sigma=-1", "prompt.click_memory=first"),
        *("encoder.patch_size=0", "encoder.num_heads=0", "decoder.num_heads=0"),
        *("decoder.depth=two", "encoder.embed_dim=192.0", "encoder.detail_chans=-4"),
        *("encoder.img_size=-128", "encoder.neck_kernel=-1"),
        *("encoder.num_heads=true", "prompt.click_stamp_logit=x", "encoder.global_attn_indexes="),
    ],
)
def test_impossible_value_is_refused_with_the_flag(text):
    with pytest.raises(InputError, match=f"--set {text}: cannot be built"):
        changed(TINY, [text])


def test_teacher_from_scratch_is_built_with_the_fields_set():
    flags = ["--network", "tiny", "--set", "encoder.depth=2", "encoder.relative_terms=textbook"]
    teacher, _ = build_teacher(parse_args(flags))
    assert teacher.config == changed(TINY, flags[3:])
    assert len(teacher.image_encoder.blocks) == 2


def test_fields_set_beside_a_checkpoint_are_refused(tmp_path):
    flags = ["--checkpoint", str(tmp_path / "teacher.pt"), "--set", "encoder.depth=4"]
    with pytest.raises(InputError, match=r"--set encoder\.depth=4: the weights of .*teacher\.pt"):
        build_teacher(parse_args(flags))


@pytest.mark.parametrize(
    ("text", "value"), [("1,0", (1, 0)), ("[1,0]", (1, 0)), ("0,", (0,)), ("[0]", (0,)), ("[]", ())]
)
def test_list_may_have_brackets_or_commas_alone(text, value):
    config = changed(TINY, [f"encoder.attention_free_blocks={text}"])
    assert config.encoder.attention_free_blocks == value
