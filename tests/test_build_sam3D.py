"""The registry, the configs, and what each part does with its input."""

import dataclasses
import json
import math

import pytest
import torch
from parity_helpers import STATE_DICTS, network

from segment_anything import (
    ConfigError,
    DecoderConfig,
    PromptConfig,
    SamConfig,
    build_from_checkpoint,
    build_sam3D,
    checkpoint_payload,
    sam_model_registry3D,
)
from segment_anything.build_sam3D import FASTSAM3D, TINY, TINY_FASTSAM3D, VIT_B_ORI

#: ``tiny`` as it was before it had a pyramid: detail of the stem, and stamped clicks.
STAMPED = dataclasses.replace(
    TINY,
    encoder=dataclasses.replace(TINY.encoder, detail="stem", detail_chans=16),
    prompt=PromptConfig(dense_pe_axes=(0, 1, 2), click_stamp_sigma=1.0, click_memory="all"),
    decoder=DecoderConfig(mlp_dim=512),
)


def _small(**prompt):
    """Return a network for 64^3 volumes: a 4^3 token grid, 16^3 low-resolution masks."""
    encoder = dataclasses.replace(STAMPED.encoder, img_size=64, embed_dim=48, depth=2, num_heads=2)
    prompt = dataclasses.replace(STAMPED.prompt, **prompt)
    torch.manual_seed(0)
    return build_sam3D(dataclasses.replace(STAMPED, encoder=encoder, prompt=prompt))


def _segment(model, points, masks=None, multimask_output=False):
    size = model.config.encoder.img_size
    sparse, dense = model.prompt_encoder(points=points, boxes=None, masks=masks)
    return model.mask_decoder(
        image_embeddings=model.image_encoder(torch.randn(len(sparse), 1, size, size, size)),
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
    )


def _stamped(model, points, masks=None):
    """Return the mask prompt after the clicks were stamped in, as the convolutions get it."""
    seen = []
    hook = model.prompt_encoder.mask_downscaling.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    model.prompt_encoder(points=points, boxes=None, masks=masks)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_state_dict_keys_and_shapes_are_the_released_ones(name):
    model = network(name) if name == "teacher" else network(name).image_encoder
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert found == STATE_DICTS[name]


def test_a_checkpoint_of_the_previous_tiny_opens_as_what_it_is(tmp_path):
    """Its config lacks the fields that came later."""
    torch.manual_seed(0)
    before = build_sam3D(STAMPED).eval()
    payload = checkpoint_payload(before)
    for part, field in (("encoder", "detail"), ("prompt", "click_diffusion"), ("decoder", "form")):
        del payload["config"][part][field]
    torch.save(payload, tmp_path / "before.pt")
    opened = build_from_checkpoint(tmp_path / "before.pt").eval()
    assert opened.config == STAMPED
    volume = torch.randn(1, 1, 128, 128, 128)
    with torch.no_grad():
        assert torch.equal(opened.image_encoder(volume), before.image_encoder(volume))


@pytest.mark.parametrize("config", [VIT_B_ORI, FASTSAM3D, TINY, TINY_FASTSAM3D])
def test_config_survives_json(config):
    assert SamConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.network in sam_model_registry3D


def test_unknown_config_field_is_named():
    values = TINY.to_dict()
    values["encoder"]["windows"] = 3
    with pytest.raises(ConfigError, match=r"config\.encoder has unknown fields \['windows'\]"):
        SamConfig.from_dict(values)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"img_size": 100}, "img_size is no multiple of patch_size"),
        ({"num_heads": 5}, "embed_dim is no multiple of num_heads"),
        ({"window_size": 4}, "window_size is 4, less than the token grid of 8"),
        ({"stem": "linear"}, "stem is 'linear', expected one of patch, conv"),
    ],
)
def test_impossible_encoder_is_refused(change, found):
    with pytest.raises(ConfigError, match=found):
        dataclasses.replace(TINY.encoder, **change)


def test_built_network_carries_its_config_and_trains():
    model = sam_model_registry3D["tiny"]()
    assert model.config == TINY
    assert model.training
    assert model.mask_threshold == 0.0


@pytest.mark.parametrize(("multimask_output", "masks"), [(False, 1), (True, 3)])
def test_shapes_on_a_small_grid(multimask_output, masks):
    points = (torch.rand(2, 3, 3) * 64, torch.tensor([[1, 0, -1], [1, 1, 0]]))
    logits, iou = _segment(_small(), points, multimask_output=multimask_output)
    assert logits.shape == (2, masks, 16, 16, 16)
    assert iou.shape == (2, masks)


def test_one_image_serves_many_prompts():
    model = _small().eval()
    embedding = model.image_encoder(torch.randn(1, 1, 64, 64, 64))
    sparse, dense = model.prompt_encoder(
        points=(torch.rand(3, 1, 3) * 64, torch.ones(3, 1)), boxes=None, masks=None
    )
    pe = model.prompt_encoder.get_dense_pe()
    together, _ = model.mask_decoder(embedding, pe, sparse, dense, False)
    alone, _ = model.mask_decoder(embedding, pe, sparse[1:2], dense[1:2], False)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_volume_of_another_size_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 1, 32, 32, 32\), expected \(B, 1, 64, 64, 64\)"):
        _small().image_encoder(torch.zeros(1, 1, 32, 32, 32))


def test_boxes_are_refused():
    with pytest.raises(ValueError, match="coarse mask"):
        _small().prompt_encoder(points=None, boxes=torch.zeros(1, 6), masks=None)


