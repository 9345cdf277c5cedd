"""The thickness of a target is the diameter of the largest ball inside it."""

import numpy as np
import pytest

from utils.errors import InputError
from utils.results import thickness
from utils.results.thickness import THICKNESS_CLASSES, thickness_class, thickness_mm


def test_thickness_of_a_cylinder_is_its_diameter_whatever_its_length():
    y, x = np.ogrid[:60, :60]
    disc = ((y - 30) * 0.5) ** 2 + ((x - 30) * 0.5) ** 2 <= 5.0**2
    for slices in (20, 60):
        cylinder = np.repeat(disc[None], slices, axis=0)
        assert thickness_mm(cylinder, (2.0, 0.5, 0.5)) == pytest.approx(10.0, abs=1.0)


def test_thickness_follows_the_spacing_of_each_axis():
    plate = np.zeros((20, 30, 30), bool)
    plate[5:8] = True
    assert thickness_mm(plate, (3.0, 1.0, 1.0)) == 2 * 2 * 3.0  # from the middle slice, two steps
    assert thickness_mm(plate, (1.0, 3.0, 3.0)) == 2 * 2 * 1.0


def test_what_lies_beyond_the_volume_is_outside():
    assert thickness_mm(np.ones((5, 9, 9), bool), (1.0, 1.0, 1.0)) == 2 * 3.0


def test_thickness_of_a_mask_too_large_for_memory_is_nearly_the_same(monkeypatch):
    z, y, x = np.ogrid[:20, :80, :90]
    oval = (2.5 * (z - 10)) ** 2 + (0.5 * (y - 40)) ** 2 + (0.6 * (x - 45)) ** 2 <= 18**2
    exact = thickness_mm(oval, (2.5, 0.5, 0.6))
    monkeypatch.setattr(thickness, "_MAX_VOXELS", oval.size // 20)
    assert exact == pytest.approx(36, abs=1.5)
    assert thickness_mm(oval, (2.5, 0.5, 0.6)) != exact
    assert thickness_mm(oval, (2.5, 0.5, 0.6)) == pytest.approx(exact, abs=3)


def test_an_empty_target_is_refused():
    with pytest.raises(InputError, match="the mask is empty; expected at least one voxel"):
        thickness_mm(np.zeros((3, 3, 3), bool), (1, 1, 1))


@pytest.mark.parametrize(
    ("thick", "name"), [(2, 0), (5.99, 0), (6.0, 1), (15.0, 1), (15.01, 2), (90.0, 2)]
)
def test_classes_part_at_6_and_15_mm(thick, name):
    assert thickness_class(thick) == THICKNESS_CLASSES[name]
