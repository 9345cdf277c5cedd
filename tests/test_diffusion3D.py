"""Diffusion along an image's edges: clicks fill their structure and stop at its border."""

import pytest
import torch

from segment_anything.modeling.diffusion3D import (
    CLICK_MAPS,
    click_cells,
    diffused_clicks,
    edge_weights,
    guided_mask,
    on_log_scale,
    solve,
)

CELLS, SIZE = 32, 128  # cells along an axis, and voxels
BOX = (slice(8, 24), slice(4, 12), slice(12, 28))  # a bright structure, in cells


@pytest.fixture
def image():
    cells = torch.zeros(1, 1, CELLS, CELLS, CELLS)
    cells[0, 0][BOX] = 2.0
    return cells


def _click(*cell):
    """Return the coordinates (1, 1, 3) of the middle of a cell."""
    return (torch.tensor([[cell]], dtype=torch.float32) + 0.5) * (SIZE / CELLS) - 0.5


def _inside():
    inside = torch.zeros(CELLS, CELLS, CELLS, dtype=torch.bool)
    inside[BOX] = True
    return inside


def test_a_positive_click_fills_its_structure_and_stops_at_the_border(image):
    maps = diffused_clicks(image, _click(16, 8, 19), torch.ones(1, 1), SIZE)[0]
    assert maps.shape == (CLICK_MAPS, CELLS, CELLS, CELLS)
    inside = _inside()
    for number in (0, 4):  # far-reaching, and the random walker
        assert maps[number][inside].min() > 0.6
        assert maps[number][~inside].max() < 0.2
    assert not maps[1].any()
    assert not maps[3].any()


def test_on_a_log_scale_a_faint_click_still_shows_how_far_a_cell_is(image):
    short = diffused_clicks(image * 0, _click(16, 16, 16), torch.ones(1, 1), SIZE)[0, 2]
    assert short[16, 16, 20:29:4].max() < 0.1
    along = on_log_scale(short)[16, 16, 16:29:4]
    assert along[0] == 1
    assert (along.diff() < -0.02).all()
    assert along[-1] > 0.5


def test_the_log_scale_ends_at_the_faintest_value():
    values = on_log_scale(torch.tensor([0.0, 1e-5, 1e-4, 1e-2, 1.0])).tolist()
    assert values == pytest.approx([0, 0, 0, 0.5, 1], abs=1e-6)


def test_the_order_of_the_axes_is_that_of_the_image(image):
    """The structure is wider along the last axis than along the second."""
    walker = diffused_clicks(image, _click(16, 8, 19), torch.ones(1, 1), SIZE)[0, 4] > 0.5
    assert torch.equal(walker, _inside())


def test_clicks_hold_their_own_cells(image):
    coords = torch.cat([_click(16, 8, 19), _click(1, 1, 1)], 1)
    maps = diffused_clicks(image, coords, torch.tensor([[1, 0]]), SIZE)[0]
    assert maps[0, 16, 8, 19] == maps[2, 16, 8, 19] == maps[4, 16, 8, 19] == 1
    assert maps[1, 1, 1, 1] == maps[3, 1, 1, 1] == 1
    assert maps[0, 1, 1, 1] == maps[4, 1, 1, 1] == 0


def test_padding_clicks_change_nothing(image):
    coords = torch.cat([_click(16, 8, 19), _click(2, 2, 2)], 1)
    with_padding = diffused_clicks(image, coords, torch.tensor([[1, -1]]), SIZE)
    assert torch.equal(with_padding, diffused_clicks(image, coords[:, :1], torch.ones(1, 1), SIZE))


def test_samples_of_a_batch_do_not_mix(image):
    noise = torch.randn(1, 1, CELLS, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    coords, labels = torch.cat([_click(16, 8, 19), _click(3, 3, 3)]), torch.tensor([[1], [0]])
    both = diffused_clicks(torch.cat([image, noise]), coords, labels, SIZE)
    alone = diffused_clicks(noise, coords[1:], labels[1:], SIZE)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-6)


def test_steps_solve_the_screened_equation():
    """Against a direct solution of the linear system, on a small grid of noise."""
    size, fading = 4, 0.5
    image = torch.randn(1, 1, size, size, size, generator=torch.Generator().manual_seed(1)).double()
    edges = edge_weights(image)
    matrix = torch.diag(edges.total[0, 0] + fading)
    for weight, stride in zip(edges.neighbours, edges.strides, strict=True):
        for cell in range(size**3):
            if weight[0, 0, cell]:
                matrix[cell, cell + stride] -= weight[0, 0, cell]
    known = torch.rand(size**3, generator=torch.Generator().manual_seed(2)).double()
    expected = torch.linalg.solve(matrix, fading * known)
    scale = 1 / (edges.total + fading)
    found = solve(torch.zeros_like(edges.total), edges, scale, scale * fading * known, 100)
    torch.testing.assert_close(found[0, 0], expected)


def test_a_guided_mask_moves_to_the_edge(image):
    """A ball-like mask that leaks over the border is cut there, and fills the structure."""
    place = torch.stack(torch.meshgrid(*[torch.arange(CELLS)] * 3, indexing="ij")).float()
    distance = (place - torch.tensor([16.0, 8.0, 19.0]).view(3, 1, 1, 1)).norm(dim=0)
    logits = (8.5 - distance)[None, None]
    refined = guided_mask(logits, image, _click(16, 8, 19), torch.ones(1, 1), SIZE, 0.02)

    def dsc(mask):
        return 2 * float((mask & _inside()).sum()) / float(mask.sum() + _inside().sum())

    assert dsc(logits[0, 0] > 0) < 0.8
    assert dsc(refined[0, 0] > 0) > 0.95


def test_a_guided_mask_keeps_the_clicks_and_stays_finite(image):
    logits = torch.full((1, 1, CELLS, CELLS, CELLS), -50.0)
    refined = guided_mask(logits, image, _click(16, 8, 19), torch.ones(1, 1), SIZE, 0.02)
    assert refined[0, 0, 16, 8, 19] > 5
    assert torch.isfinite(refined).all()


def test_a_fraction_belongs_to_the_cell_of_its_nearest_voxel():
    coords = torch.tensor([[[3.6, 3.4, 0.0]]])  # voxels 4 and 3, of cells 1 and 0
    assert click_cells(coords, CELLS, SIZE).tolist() == [[CELLS**2]]


def test_click_cells_are_those_that_hold_the_voxel():
    coords = torch.tensor([[[0.0, 3.0, 4.0], [127.0, 0.0, 127.0]]])
    assert click_cells(coords, CELLS, SIZE).tolist() == [[1, 31 * CELLS**2 + 31]]
