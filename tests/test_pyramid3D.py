"""Pyramid networks: prompts meet the image at every scale, and masks have half the cells' size."""

import dataclasses

import pytest
import torch

from segment_anything import (
    ConfigError,
    DecoderConfig,
    EncoderConfig,
    Interaction,
    PromptConfig,
    SamConfig,
    build_sam3D,
    network_configs,
)
from segment_anything.modeling.pyramid3D import fold_image, image_of, unfold_image

CONFIG = SamConfig(
    network="pyramid",
    encoder=EncoderConfig(
        img_size=64, patch_size=16, embed_dim=24, depth=1, num_heads=2, out_chans=48,
        window_size=0, neck_kernel=1, stem="conv", detail_chans=4, detail="pyramid",
    ),
    prompt=PromptConfig(click_memory="all", click_diffusion=True, click_likeness=True),
    decoder=DecoderConfig(mlp_dim=32, form="pyramid"),
)  # fmt: skip
CLICK = torch.tensor([[9.0, 20.0, 14.0]]), torch.ones(1, dtype=torch.long)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_sam3D(CONFIG).eval()


def _volume(batch=1, seed=0):
    return torch.randn(batch, 1, 64, 64, 64, generator=torch.Generator().manual_seed(seed))


def _logits(model, volume, *, clicks=(CLICK,), masks=None):
    with torch.no_grad():
        interaction = Interaction(model, model.image_encoder(volume))
        if masks is not None:
            interaction.low_res_masks = masks
        for coords, labels in clicks:
            logits, _ = interaction.click(coords, labels)
    return logits


def test_masks_have_eight_cells_to_a_token(model):
    assert model.config.low_res_size == 32
    logits = _logits(model, _volume())
    assert logits.shape == (1, 1, 32, 32, 32)
    assert logits.dtype == torch.float32


def test_the_embedding_carries_the_image_at_half_its_size(model):
    volume = _volume()
    embedding = model.image_encoder(volume)
    assert embedding.shape == (1, CONFIG.encoder.embedding_chans, 4, 4, 4)
    torch.testing.assert_close(image_of(embedding), torch.nn.functional.avg_pool3d(volume, 2))


def test_learnt_channels_are_those_before_the_image():
    encoder = CONFIG.encoder
    assert encoder.learnt_chans == 48 + 64 * 4
    assert encoder.embedding_chans == encoder.learnt_chans + 64 * 8
    assert network_configs["vit_b_ori"].encoder.learnt_chans == 384


def test_folding_the_image_is_undone_by_unfolding():
    image = torch.arange(2 * 3 * 4**3).view(2, 3, 4, 4, 4)
    cells = fold_image(image)
    assert cells.shape == (2, 24, 2, 2, 2)
    assert cells[0, :8, 0, 0, 0].tolist() == image[0, 0, :2, :2, :2].flatten().tolist()
    assert torch.equal(unfold_image(cells), image)


@pytest.mark.parametrize("what", ["image", "label", "place", "mask", "earlier click"])
def test_the_mask_depends_on(model, what):
    coords, labels = CLICK
    usual = _logits(model, _volume())
    changed = {
        "image": lambda: _logits(model, _volume(seed=1)),
        "label": lambda: _logits(model, _volume(), clicks=[(coords, 1 - labels)]),
        "place": lambda: _logits(model, _volume(), clicks=[(coords + 30, labels)]),
        "mask": lambda: _logits(model, _volume(), masks=torch.full((1, 1, 32, 32, 32), 3.0)),
        "earlier click": lambda: _logits(model, _volume(), clicks=[(coords + 30, labels), CLICK]),
    }
    assert (changed[what]() - usual).abs().max() > 1e-3


