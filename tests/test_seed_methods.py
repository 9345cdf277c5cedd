"""Methods without a network: the seeds that prompts become, and the masks that grow from them."""

import numpy as np
import pytest
import torch
from small_cases import ball

from benchmarks import seed_methods
from benchmarks.seed_methods import INSIDE, METHODS, OUTSIDE, SeedNetwork, Seeds, seeds_of
from segment_anything import CropPredictor, Prompted, fingerprint, upsample

SIZE, CELLS = 64, 16  # a cell is 4 voxels long
CLICKED = ["random-walker", "grow-from-seeds"]


def seeds(*points):
    coords, labels = zip(*points, strict=True)
    return seeds_of(np.array(coords, np.float32), np.array(labels), SIZE, CELLS).labels


def along(costs_or_labels):
    return np.array(costs_or_labels)[None, None]


def cube(z, y, x):
    return tuple(slice(c - 1, c + 2) for c in (z, y, x))


def test_the_border_is_outside_and_a_click_paints_its_cell_and_those_around_it():
    found = seeds(((20, 24, 31), 1), ((39, 40, 41), 0), ((32, 32, 32), -1))
    expected = np.full((CELLS,) * 3, OUTSIDE)
    expected[1:-1, 1:-1, 1:-1] = 0
    expected[cube(5, 6, 7)], expected[cube(9, 10, 10)] = INSIDE, OUTSIDE
    assert (found == expected).all()


def test_a_later_click_paints_over_an_earlier_one_but_not_over_the_clicked_cell():
    found = seeds(((20, 20, 20), 1), ((24, 20, 20), 0))
    assert found[4:8, 5, 5].tolist() == [INSIDE, INSIDE, OUTSIDE, OUTSIDE]
    assert found[5, 5, 6] == OUTSIDE
    assert seeds(((20, 20, 20), 1), ((21, 21, 21), 0))[5, 5, 5] == OUTSIDE


def test_a_click_inside_reaches_no_further_than_its_cell_into_what_is_outside():
    found = seeds(((0, 20, 20), 1))
    assert np.argwhere(found[0] == INSIDE).tolist() == [[5, 5]]
    assert (found[1, 4:7, 4:7] == INSIDE).all()


BOX = ((7.5, 15.5, 19.5), 2), ((35.5, 31.5, 47.5), 3)  # voxels 8-35, 16-31, 20-47


def test_all_cells_outside_of_a_box_are_outside_and_its_core_is_inside():
    found = seeds(*BOX, ((0, 0, 0), -1))
    within = np.zeros_like(found, bool)
    within[2:9, 4:8, 5:12] = True
    assert (found[~within] == OUTSIDE).all()
    assert (found[within] != OUTSIDE).all()
    inside = np.argwhere(found == INSIDE)
    assert np.allclose(inside.mean(axis=0), [5, 5.5, 8])
    assert (inside.max(axis=0) - inside.min(axis=0) + 1).tolist() == [3, 2, 3]


def test_a_click_outside_prevails_over_the_core_of_a_box():
    found = seeds(*BOX, ((20, 22, 34), 0))
    assert (found[cube(5, 5, 8)] == OUTSIDE).all()


def test_the_cheapest_path_to_a_seed_decides():
    image, labels = along([0.0, 1, 1, 4, 4]), along([INSIDE, 0, 0, 0, OUTSIDE])
    share = seed_methods.grown(image, Seeds(labels, None))
    # Costs to the inside 0 1 1 4 4 and to the outside 4 3 3 0 0.
    assert np.allclose(share, along([1, 0.75, 0.75, 0, 0]), atol=2e-3)
    assert share[0, 0, 1] > share[0, 0, 2]


def test_a_walker_in_a_plain_image_reaches_the_nearer_seed_first():
    image, labels = along([2.0] * 5), along([INSIDE, 0, 0, 0, OUTSIDE])
    share = seed_methods.walked(image, Seeds(labels, None))
    assert np.allclose(share, along([1, 0.75, 0.5, 0.25, 0]), atol=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_seed_inside_nothing_is_inside(name):
    labels = along([OUTSIDE, 0, 0, 0, OUTSIDE])
    inside = METHODS[name].inside(along([0.0, 1, 5, 4, 4]), Seeds(labels, None))
    assert (inside < 0.5).all()


@pytest.mark.parametrize("name", CLICKED)
def test_a_bright_ball_in_noise_is_found_by_a_click_and_an_edge_stops_it(name):
    truth = ball((SIZE,) * 3, (30, 34, 28), 14)
    noise = np.random.default_rng(0).normal(0, 0.5, truth.shape)
    crop = torch.from_numpy((2.0 * truth + noise).astype(np.float32))
    predictor = CropPredictor(SeedNetwork(name, SIZE), torch.device("cpu"))
    prompted = Prompted(predictor.encode(crop), [((30, 34, 28), True)])
    (logits,) = predictor.decode_all([prompted])
    found = (upsample(logits, SIZE)[0, 0] > 0).numpy()
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95


def test_the_fingerprint_tells_methods_and_their_constants_apart(monkeypatch):
    found = {fingerprint(SeedNetwork(name, SIZE)) for name in METHODS}
    monkeypatch.setattr(seed_methods, "BETA", 90.0)
    found.add(fingerprint(SeedNetwork("random-walker", SIZE)))
    assert len(found) == len(METHODS) + 1
