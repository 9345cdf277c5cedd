"""Phantoms: the challenge's form, the table's class ids, one case a seed and number."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from utils.cases import phantoms as command
from utils.cases.challenge import read_challenge_case
from utils.cases.phantoms import CT_CLASSES, MR_CLASSES, ct_phantom, mr_phantom, write_phantoms
from utils.errors import InputError
from utils.prompts.click_method import challenge_click
from utils.results.ball import BALL_RADII_MM, ball_dsc_curve, best_fixed_radius


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 4, seed=0)


def test_files_have_the_challenges_form(phantoms):
    assert [path.name for path in phantoms] == [
        "CT_AMOS_phantom_0001.npz",
        "MR_Heart_ACDC_phantom_0002.npz",
        "CT_AMOS_phantom_0003.npz",
        "MR_Heart_ACDC_phantom_0004.npz",
    ]
    for path in phantoms:
        with np.load(path, allow_pickle=False) as case:
            assert set(case) - {"boxes"} == {"imgs", "gts", "spacing"}
            assert case["imgs"].dtype == case["gts"].dtype == np.uint8
            assert case["imgs"].shape == case["gts"].shape
            x, y, z = case["spacing"]
            depth, height, width = case["imgs"].shape
            assert x == y < z  # thick slices: the third spacing belongs to the first axis
            assert depth < min(height, width)


def test_every_class_is_there_in_every_case():
    for make, classes in ((ct_phantom, CT_CLASSES), (mr_phantom, MR_CLASSES)):
        for seed in range(5):
            sizes = np.bincount(make(np.random.default_rng(seed)).label.ravel())
            assert set(np.flatnonzero(sizes)) == {0, *classes.values()}
            assert sizes[sizes > 0].min() > 150


def cases():
    """Yield each phantom of three seeds with its classes."""
    for seed in range(3):
        yield ct_phantom(np.random.default_rng(seed)), CT_CLASSES
        yield mr_phantom(np.random.default_rng(seed)), MR_CLASSES


def inscribed_ball_mm(phantom, value):
    """Return the radius of the largest ball inside a class, in mm."""
    mask = np.pad(phantom.label == value, 1)
    return ndimage.distance_transform_edt(mask, sampling=phantom.spacing_xyz[::-1]).max()


def test_thin_targets_are_thin_and_others_are_not():
    limits = {"Aorta": 6, "Left adrenal gland": 6, "Myocardium": 8}
    for phantom, classes in cases():
        for name, value in classes.items():
            if name in limits:
                assert inscribed_ball_mm(phantom, value) < limits[name], name
        if "Liver" in classes:
            assert inscribed_ball_mm(phantom, classes["Liver"]) > 20


def test_every_target_is_one_piece():
    for phantom, classes in cases():
        for name, value in classes.items():
            pieces, _ = ndimage.label(phantom.label == value, np.ones((3, 3, 3)))
            sizes = np.bincount(pieces.ravel())[1:]
            assert sizes.max() > 0.95 * sizes.sum(), name


def test_the_pancreas_differs_from_its_surroundings_by_about_the_noise():
    for seed in range(5):
        phantom = ct_phantom(np.random.default_rng(seed))
        organ = phantom.label == CT_CLASSES["Pancreas"]
        ring = ndimage.binary_dilation(organ, np.ones((1, 3, 3)), iterations=2)
        ring &= phantom.label == 0
        core = ndimage.binary_erosion(organ, np.ones((1, 3, 3)))
        noise = phantom.image[core].std()
        contrast = phantom.image[organ].mean() - phantom.image[ring].mean()
        assert 0.7 * noise < contrast < 2.5 * noise


def test_a_ball_about_the_first_click_is_not_enough():
    curves = []
    for phantom, classes in cases():
        for value in classes.values():
            truth = phantom.label == value
            click = challenge_click(np.zeros_like(truth), truth)
            spacing = phantom.spacing_xyz[::-1]
            curves.append(ball_dsc_curve(truth, click.zyx, spacing, BALL_RADII_MM))
    assert best_fixed_radius(np.array(curves), BALL_RADII_MM)[1] < 0.45


def test_organs_lie_where_they_should():
    label = ct_phantom(np.random.default_rng(0)).label
    centre = {name: np.argwhere(label == value).mean(axis=0) for name, value in CT_CLASSES.items()}
    z, _, x = range(3)
    assert centre["Liver"][x] < centre["Spleen"][x]  # x grows to the patient's left
    assert centre["Right kidney"][x] < centre["Left kidney"][x]
    assert centre["Liver"][z] > centre["Right kidney"][z]  # z grows upwards


def test_brightness_alone_does_not_find_an_organ():
    for make in (ct_phantom, mr_phantom):
        case = make(np.random.default_rng(0))
        for value in np.unique(case.label)[1:]:
            organ = case.label == value
            low, high = np.percentile(case.image[organ], (10, 90))
            in_range = (case.image >= low) & (case.image <= high)
            assert (in_range & organ).sum() < 0.6 * in_range.sum()


def test_cases_differ_by_seed_and_number_and_by_nothing_else(phantoms, tmp_path):
    (again,) = write_phantoms(tmp_path / "a", 1, seed=0, first_number=3)
    (other,) = write_phantoms(tmp_path / "b", 1, seed=1, first_number=3)
    assert again.name == other.name == phantoms[2].name
    images = [np.load(path)["imgs"] for path in (phantoms[2], again, other, phantoms[0])]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[3])


def test_finished_files_are_left_and_broken_ones_replaced(tmp_path):
    finished, broken = write_phantoms(tmp_path, 2, seed=0)
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    stamp = finished.stat().st_mtime_ns, finished.stat().st_ino

    write_phantoms(tmp_path, 2, seed=0)

    assert (finished.stat().st_mtime_ns, finished.stat().st_ino) == stamp
    assert set(np.load(broken)) == {"imgs", "gts", "spacing"}
    assert sorted(tmp_path.iterdir()) == sorted([finished, broken])


def test_no_cases_are_refused(tmp_path):
    with pytest.raises(InputError, match="at least one case"):
        write_phantoms(tmp_path, 0, seed=0)


def test_abdomens_have_boxes_that_hold_the_middle_slices_organ(phantoms):
    case = read_challenge_case(phantoms[0])
    label = np.load(phantoms[0])["gts"]
    assert [len(own) for own in case.prompts] == [1] * len(CT_CLASSES)
    for value, (box,) in zip(np.unique(label)[1:], case.prompts, strict=True):
        (z0, y0, x0), (z1, y1, x1) = (map(int, corner) for corner in (box.start_zyx, box.stop_zyx))
        slices = np.flatnonzero((label == value).any(axis=(1, 2)))
        assert (z0, z1) == (slices[0], slices[-1] + 1)
        middle = label[slices[len(slices) // 2]] == value
        assert middle[y0:y1, x0:x1].sum() == middle.sum()


def test_hearts_have_no_boxes(phantoms):
    assert read_challenge_case(phantoms[1]).prompts == []


def test_the_command_writes_and_prints_the_cases_of_its_seed(tmp_path, monkeypatch, capsys):
    words = ["--out", str(tmp_path / "made"), "--cases", "2", "--seed", "5"]
    monkeypatch.setattr(sys, "argv", ["phantoms", *words])
    with pytest.raises(SystemExit, match="0"):
        command.main()
    expected = write_phantoms(tmp_path / "expected", 2, seed=5)
    made = sorted((tmp_path / "made").iterdir())
    assert [path.name for path in made] == [path.name for path in expected]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in made]
    for path, other in zip(made, expected, strict=True):
        with np.load(path) as own, np.load(other) as theirs:
            np.testing.assert_array_equal(own["imgs"], theirs["imgs"])
