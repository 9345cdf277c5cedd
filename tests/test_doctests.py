"""Examples in docstrings run and print what they say."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "utils.prediction.predictor",
    "utils.training.config",
    "utils.training.distillation",
    "utils.volumes.geometry",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
