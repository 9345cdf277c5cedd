"""Networks that take boxes: two corner points, a map of the cells, and negative seeds around."""

import dataclasses

import pytest
import torch
from test_pyramid3D import CONFIG as PLAIN

from segment_anything import (
    NO_CLICK,
    ConfigError,
    CropPredictor,
    Interaction,
    Prompted,
    SamConfig,
    box_points,
    build_from_checkpoint,
    build_sam3D,
    checkpoint_payload,
    network_configs,
)
from segment_anything.modeling.boxes3D import box_of, core, share_inside, surroundings
from segment_anything.modeling.common import unfold_cells
from segment_anything.modeling.diffusion3D import diffused_clicks, guided_mask

CONFIG = dataclasses.replace(PLAIN, prompt=dataclasses.replace(PLAIN.prompt, boxes=True))
BOX_MAP = 2 + 5 + 2  # behind the maps of clicks
CELLS, SIZE = 32, 128  # of the images below: cells along an axis, and voxels
BOX = ((16.0, 24.0, 16.0), (112.0, 104.0, 112.0))  # voxels: cells 4 ... 27, 6 ... 25, 4 ... 27
YES = torch.tensor([True])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_sam3D(CONFIG).eval()


@pytest.fixture
def bent():
    """A bright horseshoe (1, 1, s, s, s) on dark ground, open at one side, and its cells."""
    inside = torch.zeros(CELLS, CELLS, CELLS, dtype=torch.bool)
    inside[4:28, 6:26, 4:28] = True
    inside[9:23, :, 9:] = False
    return torch.where(inside, 2.0, -0.5)[None, None], inside


def _image(batch=1):
    return torch.randn(batch, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))


def _maps(model, coords, labels):
    """Return the prompt maps (P, 16, 16, 16) of the points of one sample."""
    with torch.no_grad():
        embedding = model.image_encoder(_image())
        _, dense = model.prompt_encoder((coords, labels), image_embeddings=embedding)
    return unfold_cells(dense)[0]


def test_without_a_box_all_maps_are_those_of_a_network_without_boxes(model):
    plain = build_sam3D(PLAIN).eval()
    shared = {k: v for k, v in model.state_dict().items() if "prompt_cells" not in k}
    plain.load_state_dict(shared, strict=False)
    coords, labels = torch.tensor([[[9.0, 20, 14], [40, 8, 31]]]), torch.tensor([[1, 0]])
    none, padding = box_points(torch.zeros(1, 2, 3), ~YES)
    found = _maps(model, torch.cat([none, coords], 1), torch.cat([padding, labels], 1))
    assert len(found) == 2 + 5 + 2 + 1 + 8
    assert not found[BOX_MAP].any()
    expected = _maps(plain, coords, labels)
    assert torch.equal(found[: 2 + 5], expected[: 2 + 5])
    # A product of matrices, of likeness, is rounded by the number of points.
    others = torch.cat([found[:BOX_MAP], found[BOX_MAP + 1 :]])
    torch.testing.assert_close(others, expected, rtol=0, atol=1e-6)


def test_a_boxes_map_is_the_share_of_each_cell_in_the_box(model):
    corners = box_points(torch.tensor([[[8.0, 16, 4], [40, 50, 64]]]), YES)
    found = _maps(model, *corners)[BOX_MAP]
    expected = torch.zeros(16, 16, 16)
    expected[2:10, 4:12, 1:] = 1
    expected[2:10, 12, 1:] = 0.5  # voxels 48 and 49 of 48 ... 51
    torch.testing.assert_close(found, expected)


def test_beside_a_positive_click_a_box_changes_what_spreads_from_outside_and_its_own_map(model):
    corners = box_points(torch.tensor([[[8.0, 16, 4], [40, 50, 64]]]), YES)
    click = torch.tensor([[[20.0, 30, 30]]]), torch.tensor([[1]])
    coords, labels = (torch.cat(pair, 1) for pair in zip(corners, click, strict=True))
    padding = torch.full((1, 2), NO_CLICK)
    with_box = _maps(model, coords, labels)
    without = _maps(model, coords, torch.cat([padding, click[1]], 1))
    changed = [n for n in range(len(with_box)) if (with_box[n] - without[n]).abs().max() > 1e-6]
    # Positive clicks now end at the cells outside, which are negative, as the walker does.
    assert changed == [2, 3, 4, 5, 6, BOX_MAP]


