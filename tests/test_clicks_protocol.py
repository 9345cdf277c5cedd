import numpy as np
import pytest
import torch
from small_cases import ball, write_prepared
from small_networks import RULE, small_sam

from utils.cases.prepared import find_cases
from utils.files.nifti import read_nifti, write_nifti
from utils.results.ball import BALL_RADII_MM
from utils.results.metrics import dsc
from utils.validation.clicks import Evaluator
from utils.volumes.geometry import CropRule

CPU = {"device": torch.device("cpu"), "precision": torch.float32}


class Oracle(torch.nn.Module):
    """A network that answers with the truth on its low-resolution grid, whatever the click."""

    mask_threshold = 0.0

    def __init__(self, model, label_of):
        super().__init__()
        self.model, self.label_of = model, label_of
        self.config, self.prompt_encoder = model.config, model.prompt_encoder
        self.seen = []

    def image_encoder(self, image):
        self.image = image
        return self.model.image_encoder(image)

    def mask_decoder(self, **inputs):
        label = self.label_of(self.image)
        low = torch.nn.functional.avg_pool3d(label.float(), 2)
        return torch.logit(low, eps=0.02), torch.ones(1, 1)


@pytest.fixture
def case(tmp_path):
    return find_cases([write_prepared(tmp_path / "tree", cases=1)])[0]


def test_a_perfect_network_scores_nearly_one_on_the_volumes_own_grid(case):
    # In these phantoms the target is what is bright, in the network's frame as in the file.
    oracle = Oracle(small_sam(), lambda image: image > image.median() + 0.5)
    rule = CropRule(size=32, spacing_mm=0.6)
    result = Evaluator(oracle, rule, num_clicks=3, **CPU).run_case(case)
    target = result.score.targets[0]
    assert target.dsc[1] > 0.9
    assert len(target.dsc) == len(target.nsd) == 1 + 3
    assert result.prediction.shape == read_nifti(case.image_path).array.shape
    assert dsc(ball(centre=(9, 12, 15)), result.prediction > 0) == pytest.approx(target.dsc[-1])


def test_the_first_click_is_the_middle_of_the_target(case):
    result = Evaluator(small_sam(), RULE, num_clicks=1, **CPU).run_case(case).score.targets[0]
    *click, is_foreground = result.clicks[0]
    assert is_foreground
    np.testing.assert_allclose(click, (9, 12, 15), atol=1)
    assert result.coverage == 1.0
    assert result.encoder_ms > 0
    assert result.decoder_ms[0] > 0


def test_truth_outside_the_cube_counts_as_missed(case):
    oracle = Oracle(small_sam(), lambda image: torch.ones_like(image))
    rule = CropRule(size=32, spacing_mm=0.25)  # a cube of 8 mm about a ball of 12 mm
    result = Evaluator(oracle, rule, num_clicks=2, **CPU).run_case(case).score.targets[0]
    assert result.coverage < 0.7
    assert result.dsc[1] < 0.85
    # No error is left that a click inside the cube could reach.
    assert len(result.clicks) == 1
    assert result.dsc[2] == result.dsc[1]


def test_the_ball_of_the_targets_radius_is_the_best_for_a_ball(case):
    result = Evaluator(small_sam(), RULE, num_clicks=1, **CPU).run_case(case).score.targets[0]
    assert BALL_RADII_MM[np.argmax(result.ball_dsc)] == pytest.approx(6.6, abs=0.7)
    assert max(result.ball_dsc) > 0.85


def test_instances_are_scored_apart_and_written_together(tmp_path):
    folder = write_prepared(tmp_path / "tree", cases=1)
    path = folder / "labelsTr" / "CT_A_0.nii.gz"
    label = np.zeros((20, 24, 28), np.uint16)
    label[ball(centre=(6, 7, 8), radius=4)], label[ball(centre=(13, 16, 19), radius=4)] = 3, 500
    write_nifti(path, label, read_nifti(path).affine)
    result = Evaluator(small_sam(), RULE, num_clicks=1, **CPU).run_case(find_cases([folder])[0])
    assert [t.name[-4:] for t in result.score.targets] == ["_0#3", "#500"]
    assert set(np.unique(result.prediction)) <= {0, 3, 500}