def test_hidden_states_are_the_stem_and_every_block():
    encoder = _small().image_encoder
    x = torch.randn(1, 1, 64, 64, 64)
    embedding, hidden = encoder.forward_features(x)
    assert [tuple(h.shape) for h in hidden] == [(1, 4, 4, 4, 48)] * 3
    assert torch.equal(encoder.blocks[1](hidden[1]), hidden[2])
    assert torch.equal(encoder(x), embedding)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_encoder_stopped_early_returns_the_first_hidden_states_alone(depth):
    encoder = _small().image_encoder
    x = torch.randn(1, 1, 64, 64, 64)
    whole = encoder.forward_features(x).hidden_states
    embedding, hidden = encoder.forward_features(x, depth=depth)
    assert embedding is None
    assert len(hidden) == depth + 1
    assert all(torch.equal(h, w) for h, w in zip(hidden, whole, strict=False))


def test_loss_reaches_every_parameter_of_stamped_networks():
    """Clicks always stamp a mask here, so two prompts in turn reach all of it."""
    model = _small()
    clicks = (torch.rand(1, 3, 3) * 64, torch.tensor([[1, 0, -1]]))
    for points in (clicks, None):
        logits, iou = _segment(model, points, multimask_output=points is None)
        (logits.square().mean() + iou.square().mean()).backward()
    # A table row of an offset that the grid lacks would stay without gradient: there is none.
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_student_mlp_residual_starts_from_the_normalised_value_and_the_teachers_does_not():
    x = torch.randn(1, 8, 8, 8, 768)
    student, teacher = (network(name).image_encoder.blocks for name in ("student", "teacher"))
    with torch.no_grad():
        y = student[0].norm2(x)
        assert torch.equal(student[0](x), y + student[0].mlp(y))
        attended = x + teacher[2].attn(teacher[2].norm1(x))
        assert torch.equal(teacher[2](x), attended + teacher[2].mlp(teacher[2].norm2(attended)))


def test_student_blocks_0_and_1_have_no_attention():
    blocks = network("student").image_encoder.blocks
    assert [block.attn is None for block in blocks] == [True, True, False, False, False, False]


@pytest.mark.parametrize(("axes", "zyx"), [((1, 0, 2), (5, 2, 7)), ((0, 1, 2), (2, 5, 7))])
def test_released_dense_pe_has_its_first_two_axes_swapped(axes, zyx):
    """Token (2, 5, 7) has the code of point (5, 2, 7); the order (0, 1, 2) agrees with points."""
    encoder = build_sam3D(
        dataclasses.replace(TINY, prompt=dataclasses.replace(TINY.prompt, dense_pe_axes=axes))
    ).prompt_encoder
    point = encoder.pe_layer((torch.tensor(zyx) + 0.5) / 8)
    torch.testing.assert_close(encoder.get_dense_pe()[0, :, 2, 5, 7], point)


def test_dense_pe_is_cached_until_the_matrix_changes():
    encoder, other = _small().prompt_encoder, build_sam3D(STAMPED).prompt_encoder
    before = encoder.get_dense_pe()
    assert encoder.get_dense_pe() is before
    encoder.load_state_dict(other.state_dict())
    expected = other.pe_layer.of_grid(4, (0, 1, 2))
    assert torch.equal(encoder.get_dense_pe(), expected)


def test_dense_pe_first_asked_for_in_inference_mode_serves_training():
    model = _small()
    with torch.inference_mode():
        model.prompt_encoder.get_dense_pe()
    logits, _ = _segment(model, (torch.rand(1, 1, 3) * 64, torch.ones(1, 1)))
    logits.mean().backward()


def test_position_code_ignores_autocast():
    layer = _small().prompt_encoder.pe_layer
    coords = torch.rand(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        code = layer(coords)
    assert torch.equal(code, layer(coords))


def test_click_stamp_peaks_at_the_click_and_falls_as_a_gaussian():
    model = _small(click_stamp_sigma=1.5)
    at_cell = torch.tensor([[[2.0, 5.0, 9.0]]])  # voxel of a cell's centre: (cell + 0.5) * 4 - 0.5
    mask = _stamped(model, ((at_cell + 0.5) * 4 - 0.5, torch.ones(1, 1)))[0, 0]
    assert mask[2, 5, 9].item() == pytest.approx(8.0)
    assert mask[2, 5, 11].item() == pytest.approx(8.0 * math.exp(-(2**2) / (2 * 1.5**2)))
    assert mask[3, 6, 9].item() == pytest.approx(8.0 * math.exp(-2 / (2 * 1.5**2)))


def test_click_stamps_blend_in_order_and_leave_the_mask_elsewhere():
    masks = torch.full((2, 1, 16, 16, 16), 3.0)
    coords = torch.tensor([[[9.5] * 3, [9.5] * 3], [[9.5] * 3, [41.5] * 3]])
    stamped = _stamped(_small(), (coords, torch.tensor([[1, 0], [0, -1]])), masks)
    assert stamped[:, 0, 2, 2, 2].tolist() == [-8.0, -8.0]  # the last click at a place wins
    assert stamped[1, 0, 10, 10, 10] == 3.0  # padding stamps nothing
    assert stamped[0, 0, 15, 15, 15] == pytest.approx(3.0)


def test_no_stamp_without_points_or_at_sigma_zero():
    no_mask = _small().prompt_encoder(points=None, boxes=None, masks=None)[1]
    model = _small(click_stamp_sigma=0.0)
    unstamped = model.prompt_encoder(points=(torch.zeros(1, 1, 3), torch.ones(1, 1)))[1]
    for dense in (no_mask, unstamped):
        assert torch.equal(dense, dense[:, :, :1, :1, :1].expand_as(dense))
