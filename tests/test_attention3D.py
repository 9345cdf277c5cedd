"""The fast attention against its literal form, and the quirks that the weights depend on."""

import itertools

import pytest
import torch
from small_networks import small_config, small_sam

from benchmarks.literal_attention import literal_attention
from segment_anything import ConfigError
from segment_anything.modeling.attention3D import Attention3D, attend, dense_bias, extend

PADDED = {"grid_size": 3, "window_size": 5}
GLOBAL = {"grid_size": 4}


def _attention(dim=24, num_heads=2, strength=0.5, **grid):
    torch.manual_seed(0)
    attn = Attention3D(dim, num_heads=num_heads, **grid).double()
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=strength)
    return attn, torch.randn(2, *[grid["grid_size"]] * 3, dim, dtype=torch.float64)


def _textbook_attention(attn, x):
    """Write out every logit of the textbook's form, one query on one key at a time."""
    grid, places = x.shape[1], list(itertools.product(range(x.shape[1]), repeat=3))
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).unbind(4)  # (B, d, h, w, n, c)
    out = torch.empty_like(v)
    for d, h, w in places:
        query, logits = q[:, d, h, w], []
        for x_, y, j in places:
            row_d = attn.rel_pos_d[d - x_ + grid - 1]
            row_h = attn.rel_pos_h[h - y + grid - 1]
            row_w = attn.rel_pos_w[w - j + grid - 1]
            on_key = attn.scale * query * k[:, x_, y, j] + query * (row_d + row_h + row_w)
            logits.append(on_key.sum(-1))
        weights = torch.stack(logits, dim=1).softmax(1)  # (B, N, n)
        out[:, d, h, w] = torch.einsum("bkn,bknc->bnc", weights, v.flatten(1, 3))
    return attn.proj(out.flatten(4))


def _relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("grid", [PADDED, GLOBAL, {"grid_size": 3, "window_size": 3}])
def test_fast_form_equals_the_literal_form(grid):
    attn, x = _attention(**grid)
    assert _relative_error(attn(x), literal_attention(attn, x)) < 1e-12


@torch.no_grad()
def test_fast_form_equals_the_literal_form_on_the_teachers_grid_in_float32():
    attn, x = _attention(dim=16, num_heads=1, strength=0.3, grid_size=8, window_size=14)
    attn, x = attn.float(), x[:1].float()
    assert _relative_error(attn(x), literal_attention(attn, x)) < 1e-5