@pytest.mark.parametrize("size", [8, 16, 32])
def test_a_box_thinner_than_a_cell_holds_a_cell_on_every_grid(size):
    coords, labels = box_points(torch.tensor([[[20.0, 20, 20], [21, 21, 60]]]), YES)
    box = box_of(coords, labels, SIZE)
    share, middle = share_inside(box, size), core(box, size)
    assert (share > 0).any()
    assert middle.any()
    assert (share[middle] > 0).all()


def test_the_core_is_an_ellipsoid_of_a_part_of_the_boxs_diameter():
    coords, labels = box_points(torch.tensor([[[0.0, 32, 64], [128, 96, 96]]]), YES)
    found = core(box_of(coords, labels, SIZE), SIZE).view(SIZE, SIZE, SIZE)
    extents = [(place.min().item(), place.max().item() + 1) for place in found.nonzero().T]
    for (first, last), middle, edge in zip(extents, (64, 64, 80), (128, 64, 32), strict=True):
        assert first + last == pytest.approx(2 * middle, abs=1)
        assert last - first == pytest.approx(0.6 * edge, abs=1.1)


def test_surroundings_are_about_the_box_and_not_in_it():
    coords, labels = box_points(torch.tensor([[[48.0, 48, 48], [80, 80, 80]]]), YES)
    found = surroundings(box_of(coords, labels, SIZE), SIZE).view(SIZE, SIZE, SIZE)
    expected = torch.zeros_like(found)
    expected[40:88, 40:88, 40:88] = True
    expected[48:80, 48:80, 48:80] = False
    assert torch.equal(found, expected)


@pytest.mark.parametrize("corner", [0, 1])
def test_one_corner_alone_is_no_box(corner):
    coords, labels = box_points(torch.tensor([BOX]), YES)
    box = box_of(coords[:, [corner]], labels[:, [corner]], SIZE)
    for cells in (share_inside(box, CELLS), core(box, CELLS)):
        assert not cells.any()
    assert not box.given.any()


def test_in_a_bent_target_what_the_box_reaches_is_the_ground(bent):
    image, inside = bent
    negative = diffused_clicks(image, *box_points(torch.tensor([BOX]), YES), SIZE)[0, 1]
    within = torch.zeros_like(inside)
    within[4:28, 6:26, 4:28] = True
    assert (negative[~within] == 1).all()
    assert negative[within & ~inside].mean() > 1.5 * negative[inside].mean()


def test_the_middle_of_a_box_counts_as_positive_until_there_is_a_positive_click(bent):
    coords, labels = box_points(torch.tensor([BOX]), YES)
    found = core(box_of(coords, labels, SIZE), CELLS).view(CELLS, CELLS, CELLS)
    alone = diffused_clicks(bent[0], coords, labels, SIZE)[0]
    click = torch.tensor([[[20.5, 60.5, 60.5]]])  # in the bright target, outside of the core
    coords = torch.cat([coords, click], 1)
    clicked, denied = (
        diffused_clicks(bent[0], coords, torch.cat([labels, torch.tensor([[kind]])], 1), SIZE)[0]
        for kind in (1, 0)
    )
    for positive in (0, 2, 4):
        assert (alone[positive][found] == 1).all()
        assert (denied[positive][found] == 1).all()
        assert (clicked[positive][found] < 1).any()


def test_a_negative_click_in_the_middle_of_a_box_is_not_positive(bent):
    coords, labels = box_points(torch.tensor([BOX]), YES)
    middle = torch.tensor([[[64.0, 64, 64]]])
    coords, labels = torch.cat([coords, middle], 1), torch.cat([labels, torch.tensor([[0]])], 1)
    maps = diffused_clicks(bent[0], coords, labels, SIZE)[0, :, 16, 16, 16]
    assert maps.tolist() == [0, 1, 0, 1, 0]


