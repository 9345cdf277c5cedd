"""The image check replays the clicks of the own image on wrong images."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from small_cases import write_prepared
from small_networks import RULE, save_student, small_sam
from test_clicks_protocol import CPU, Oracle
from validation_helpers import rows, run

import validation_student
from utils.cases.prepared import find_cases
from utils.files.nifti import read_nifti
from utils.results.ball import ball_nsd
from utils.validation import image_check
from utils.validation.clicks import Evaluator
from utils.validation.image_check import IMAGES, ImageCheck, image_share, other_cases, shuffled
from utils.validation.image_tables import ImageCheckResult
from utils.validation.scores import CaseScore
from utils.volumes.crops import Crop
from utils.volumes.geometry import CropRule


def record_clicks(model) -> list:
    """Return a list that gets the points of every call of the prompt encoder."""
    seen = []

    def note(module, args, inputs):  # a function: the engine works on a copy of the network
        seen.append(tuple(tensor.clone() for tensor in inputs["points"]))

    model.prompt_encoder.register_forward_pre_hook(note, with_kwargs=True)
    return seen


class Blind(torch.nn.Module):
    """A network that does not look at the image: its mask is a box about the first click."""

    mask_threshold = 0.0

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config
        self.prompt_encoder = model.prompt_encoder
        seen = record_clicks(model)
        self.points = lambda: seen[-1]

    def image_encoder(self, image):
        return self.model.image_encoder(torch.zeros_like(image))

    def mask_decoder(self, **inputs):
        coords, _ = self.points()
        cell = self.config.encoder.img_size / self.config.low_res_size
        middle = ((coords[0, 0] + 0.5) / cell).tolist()
        axes = [torch.arange(self.config.low_res_size) + 0.5 - c for c in middle]
        far = torch.stack(torch.meshgrid(*axes, indexing="ij")).abs().amax(0)
        return (3.0 + len(coords[0]) / 4 - far)[None, None], torch.ones(1, 1)


@pytest.fixture
def cases(tmp_path):
    return find_cases([write_prepared(tmp_path / "tree", cases=2)])


def checked(network, cases, clicks=3, rule=RULE) -> CaseScore:
    evaluator = Evaluator(network, rule, num_clicks=clicks, **CPU)
    return evaluator.run_case(cases[0], ImageCheck(cases[1])).score


def by_image(score: CaseScore) -> dict:
    return {image.image: image for image in score.targets[0].images}


def test_a_network_that_does_not_look_has_an_image_share_of_0(cases):
    score = checked(Blind(small_sam()), cases)
    target, images = score.targets[0], by_image(score)
    assert list(images) == list(IMAGES[1:])
    for image in images.values():
        assert image.dsc == target.dsc[1:]
        assert image.nsd == target.nsd[1:]
    result = ImageCheckResult.of([score], (1.0, 0.0, 0.0))  # a ball that is worse
    assert result.shares("dsc") == result.shares("nsd") == {1: 0.0, 3: 0.0}


def test_a_network_that_looks_loses_its_scores_on_noise(cases):
    oracle = Oracle(small_sam(), lambda image: image > image.median() + 0.5)
    score = checked(oracle, cases, rule=CropRule(size=32, spacing_mm=0.6))
    target, images = score.targets[0], by_image(score)
    assert target.dsc[1] > 0.9
    assert images["noise"].dsc[0] < 0.5
    assert images["own, smoothed"].dsc[0] < target.dsc[1] - 0.05
    assert images["own, shuffled"].dsc[0] < target.dsc[1] - 0.05
    share = ImageCheckResult.of([score], (6.0, 0.5, 0.5)).shares("dsc")[1]
    assert share > 1  # noise is below the ball


def test_replayed_clicks_are_the_own_ones_and_new_clicks_are_not(cases):
    model = small_sam()
    seen = record_clicks(model)
    looking = Oracle(model, lambda image: image > image.median() + 0.5)
    rule = CropRule(size=32, spacing_mm=0.6)
    evaluator = Evaluator(looking, rule, num_clicks=3, **CPU)
    seen.clear()  # of the warm-up
    score = evaluator.run_case(cases[0], ImageCheck(cases[1])).score
    count = len(score.targets[0].clicks)
    assert count == 3
    own, *wrong = (seen[n : n + count] for n in range(0, len(seen), count))
    others = dict(zip([image.image for image in score.targets[0].images], wrong, strict=True))

    def same(run):
        pairs = [pair for turn in zip(own, run, strict=True) for pair in zip(*turn, strict=True)]
        return all(torch.equal(a, b) for a, b in pairs)

    assert {image for image, run in others.items() if same(run)} == set(others) - {
        "noise, new clicks"
    }


def test_the_own_scores_are_those_without_the_check(cases):
    evaluator = Evaluator(small_sam(), RULE, num_clicks=2, **CPU)
    bare = evaluator.run_case(cases[0]).score.targets[0]
    with_check = evaluator.run_case(cases[0], ImageCheck(cases[1])).score.targets[0]
    assert (bare.dsc, bare.nsd, bare.clicks) == (with_check.dsc, with_check.nsd, with_check.clicks)
    assert bare.images == ()


def test_without_another_case_the_others_are_checked(cases):
    evaluator = Evaluator(small_sam(), RULE, num_clicks=1, **CPU)
    score = evaluator.run_case(cases[0], ImageCheck(None)).score
    assert set(by_image(score)) == set(IMAGES) - {"own", "another case"}


def test_the_other_case_is_the_next_of_the_data_set_with_another_image(tmp_path):
    tree = tmp_path / "tree"
    folders = [
        write_prepared(tree, cases=1),
        write_prepared(tree, cases=2, organ="spleen"),
        write_prepared(tree, cases=1, organ="spleen", dataset="MR_B"),
    ]
    cases = find_cases(folders)
    others = [other.sample_id for other in other_cases(cases)]
    assert dict(zip([case.sample_id for case in cases], others, strict=True)) == {
        "liver/CT_A/CT_A_0": "spleen/CT_A/CT_A_1",  # the spleen of CT_A_0 has the same image
        "spleen/CT_A/CT_A_0": "spleen/CT_A/CT_A_1",
        "spleen/CT_A/CT_A_1": "liver/CT_A/CT_A_0",
        "spleen/MR_B/MR_B_0": "liver/CT_A/CT_A_0",  # there is no other of MR_B
    }
    assert list(other_cases(cases[-1:])) == [None]


def crop_of(image: np.ndarray) -> Crop:
    return Crop(image, np.zeros(image.shape, bool), None, 1.0)


@pytest.mark.parametrize(("size", "edge"), [(32, 8), (36, 6)])
def test_shuffling_keeps_the_voxels_of_each_block(size, edge):
    image = np.arange(size**3, dtype=np.float32).reshape(size, size, size)
    found = shuffled(image, np.random.default_rng(0))
    assert (found != image).mean() > 0.9
    for start in ((0, 0, 0), (edge, 2 * edge, 3 * edge)):
        box = tuple(slice(s, s + edge) for s in start)
        np.testing.assert_array_equal(
            np.sort(found[box], axis=None), np.sort(image[box], axis=None)
        )


def test_smoothing_is_in_millimetres_and_noise_is_normalised_and_belongs_to_the_target():
    image = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    one, again, other, coarse = (
        image_check.wrong_images(crop_of(image), *how)
        for how in ((1.5, "a"), (1.5, "a"), (1.5, "b"), (3.0, "a"))
    )
    np.testing.assert_array_equal(one["noise"], again["noise"])
    np.testing.assert_array_equal(one["own, shuffled"], again["own, shuffled"])
    assert np.abs(one["noise"] - other["noise"]).mean() > 0.5
    assert one["noise"].mean() == pytest.approx(0, abs=1e-4)
    assert one["noise"].std() == pytest.approx(1, abs=1e-4)
    for found, voxels in ((one, 4.0), (coarse, 2.0)):  # 6 mm
        expected = ndimage.gaussian_filter(image, voxels, mode="nearest")
        np.testing.assert_allclose(found["own, smoothed"], expected, atol=1e-6)
    assert all(values.dtype == np.float32 for values in one.values())


def test_image_share_by_hand():
    assert image_share(0.6, 0.6, 0.4) == 0
    assert image_share(0.6, 0.5, 0.4) == pytest.approx(0.5)
    assert image_share(0.6, 0.4, 0.4) == pytest.approx(1)
    assert image_share(0.4, 0.3, 0.4) is None


@pytest.fixture
def flags(tmp_path) -> list:
    tree = tmp_path / "tree"
    folders = [write_prepared(tree, cases=2), write_prepared(tree, cases=1, organ="spleen")]
    return [
        *("--val-datas", *folders, "--num-clicks", 3, "--pictures", 0, "--no-predictions"),
        *("--checkpoint", save_student(tmp_path / "student.pth"), "--out-dir", tmp_path / "out"),
    ]


def test_the_scripts_leave_the_check_in_table_summary_report_and_print(flags, tmp_path):
    summary = run(validation_student, [*flags, "--image-check", "--ceiling"])
    out = tmp_path / "out"
    table = rows(out / "image_check.csv")
    assert [row["image"] for row in table] == 3 * list(IMAGES)
    own = [row for row in table if row["image"] == "own"]
    assert [row["DSC_3"] for row in own] == [row["DSC_3"] for row in rows(out / "cases.csv")]
    content = json.loads((out / "summary.json").read_text())
    assert set(content["image_check"]["curves"]) == set(IMAGES)
    assert set(content["image_check"]["image_share_dsc"]) == {"1", "3"}
    assert content["ceiling"]["ceiling_DSC"] > 0.8
    report = (out / "report.html").read_text()
    assert "Does the network look at the image?" in report
    assert "image share" in report
    assert "What the grid loses, and what the network loses" in report
    assert "image share at clicks 1 3: DSC" in str(summary)
    assert "ceiling of the mask's grid: DSC" in str(summary)


def test_the_balls_nsd_is_that_of_the_best_radius(flags, tmp_path):
    summary = run(validation_student, [*flags, "--image-check"])
    nsds = []
    for path in sorted((tmp_path / "out/cases").rglob("*.json")):
        score = json.loads(path.read_text())["score"]
        labels = tmp_path / "tree" / score["targets"][0]["organ"] / "CT_A/labelsTr"
        label = read_nifti(labels / f"{path.stem}.nii.gz").array
        click = score["targets"][0]["clicks"][0][:3]
        spacing = score["spacing_xyz"][::-1]
        nsds.append(ball_nsd(label > 0, click, spacing, summary.ball_radius_mm))
    assert summary.image_check.ball_nsd == pytest.approx(np.mean(nsds))


def test_the_check_resumes_and_does_not_depend_on_workers(flags, tmp_path):
    first = run(validation_student, [*flags, "--image-check"])
    table = (tmp_path / "out/image_check.csv").read_bytes()
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out/cases").rglob("*.json")}
    assert run(validation_student, [*flags, "--image-check"]) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out/cases").rglob("*.json")} == times
    run(validation_student, [*flags, "--image-check", "--workers", 2, "--out-dir", tmp_path / "2"])
    assert (tmp_path / "2/image_check.csv").read_bytes() == table


def test_a_change_of_the_other_case_scores_the_case_anew(flags, tmp_path):
    run(validation_student, [*flags, "--image-check"])
    path = tmp_path / "out/cases/liver/CT_A/CT_A_0.json"
    before = path.stat().st_mtime_ns
    (tmp_path / "tree/liver/CT_A/imagesTr/CT_A_1.nii.gz").touch()
    run(validation_student, [*flags, "--image-check"])
    assert path.stat().st_mtime_ns != before


def test_without_the_flags_nothing_of_it_is_computed(flags, tmp_path):
    summary = run(validation_student, flags)
    assert summary.image_check is None
    assert summary.ceiling is None
    assert not (tmp_path / "out/image_check.csv").exists()
    assert "Does the network look" not in (tmp_path / "out/report.html").read_text()
    (table,) = {tuple(row) for row in rows(tmp_path / "out/cases.csv")}
    assert not any("ceiling" in column for column in table)
