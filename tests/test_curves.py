"""Curves: every curve that they should show, and a refusal where there is nothing to draw."""

import json

import matplotlib.image
import numpy as np
import pytest
from picture_helpers import places

from utils.errors import InputError
from utils.results.curves import (
    click_curve_figure,
    spread_figure,
    training_curve_figure,
    validation_curve_figure,
)
from utils.results.figures import save
from utils.results.style import SERIES_COLOURS


def test_click_curve_draws_models_and_baseline(tmp_path):
    curves = {"teacher": [0.5, 0.7, 0.8], "student": [0.4]}
    save(click_curve_figure(curves, baseline=("ball", 0.3)), tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").shape == (570, 900, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_click_curve_refuses_no_scores():
    with pytest.raises(InputError, match="at least one score"):
        click_curve_figure({"teacher": []})


@pytest.mark.parametrize("losses", [[0.5], [3.0, 0.1, -0.2], [9.0] * 60 + [0.01]], ids=len)
@pytest.mark.parametrize("extra", [{}, {"lr": 1e-4}], ids=["loss", "loss and lr"])
def test_training_curve_draws_what_is_there(tmp_path, losses, extra):
    lines = [json.dumps({"step": i, "loss": loss, **extra}) for i, loss in enumerate(losses, 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    save(training_curve_figure(tmp_path / "metrics.jsonl"), tmp_path / "loss.png")
    assert len(places(tmp_path / "loss.png", "#0072b2")) > 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "holds no step with a finite loss"),
        ('{"step": 1}', "line 1 is no line of training metrics .*loss"),
        ("not json", "line 1 is no line of training metrics"),
        ('{"step": 1, "loss": NaN}', "holds no step with a finite loss"),
    ],
)
def test_training_curve_refuses_what_holds_no_loss(tmp_path, text, found):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=rf"metrics\.jsonl: {found}"):
        training_curve_figure(tmp_path / "metrics.jsonl")


def test_validation_curve_shows_a_curve_for_each_number_of_clicks(tmp_path):
    rows = [
        {"step": 100, "dsc_1": 0.4, "dsc_3": 0.5, "dsc_5": 0.55, "score": 0.48},
        {"step": 200, "dsc_1": 0.45, "dsc_3": 0.6, "dsc_5": 0.7, "score": 0.58},
    ]
    other = [{**row, "dsc_5": row["dsc_3"]} for row in rows]
    save(validation_curve_figure(rows), tmp_path / "two.png")
    save(validation_curve_figure(other), tmp_path / "one.png")
    first, second = (matplotlib.image.imread(tmp_path / name) for name in ("two.png", "one.png"))
    assert first.shape == second.shape
    assert (first != second).any()


def test_a_spread_without_cases_is_left_out_and_keeps_its_colour(tmp_path):
    series = {"with box": np.empty((0, 3)), "without box": np.array([[0.2, 0.3], [0.4, 0.6]])}
    save(spread_figure(series, ["box", "1", "2"], "DSC"), tmp_path / "a.png")
    seen = [len(places(tmp_path / "a.png", colour)) > 0 for colour in SERIES_COLOURS[:2]]
    assert seen == [False, True]


def test_a_spread_ends_at_the_last_step_however_short_it_is():
    axes = spread_figure({"clicks": np.array([[0.2, 0.3]])}, ["box", "1", "2"], "DSC").axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 2]
