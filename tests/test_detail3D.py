"""Detail: features of the low-resolution cells, folded into tokens and carried to the masks."""

import itertools

import pytest
import torch
from small_networks import small_config

from segment_anything import (
    ConfigError,
    DecoderConfig,
    EncoderConfig,
    SamConfig,
    build_sam3D,
    network_configs,
)
from segment_anything.modeling.common import fold_cells, unfold_cells

CHANS, WIDTH, CELLS = 4, 48, 8  # of detail, of the neck; 2^3 tokens of 4^3 cells
CONFIG = SamConfig(
    network="detailed",
    encoder=EncoderConfig(
        img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=2, out_chans=WIDTH,
        window_size=0, neck_kernel=1, stem="conv", detail_chans=CHANS,
    ),
    decoder=DecoderConfig(mlp_dim=32),
)  # fmt: skip
CLICK = (torch.tensor([[[9.0, 20.0, 14.0]]]), torch.ones(1, 1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_sam3D(CONFIG)


def _volume(batch=1):
    return torch.randn(batch, 1, 32, 32, 32)


def _decode(model, embedding):
    sparse, dense = model.prompt_encoder(points=CLICK)
    pe = model.prompt_encoder.get_dense_pe()
    return model.mask_decoder(embedding, pe, sparse, dense, multimask_output=True)


def _near(cell, reach):
    """Return which of the cells lie at most ``reach`` from ``cell`` along every axis."""
    near = torch.zeros(CELLS, CELLS, CELLS, dtype=torch.bool)
    near[tuple(slice(max(0, c - reach), c + reach + 1) for c in cell)] = True
    return near


def _counting(*shape):
    return torch.arange(torch.Size(shape).numel()).view(shape)


def test_cells_of_a_token_are_the_cube_it_stands_for():
    cells = _counting(2, 3, 8, 8, 8)
    tokens = fold_cells(cells)
    assert tokens.shape == (2, 3 * 64, 2, 2, 2)
    for z, y, x in itertools.product(range(2), repeat=3):
        cube = cells[:, :, 4 * z : 4 * z + 4, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert torch.equal(tokens[..., z, y, x], cube.flatten(1))


def test_cells_and_tokens_survive_the_round_trip():
    cells, tokens = _counting(2, 3, 12, 12, 12), _counting(2, 3 * 64, 3, 3, 3)
    assert torch.equal(unfold_cells(fold_cells(cells)), cells)
    assert torch.equal(fold_cells(unfold_cells(tokens)), tokens)


def test_image_embedding_has_the_channels_of_the_config(model):
    assert CONFIG.encoder.embedding_chans == WIDTH + 64 * CHANS
    assert model.image_encoder(_volume(2)).shape == (2, WIDTH + 64 * CHANS, 2, 2, 2)


@pytest.mark.parametrize("masks", [None, torch.randn(2, 1, CELLS, CELLS, CELLS)], ids=["", "mask"])
@pytest.mark.parametrize("points", [None, (torch.ones(2, 1, 3), torch.ones(2, 1))], ids=["", "pt"])
def test_every_dense_embedding_fits_the_image_embedding(model, points, masks):
    batch = 1 if points is None and masks is None else 2
    _, dense = model.prompt_encoder(points=points, masks=masks)
    assert dense.shape == (batch, CONFIG.encoder.embedding_chans, 2, 2, 2)


@torch.no_grad()
def test_detail_of_the_image_stays_near_its_voxels(model):
    """Four convolutions, of which three reach one cell further: at most three cells away."""
    x = _volume()
    before = model.image_encoder(x)
    x[0, 0, 4 * 7 + 1, 4 * 1 + 2, 4 * 4 + 3] += 5  # a voxel of cell (7, 1, 4)
    detail = unfold_cells((model.image_encoder(x) - before)[:, WIDTH:])
    assert torch.equal(detail[0].ne(0).any(0), _near((7, 1, 4), 3))


@torch.no_grad()
def test_detail_of_a_mask_prompt_stays_near_its_cell(model):
    masks = torch.randn(1, 1, CELLS, CELLS, CELLS)
    _, before = model.prompt_encoder(points=None, masks=masks)
    masks[0, 0, 6, 1, 3] += 5
    _, after = model.prompt_encoder(points=None, masks=masks)
    detail = unfold_cells((after - before)[:, WIDTH:])
    assert torch.equal(detail[0].ne(0).any(0), _near((6, 1, 3), 1))


@torch.no_grad()
def test_detail_of_a_cell_changes_the_masks_near_it_alone(model):
    embedding = model.image_encoder(_volume())
    cells = unfold_cells(embedding[:, WIDTH:]).clone()
    cells[0, 2, 1, 3, 6] += 5
    changed = torch.cat([embedding[:, :WIDTH], fold_cells(cells)], dim=1)

    (before, iou_before), (after, iou_after) = _decode(model, embedding), _decode(model, changed)

    assert torch.equal((after - before)[0].ne(0).any(0), _near((1, 3, 6), 1))
    assert torch.equal(iou_before, iou_after)  # detail skips the transformer


def test_gradients_of_the_masks_reach_the_stem_through_detail_alone(model):
    embedding = model.image_encoder(_volume())
    tokens, detail = embedding[:, :WIDTH].detach(), embedding[:, WIDTH:]
    logits, _ = _decode(model, torch.cat([tokens, detail], dim=1))
    logits.square().mean().backward()
    encoder = model.image_encoder
    reached = [*encoder.patch_embed.proj[:6].parameters(), *encoder.detail.parameters()]
    assert all(p.grad is not None and p.grad.any() for p in reached)
    assert not any(p.grad.any() for p in encoder.blocks.parameters())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("vit_b_ori", set()),
        ("fastsam3d", set()),
        ("tiny", {"image_encoder", "mask_decoder"}),
    ],
)
def test_released_networks_have_no_weights_for_detail(name, parts):
    with torch.device("meta"):
        keys = build_sam3D(network_configs[name]).state_dict()
    assert {key.split(".")[0] for key in keys if "detail" in key} == parts


def test_detail_without_the_conv_stem_is_refused():
    with pytest.raises(ConfigError, match="conv stem"):
        small_config(patch_size=16, detail_chans=CHANS)
