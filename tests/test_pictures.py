"""Pictures: they appear whole, at the right shape, with what they should show."""

import json

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from utils.errors import InputError
from utils.results.pictures import (
    BACKGROUND_COLOUR,
    FOREGROUND_COLOUR,
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    draw_click_curve,
    draw_overlay,
    draw_training_curve,
    draw_validation_curve,
)


def places(path, colour: str) -> np.ndarray:
    """Return the (row, column) of the picture's pixels of a colour, above the legend."""
    pixels = matplotlib.image.imread(path)[..., :3]
    found = np.argwhere(np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02)
    return found[found[:, 0] < len(pixels) - 90]


def overlay(path, truth, prediction, spacing=(1.0, 1.0, 1.0), clicks=()):
    image = np.arange(truth.size, dtype=np.float32).reshape(truth.shape)
    draw_overlay(path, image, truth, prediction, spacing_zyx=spacing, clicks=clicks, title="case 1")


def cuboid(shape=(30, 40, 50), start=(10, 15, 20), stop=(20, 25, 30)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def test_overlay_shows_both_outlines_and_both_kinds_of_clicks(tmp_path):
    clicks = [((14, 19, 24), True), ((15, 30, 24), False)]
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


def test_click_curve_draws_models_and_baseline(tmp_path):
    draw_click_curve(
        tmp_path / "a.png", {"teacher": [0.5, 0.7, 0.8], "student": [0.4]}, baseline=("ball", 0.3)
    )
    assert matplotlib.image.imread(tmp_path / "a.png").shape == (570, 900, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_click_curve_refuses_no_scores(tmp_path):
    with pytest.raises(InputError, match="at least one score"):
        draw_click_curve(tmp_path / "a.png", {"teacher": []})


@pytest.mark.parametrize("losses", [[0.5], [3.0, 0.1, -0.2], [9.0] * 60 + [0.01]], ids=len)
@pytest.mark.parametrize("extra", [{}, {"lr": 1e-4}], ids=["loss", "loss and lr"])
def test_training_curve_draws_what_is_there(tmp_path, losses, extra):
    lines = [json.dumps({"step": i, "loss": loss, **extra}) for i, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    draw_training_curve(tmp_path / "loss.png", tmp_path / "metrics.jsonl")
    assert len(places(tmp_path / "loss.png", "#0072b2")) > 0


@pytest.mark.parametrize("text", ["", '{"step": 1}', "not json", '{"step": 1, "loss": NaN}'])
def test_training_curve_refuses_what_holds_no_loss(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        draw_training_curve(tmp_path / "loss.png", tmp_path / "metrics.jsonl")


def test_validation_curve_shows_a_curve_for_each_number_of_clicks(tmp_path):
    rows = [
        {"step": 100, "dsc_1": 0.4, "dsc_3": 0.5, "dsc_5": 0.55, "score": 0.48},
        {"step": 200, "dsc_1": 0.45, "dsc_3": 0.6, "dsc_5": 0.7, "score": 0.58},
    ]
    draw_validation_curve(tmp_path / "two.png", rows)
    draw_validation_curve(tmp_path / "one.png", [{**row, "dsc_5": row["dsc_3"]} for row in rows])
    first, second = (matplotlib.image.imread(tmp_path / name) for name in ("two.png", "one.png"))
    assert first.shape == second.shape
    assert (first != second).any()