def test_a_boxs_middle_and_surroundings_are_likened_to_until_there_is_a_positive_click(model):
    grid = torch.zeros(1, 2, 16, 16, 16)
    grid[:, 1] = 1  # the ground; the target has the other direction
    grid[:, :, 4:12, 4:12, 4:12] = torch.tensor([1.0, 0])[None, :, None, None, None]
    coords, labels = box_points(torch.tensor([[[16.0, 16, 16], [48, 48, 48]]]), YES)
    alone = model.prompt_encoder.likeness_maps(grid, coords, labels)[0]
    inside = grid[0, 0] == 1
    assert torch.equal(alone[0] > 0.5, inside)
    assert torch.equal(alone[1] > 0.5, ~inside)

    click = torch.tensor([[[2.0, 2, 2]]])
    coords, labels = torch.cat([coords, click], 1), torch.cat([labels, torch.tensor([[1]])], 1)
    clicked = model.prompt_encoder.likeness_maps(grid, coords, labels)[0]
    assert torch.equal(clicked[0] > 0.5, ~inside)
    assert (clicked[1] == -1).all()


def test_no_cell_of_a_refined_mask_is_fixed_by_a_box(bent):
    image, _ = bent
    logits = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    coords, labels = box_points(torch.tensor([BOX]), YES)
    found = guided_mask(logits, image, coords, labels, SIZE, 0.3)
    expected = guided_mask(logits, image, coords, torch.full((1, 2), NO_CLICK), SIZE, 0.3)
    assert torch.equal(found, expected)


def test_a_positive_click_outside_of_the_box_stays_positive(bent):
    coords, labels = box_points(torch.tensor([BOX]), YES)
    click = torch.tensor([[[5.5, 5.5, 5.5]]])
    labels = torch.cat([labels, torch.tensor([[1]])], 1)
    maps = diffused_clicks(bent[0], torch.cat([coords, click], 1), labels, SIZE)[0]
    assert maps[[0, 2, 4], 1, 1, 1].tolist() == [1, 1, 1]
    assert maps[[1, 3], 1, 1, 1].tolist() == [0, 0]


def test_samples_with_and_without_a_box_do_not_mix(model):
    boxes = torch.tensor([[[8.0, 16, 4], [40, 50, 60]], [[0, 0, 0], [0, 0, 0]]])
    given = torch.tensor([True, False])
    coords, labels = torch.tensor([[0.0, 0, 0], [40, 33, 50]]), torch.tensor([NO_CLICK, 1])

    def decoded(samples):
        with torch.no_grad():
            interaction = Interaction(model, model.image_encoder(_image(2)[samples]))
            interaction.give_boxes(boxes[samples], given[samples])
            return interaction.click(coords[samples], labels[samples])[0]

    both = decoded([0, 1])
    for n in (0, 1):
        torch.testing.assert_close(both[n : n + 1], decoded([n]), rtol=1e-4, atol=1e-4)


def test_a_box_counts_in_its_own_turn_and_in_later_ones(model):
    box = torch.tensor([[[8.0, 16, 4], [40, 50, 60]]])
    clicks = [(torch.zeros(1, 3), NO_CLICK), (torch.tensor([[20.0, 30, 30]]), 1)]

    def turns(*, box):
        with torch.no_grad():
            interaction = Interaction(model, model.image_encoder(_image()))
            if box is not None:
                interaction.give_boxes(box, YES)
            found = []
            for coords, label in clicks:
                interaction.low_res_masks = torch.zeros(1, 1, 32, 32, 32)
                found.append(interaction.click(coords, torch.tensor([label]))[0])
        return found

    for with_box, without in zip(turns(box=box), turns(box=None), strict=True):
        assert (with_box - without).abs().max() > 1e-3


