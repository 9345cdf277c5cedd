"""Overlays: at the right shape, with the outlines and clicks that they should show."""

import matplotlib.image
import numpy as np
import pytest
from picture_helpers import places

from utils.errors import InputError
from utils.prompts.kinds import Click
from utils.results.figures import save
from utils.results.overlays import (
    BACKGROUND_COLOUR,
    FOREGROUND_COLOUR,
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    overlay_figure,
)


def overlay(path, truth, prediction, spacing=(1.0, 1.0, 1.0), clicks=()):
    image = np.arange(truth.size, dtype=np.float32).reshape(truth.shape)
    figure = overlay_figure(
        image, truth, prediction, spacing_zyx=spacing, clicks=clicks, title="case 1"
    )
    save(figure, path)


def cuboid(shape=(30, 40, 50), start=(10, 15, 20), stop=(20, 25, 30)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def test_overlay_shows_both_outlines_and_both_kinds_of_clicks(tmp_path):
    clicks = [Click((14, 19, 24), True), Click((15, 30, 24), False)]
    overlay(
        tmp_path / "a.png", cuboid(), cuboid(start=(12, 15, 22), stop=(22, 25, 32)), clicks=clicks
    )
    for colour in (TRUTH_COLOUR, PREDICTION_COLOUR, FOREGROUND_COLOUR, BACKGROUND_COLOUR):
        assert len(places(tmp_path / "a.png", colour)) > 50


def test_overlay_has_the_physical_aspect_ratio(tmp_path):
    """A cube of 30 mm in voxels of (6, 1, 1.5) mm is as high as wide in all three planes."""
    truth = cuboid((14, 90, 60), start=(5, 30, 20), stop=(10, 60, 40))
    overlay(tmp_path / "a.png", truth, np.zeros_like(truth), spacing=(6.0, 1.0, 1.5))
    drawn = places(tmp_path / "a.png", TRUTH_COLOUR)
    height, width = np.ptp(drawn[:, 0]) + 1, 0
    gaps = np.flatnonzero(np.diff(np.unique(drawn[:, 1])) > 1)
    columns = np.split(np.unique(drawn[:, 1]), gaps + 1)
    width = max(np.ptp(column) + 1 for column in columns)
    assert height == pytest.approx(width, rel=0.25)


def test_superior_is_up_in_the_coronal_plane(tmp_path):
    truth = cuboid()
    prediction = cuboid(start=(22, 15, 20), stop=(28, 25, 30))  # above, along z
    overlay(tmp_path / "a.png", truth, prediction)
    truth_rows = places(tmp_path / "a.png", TRUTH_COLOUR)
    prediction_rows = places(tmp_path / "a.png", PREDICTION_COLOUR)
    middle = matplotlib.image.imread(tmp_path / "a.png").shape[1] / 3
    truth_row = truth_rows[truth_rows[:, 1] > middle][:, 0].mean()
    assert prediction_rows[prediction_rows[:, 1] > middle][:, 0].mean() < truth_row


@pytest.mark.parametrize("spacing", [(10.0, 0.5, 0.5), (0.3, 0.3, 5.0)], ids=str)
def test_overlay_draws_empty_masks_and_odd_grids(tmp_path, spacing):
    nothing, everything = np.zeros((1, 8, 9), bool), np.ones((1, 8, 9), bool)
    for number, (truth, prediction) in enumerate([(nothing, nothing), (nothing, everything)]):
        overlay(tmp_path / f"{number}.png", truth, prediction, spacing)
        assert matplotlib.image.imread(tmp_path / f"{number}.png").shape[1] == 1500


def test_overlay_refuses_two_grids(tmp_path):
    with pytest.raises(InputError, match="expected one"):
        overlay(tmp_path / "a.png", cuboid(), cuboid((30, 50, 40)))
    assert not list(tmp_path.iterdir())
