"""Prediction where other tests do not look: defaults, and several clicks of the other kind."""

import argparse
import json

import numpy as np
import pytest
import torch
from small_networks import small_sam

from segment_anything import CropPredictor
from utils.errors import InputError
from utils.prediction.batching import BatchDecoder
from utils.prediction.honouring import honour_clicks
from utils.prediction.masks import SURE_LOGIT, LogitBox, keep_prompted
from utils.prediction.session import DecodeRequest
from utils.prediction.tiles import blended
from utils.prompts.files import add_prompt_arguments, find_prompts
from utils.prompts.kinds import Click
from utils.volumes.geometry import CropGrid, affine_from_spacing

SHAPE = (20, 24, 28)
EVEN = (1.0, 1.0, 1.0)


def test_intensities_are_no_hounsfield_units_unless_said():
    grid = CropGrid.at((16, 16, 16), (32, 32, 32), affine_from_spacing(EVEN), 1.0, 32)
    request = DecodeRequest(grid, [((16.0, 14.0, 12.0), True)], None)
    network = CropPredictor(small_sam(), torch.device("cpu"))
    image = np.random.default_rng(0).normal(0, 1500, (32, 32, 32)).astype(np.float32)
    default, no, yes = (
        BatchDecoder(network, image, **flags).decode([request])[0]
        for flags in ({}, {"hounsfield": False}, {"hounsfield": True})
    )
    np.testing.assert_array_equal(default, no)
    assert not np.allclose(default, yes)


def test_the_nearest_click_of_the_other_kind_narrows_a_spot_however_many_there_are():
    def spot(*others):
        logits = LogitBox(tuple(slice(0, n) for n in SHAPE), np.full(SHAPE, -6.0, np.float32))
        clicks = [Click((10, 12, 14), True), *(Click(place, False) for place in others)]
        return honour_clicks(logits, clicks, [], EVEN, 2.0, SHAPE).logits.values

    near, far = (10, 12, 17), [(1, 2, 3), (18, 2, 3), (1, 22, 3)]  # all on the right side already
    np.testing.assert_array_equal(spot(near, *far), spot(near))
    assert spot(near)[10, 12, 14] == SURE_LOGIT
    assert (spot(near) > 0).sum() < (spot(*far) > 0).sum()


def test_logits_with_tiles_are_float32():
    grid = CropGrid.at((10, 12, 14), SHAPE, affine_from_spacing(EVEN), 1.0, 32)
    coarse = LogitBox(tuple(slice(0, n) for n in SHAPE), np.ones(SHAPE, np.float32))
    found = blended(coarse, [(grid, np.ones((16, 16, 16), np.float32))])
    assert found.values.dtype == np.float32


def found_prompts(folder, targets, coordinates, itk_affine):
    content = {"coordinates": coordinates, "targets": targets}
    (folder / "scan.json").write_text(json.dumps(content))
    parser = argparse.ArgumentParser()
    add_prompt_arguments(parser)
    affine = affine_from_spacing(EVEN)
    return find_prompts(parser.parse_args([]), folder / "scan.nii.gz", SHAPE, affine, itk_affine)


def test_places_in_a_file_beside_an_image_are_where_itk_shows_them(tmp_path):
    shifted = affine_from_spacing(EVEN)
    shifted[0, 3] -= 6
    x, y, z = (shifted @ [5, 6, 7, 1])[:3]
    targets = [{"id": 1, "points": [{"at": [-x, -y, z]}]}]
    (target,) = found_prompts(tmp_path, targets, "mm-lps", shifted)
    assert target.prompts == [Click((7, 6, 5), True)]


def test_an_id_that_is_there_twice_is_refused_with_what_to_do(tmp_path):
    targets = [{"id": 4, "points": [{"at": [1, 2, 3]}]}, {"id": 4, "points": [{"at": [3, 2, 1]}]}]
    with pytest.raises(InputError, match="join the prompts of one target"):
        found_prompts(tmp_path, targets, "zyx", None)


def test_a_seed_in_the_first_voxel_of_a_box_keeps_its_component():
    values = np.full((5, 5, 5), -1.0, np.float32)
    values[0, 0, 0] = values[4, 4, 4] = 2.0
    box = tuple(slice(start, start + 5) for start in (2, 3, 4))
    kept = keep_prompted(LogitBox(box, values), [(2, 3, 4)]).values
    assert kept[0, 0, 0] == 2.0
    assert kept[4, 4, 4] < 0
