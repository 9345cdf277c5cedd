"""Examples in docstrings run and print what they say."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "segment_anything.build_sam3D",
    "segment_anything.crop_predictor",
    "segment_anything.decoding",
    "utils.prediction.predictor",
    "utils.training.config",
    "utils.training.distillation",
    "utils.volumes.geometry",
    "utils.validation.clicks",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