@pytest.mark.parametrize("clicks", [[], [((20, 30, 30), True), ((9, 9, 50), False)]])
def test_a_predictor_of_crops_decodes_a_box_as_the_click_loop_does(model, clicks):
    box = ((8.0, 16.0, 4.0), (40.0, 50.0, 60.0))
    predictor = CropPredictor(model, torch.device("cpu"))
    embedding = predictor.encode(_image()[0, 0])
    found = predictor.decode_all(
        [
            Prompted(embedding, clicks, box=box),
            Prompted(embedding, [((1, 2, 3), True)]),
        ]
    )[0]

    interaction = predictor.interaction(embedding)
    interaction.give_boxes(torch.tensor([box]), YES)
    expected, _ = interaction.click(torch.zeros(1, 3), torch.tensor([NO_CLICK]))
    for place, is_foreground in clicks:
        interaction.low_res_masks = torch.zeros(1, 1, 32, 32, 32)
        place = torch.tensor([place], dtype=torch.float32)
        expected, _ = interaction.click(place, torch.tensor([int(is_foreground)]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_predictor_of_crops_decodes_a_click_without_a_box_as_the_click_loop_does(model):
    predictor = CropPredictor(model, torch.device("cpu"))
    embedding = predictor.encode(_image()[0, 0])
    (found,) = predictor.decode_all([Prompted(embedding, [((20, 30, 30), True)])])
    place = torch.tensor([[20.0, 30, 30]])
    expected, _ = predictor.interaction(embedding).click(place, torch.tensor([1]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_tokens_of_corners_hold_place_and_kind_but_no_features_of_the_image(model):
    coords, labels = box_points(torch.tensor([BOX]) / 2, YES)
    coords, labels = torch.cat([coords, coords], 1), torch.cat([labels, torch.tensor([[1, 0]])], 1)
    with torch.no_grad():
        first, second = (
            model.prompt_encoder((coords, labels), image_embeddings=model.image_encoder(image))[0]
            for image in (_image(), -_image())
        )
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.isclose(first[:, 2:], second[:, 2:]).all()
    assert not torch.isclose(first[:, 0], first[:, 1]).all()


def test_a_box_for_a_network_that_takes_none_is_refused():
    plain = build_sam3D(PLAIN).eval()
    predictor = CropPredictor(plain, torch.device("cpu"))
    embedding = predictor.encode(_image()[0, 0])
    with pytest.raises(ValueError, match=r"expected a network with prompt\.boxes"):
        predictor.interaction(embedding).give_boxes(torch.tensor([BOX]), YES)
    with pytest.raises(ValueError, match=r"expected a network with prompt\.boxes"):
        predictor.decode_all([Prompted(embedding, [], box=BOX)])


def test_boxes_that_do_not_fit_the_batch_are_refused(model):
    interaction = Interaction(model, model.image_encoder(_image()).detach())
    with pytest.raises(ValueError, match=r"expected \(1, 2, 3\) and \(1,\)"):
        interaction.give_boxes(torch.zeros(2, 2, 3), YES)


def test_boxes_need_the_form_pyramid():
    released = network_configs["vit_b_ori"]
    with pytest.raises(ConfigError, match=r"prompt\.boxes needs decoder\.form pyramid"):
        dataclasses.replace(released, prompt=dataclasses.replace(released.prompt, boxes=True))


def test_the_small_networks_take_boxes_and_the_released_ones_do_not():
    takes = {name: config.prompt.boxes for name, config in network_configs.items()}
    assert takes == {"vit_b_ori": False, "fastsam3d": False, "tiny": True, "tiny_fastsam3d": True}


def test_a_checkpoint_from_before_boxes_opens_as_what_it_is(tmp_path):
    torch.manual_seed(0)
    payload = checkpoint_payload(build_sam3D(PLAIN))
    del payload["config"]["prompt"]["boxes"]
    torch.save(payload, tmp_path / "old.pth")
    model = build_from_checkpoint(tmp_path / "old.pth")
    assert model.config == PLAIN
    assert len(model.prompt_encoder.point_embeddings) == 2
    assert SamConfig.from_dict(CONFIG.to_dict()) == CONFIG