@pytest.mark.parametrize("grid", [PADDED, GLOBAL])
def test_gradients_equal_those_of_the_literal_form(grid):
    attn, x = _attention(**grid)
    inputs = [x.requires_grad_(), *attn.parameters()]
    direction = torch.randn_like(x)
    fast = torch.autograd.grad((attn(x) * direction).sum(), inputs)
    literal = torch.autograd.grad((literal_attention(attn, x) * direction).sum(), inputs)
    for found, expected in zip(fast, literal, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_huge_relative_logits_stay_finite_and_right():
    attn, x = _attention(strength=8.0, **PADDED)
    out = attn(x)
    assert out.isfinite().all()
    assert _relative_error(out, literal_attention(attn, x)) < 1e-9


@pytest.mark.parametrize("grid", [PADDED, GLOBAL])
def test_logits_inside_the_dot_product_equal_the_dense_bias(grid):
    attn, _ = _attention(**grid)
    keys = attn.columns.shape[0]
    query = torch.randn(2, 2, grid["grid_size"] ** 3, 12, dtype=torch.float64)
    key = torch.randn(2, 2, keys, 12, dtype=torch.float64)
    relative = attn._relative_logits(query)

    wide_query, wide_key = extend(query, key, relative, attn.columns)

    expected = query @ key.mT + dense_bias(relative)
    torch.testing.assert_close(wide_query @ wide_key.mT, expected)
    assert wide_query.shape[-1] % 8 == 0


def test_padded_tokens_take_part():
    padded, x = _attention(**PADDED)
    unpadded, _ = _attention(grid_size=3)
    weights = padded.state_dict()
    for axis in "dhw":  # offsets of -2..2 out of -4..4
        weights[f"rel_pos_{axis}"] = weights[f"rel_pos_{axis}"][2:-2]
    unpadded.load_state_dict(weights)
    assert _relative_error(padded(x), unpadded(x)) > 0.1


def test_every_relative_term_indexes_the_last_key_axis():
    """The released slip: with rel_pos_d alone, keys differ along the last axis, not the first."""
    attn, _ = _attention(**GLOBAL)
    with torch.no_grad():
        attn.rel_pos_h.zero_()
        attn.rel_pos_w.zero_()
    query = torch.randn(1, 2, 64, 12, dtype=torch.float64)
    bias = dense_bias(attn._relative_logits(query)).unflatten(-1, (4, 4, 4))
    assert torch.equal(bias, bias[..., :1, :1, :].expand_as(bias))
    assert (bias.std(-1) > 0).all()


def test_relative_logits_are_float32_under_autocast():
    attn, _ = _attention(**PADDED)
    attn, query = attn.float(), torch.randn(1, 2, 27, 12)
    expected = attn._relative_logits(query.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = attn._relative_logits(query.bfloat16())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_attend_on_the_cpu_is_softmax_of_the_biased_logits():
    attn, _ = _attention(**GLOBAL)
    query, key, value = torch.randn(3, 1, 2, 64, 12, dtype=torch.float64)
    relative = attn._relative_logits(query)
    expected = (query @ key.mT + dense_bias(relative)).softmax(-1) @ value
    torch.testing.assert_close(attend(query, key, value, relative, attn.columns), expected)


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [1, 2, 3])
def test_textbook_form_equals_every_logit_written_out(grid_size):
    attn, x = _attention(grid_size=grid_size, textbook=True)
    assert _relative_error(attn(x), _textbook_attention(attn, x)) < 1e-12


def test_each_textbook_term_indexes_its_own_key_axis():
    attn, _ = _attention(**GLOBAL, textbook=True)
    query = torch.randn(1, 2, 64, 12, dtype=torch.float64)
    terms = attn._textbook_logits(query).unflatten(-1, (3, 4))
    for axis in range(3):
        columns = attn.columns.double().unflatten(-1, (3, 4))[:, axis]
        bias = (terms[..., axis, :] @ columns.T).unflatten(-1, (4, 4, 4))
        for other in range(3):
            varies = bias.std(2 + 1 + other) > 1e-9
            assert varies.all() if other == axis else not varies.any()


def test_textbook_logits_inside_the_dot_product_attend_as_the_dense_bias():
    attn, _ = _attention(grid_size=3, textbook=True)
    query, key, value = torch.randn(3, 2, 2, 27, 12, dtype=torch.float64)
    relative = attn._textbook_logits(query)

    wide_query, wide_key = extend(query, key, relative, attn.columns)

    dense = attend(query, key, value, relative, attn.columns)
    torch.testing.assert_close((wide_query @ wide_key.mT).softmax(-1) @ value, dense)
    assert wide_query.shape[-1] % 8 == 0


def test_textbook_logits_are_float32_under_autocast():
    attn, _ = _attention(**GLOBAL, textbook=True)
    attn, query = attn.float(), torch.randn(1, 2, 64, 12)
    expected = attn._textbook_logits(query.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        found = attn._textbook_logits(query.bfloat16())
    assert torch.equal(found, expected)


def test_textbook_and_released_terms_differ_with_the_same_weights():
    textbook, x = _attention(**GLOBAL, textbook=True)
    released, _ = _attention(**GLOBAL)
    released.load_state_dict(textbook.state_dict())
    assert _relative_error(textbook(x), released(x)) > 0.1


@torch.no_grad()
def test_config_chooses_the_terms_of_every_block():
    textbook = small_sam(relative_terms="textbook").image_encoder
    x = torch.randn(1, 4, 4, 4, 24)
    for block in textbook.blocks:
        torch.nn.init.normal_(block.attn.rel_pos_d)
        assert _relative_error(block.attn(x), _textbook_attention(block.attn, x)) < 1e-5


def test_textbook_terms_with_windows_are_refused():
    with pytest.raises(ConfigError, match="windows"):
        small_config(relative_terms="textbook", window_size=5)


def test_unknown_relative_terms_are_refused():
    with pytest.raises(ConfigError, match="released, textbook"):
        small_config(relative_terms="decomposed")