def test_samples_of_a_batch_do_not_mix(model):
    volumes, coords = _volume(2), torch.tensor([[9.0, 20.0, 14.0], [40.0, 33.0, 50.0]])
    both = _logits(model, volumes, clicks=[(coords, torch.tensor([1, 0]))])
    alone = _logits(model, volumes[1:], clicks=[(coords[1:], torch.tensor([0]))])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_every_weight_gets_a_gradient(model):
    model.train()
    logits, _ = Interaction(model, model.image_encoder(_volume())).click(*CLICK)
    logits.square().mean().backward()
    idle = {name for name, weight in model.named_parameters() if weight.grad is None}
    # No prompt without a click here; nothing is lost on the predicted IoU.
    assert all("iou" in name or "not_a_point" in name for name in idle), idle


def test_masks_are_refined_outside_of_training_only(model):
    plain = _logits(model, _volume())
    refined = dataclasses.replace(
        CONFIG, decoder=dataclasses.replace(CONFIG.decoder, refine_strength=0.05)
    )
    other = build_sam3D(refined)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(_logits(other.train(), _volume()), plain)
    assert (_logits(other.eval(), _volume()) - plain).abs().max() > 1e-2


def test_in_training_the_next_click_gets_the_masks_that_it_gets_in_use():
    torch.manual_seed(0)
    config = dataclasses.replace(
        CONFIG, decoder=dataclasses.replace(CONFIG.decoder, refine_strength=0.05)
    )
    model = build_sam3D(config)
    prompts, logits = [], []
    for is_training in (True, False):
        model.train(is_training)
        interaction = Interaction(model, model.image_encoder(_volume()).detach())
        logits.append(interaction.click(*CLICK)[0])
        prompts.append(interaction.low_res_masks)
    assert logits[0].requires_grad
    assert not prompts[0].requires_grad
    torch.testing.assert_close(prompts[0], prompts[1])
    assert (logits[0] - prompts[0]).abs().max() > 1e-2  # the loss is of the network's own masks


def test_without_maps_the_network_has_fewer_prompt_channels():
    plain = dataclasses.replace(CONFIG, prompt=PromptConfig(click_memory="all"))
    shapes = [
        build_sam3D(config).mask_decoder.prompt_cells.weight.shape[1] for config in (plain, CONFIG)
    ]
    assert shapes == [2 + 8, 2 + 5 + 2 + 8]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("decoder", {"form": "sam"}, "need each other"),
        ("encoder", {"detail": "stem"}, "need each other"),
        ("encoder", {"detail_chans": 0}, "needs detail_chans"),
        ("decoder", {"refine_strength": -1.0}, "refine_strength is -1"),
        ("prompt", {"click_diffusion": 1}, "not true or false"),
        ("prompt", {"click_stamp_sigma": 1.0}, "maps of its own"),
        ("encoder", {"img_size": 16}, "at least 2 tokens"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(part, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **changes)})


@pytest.mark.parametrize(
    ("points", "masks", "images", "message"),
    [
        ((2, 1), 2, 1, "1 image embeddings for 2"),
        ((1, 0), 1, 1, "no points"),
        ((1, 1), 2, 1, "2 masks for 1"),
        ((1, 1), None, 1, "masks"),
    ],
)
def test_inputs_that_do_not_fit_each_other_are_refused(model, points, masks, images, message):
    batch, clicks = points
    prompts = torch.zeros(batch, clicks, 3), torch.ones(batch, clicks)
    size = 32 if masks else 16
    embedding = torch.zeros(images, CONFIG.encoder.embedding_chans, 4, 4, 4)
    with pytest.raises(ValueError, match=message):
        model.prompt_encoder(
            prompts, masks=torch.zeros(masks or 1, 1, size, size, size), image_embeddings=embedding
        )


def test_maps_that_a_released_decoder_cannot_take_are_refused():
    released = network_configs["vit_b_ori"]
    with pytest.raises(ConfigError, match=r"need decoder\.form pyramid"):
        dataclasses.replace(released, prompt=PromptConfig(click_diffusion=True))
    config = dataclasses.replace(released, decoder=DecoderConfig(refine_strength=0.1))
    with pytest.raises(ConfigError, match="refine_strength needs"):
        build_sam3D(config)
    with pytest.raises(ConfigError, match="refine_strength needs"):
        SamConfig.from_dict(config.to_dict())
