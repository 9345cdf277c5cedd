"""The ceiling of a low-resolution grid: against the loss of training, minimised by Adam."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segment_anything import upsample
from utils.results.ceiling import best_logits, cell_logits, occupancy, upsampled
from utils.results.metrics import dsc, nsd
from utils.training.losses import dice_ce

SIZE, SPACING_MM = 48, 1.5


def shapes() -> dict[str, np.ndarray]:
    """Return a ball, a tube and a shell, off the grid's middle; radii and thickness in mm."""
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING_MM
    z, y, x = np.meshgrid(axis + 0.3, axis - 0.2, axis + 0.1, indexing="ij")
    distance = np.sqrt(z * z + y * y + x * x)
    return {
        "ball of 18": distance <= 18,
        "tube of 3": (np.hypot(y, x) <= 3) & (np.abs(z) < 25),
        "shell of 4": np.abs(distance - 25) <= 2,
    }


SHAPES = shapes()


def by_adam(target: np.ndarray, cells: int, loss_size: int) -> np.ndarray:
    """Return the logits after 150 steps of Adam on the loss of training, on them alone."""
    logits = torch.zeros(1, 1, cells, cells, cells, requires_grad=True)
    truth = F.adaptive_avg_pool3d(torch.from_numpy(target)[None, None].float(), loss_size)
    adam = torch.optim.Adam([logits], lr=0.5)
    for _ in range(150):
        adam.zero_grad()
        dice_ce(upsample(logits, loss_size), truth).backward()
        adam.step()
    return logits.detach()[0, 0].numpy()


def mask_of(logits: np.ndarray) -> np.ndarray:
    return upsampled(logits, SIZE) > 0


@pytest.mark.parametrize("name", SHAPES)
def test_the_ceiling_is_what_adam_reaches_on_the_voxels(name):
    target = SHAPES[name]
    ours, adams = mask_of(best_logits(target, 12)), mask_of(by_adam(target, 12, SIZE))
    assert dsc(target, ours) == pytest.approx(dsc(target, adams), abs=0.03)
    spacing = (SPACING_MM,) * 3
    assert nsd(target, ours, spacing) == pytest.approx(nsd(target, adams, spacing), abs=0.03)


def test_a_loss_on_the_cells_trains_thin_targets_away_though_the_grid_can_hold_them():
    target = SHAPES["tube of 3"]
    assert dsc(target, mask_of(by_adam(target, 12, 12))) == 0.0
    assert dsc(target, mask_of(cell_logits(target, 12))) == 0.0
    assert dsc(target, mask_of(best_logits(target, 12))) > 0.8


@pytest.mark.parametrize("name", SHAPES)
def test_a_finer_grid_has_a_higher_ceiling(name):
    target = SHAPES[name]
    coarse, fine = (dsc(target, mask_of(best_logits(target, m))) for m in (12, 24))
    assert coarse < fine
    assert fine > 0.98


def test_upsampling_is_the_networks():
    logits = np.random.default_rng(0).normal(size=(5, 5, 5)).astype(np.float32)
    expected = upsample(torch.from_numpy(logits)[None, None], 20)[0, 0].numpy()
    np.testing.assert_allclose(upsampled(logits, 20), expected, atol=1e-5)


@pytest.mark.parametrize("cells", [4, 5, 8])
def test_occupancy_keeps_the_volume(cells):
    target = np.random.default_rng(0).random((16, 16, 16)) < 0.3
    shares = occupancy(target, cells)
    assert shares.mean() == pytest.approx(target.mean(), rel=1e-5)
    if cells == 4:
        np.testing.assert_allclose(shares[0, 1, 2], target[:4, 4:8, 8:12].mean(), rtol=1e-5)


def test_a_target_at_the_corner_of_the_crop_is_fitted_too():
    target = np.zeros((20, 20, 20), bool)
    target[:6, :6, 14:] = True
    assert dsc(target, upsampled(best_logits(target, 5), 20) > 0) > 0.9
