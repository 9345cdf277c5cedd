"""Where targets come from: shares that fade over a run, and what they leave unchanged."""

import numpy as np
import pytest
from small_cases import write_prepared
from small_networks import RULE

from utils.errors import InputError
from utils.training.crop_cache import build_cache
from utils.training.data_loader import CropDataset, Draw
from utils.training.seeds import TARGETS, stream
from utils.training.sources import TargetShares

BOTH = TargetShares(region=0.5, generated=0.3)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return build_cache([write_prepared(folder / "tree")], folder / "crops", workers=1)


def sources(shares, done, count=2000):
    drawn = [shares.source(done, stream(0, number, TARGETS)) for number in range(count)]
    return {name: drawn.count(name) / count for name in ("label", "region", "generated")}


@pytest.mark.parametrize(
    ("done", "expected"),
    [(0.0, (0.2, 0.5, 0.3)), (0.5, (0.52, 0.3, 0.18)), (1.0, (0.84, 0.1, 0.06))],
)
def test_shares_fade_linearly_to_a_fifth(done, expected):
    drawn = sources(BOTH, done)
    assert list(drawn.values()) == pytest.approx(expected, abs=0.04)


def test_the_share_at_the_end_can_be_given():
    shares = TargetShares(region=0.6, region_end=0.12, generated_end=0.5)
    assert shares.at(0.0) == pytest.approx((0.6, 0))
    assert shares.at(0.25) == pytest.approx((0.48, 0.125))
    assert shares.at(1.0) == pytest.approx((0.12, 0.5))


def test_more_than_all_samples_are_refused():
    with pytest.raises(InputError, match=r"found 1\.2 of the samples at the start"):
        TargetShares(region=0.7, generated=0.5)
    with pytest.raises(InputError, match="at the end"):
        TargetShares(region=0.7, region_end=0.7, generated=0.1, generated_end=0.5)


@pytest.mark.parametrize("augment", ["basic", "torchio"])
def test_a_sample_that_keeps_its_label_is_the_sample_without_other_sources(index, augment):
    plain, mixed = (
        CropDataset(index, RULE, augment=augment, seed=2, shares=shares)
        for shares in (TargetShares(), BOTH)
    )
    found = set()
    for number in range(12):
        item, other = plain[Draw(0, number)], mixed[Draw(0, number)]
        found.add(other["source"])
        assert item["source"] == "label"
        if other["source"] != "generated":
            assert (item["image"] == other["image"]).all()
        if other["source"] == "label":
            assert (item["label"] == other["label"]).all()
            assert item["crop"] == other["crop"]
    assert {"label", "generated"} <= found


def test_a_region_takes_the_place_of_the_label(index):
    labels, regions = (
        CropDataset(index, RULE, augment="basic", shares=TargetShares(region=r)) for r in (0, 1)
    )
    made = 0
    for number in range(30):
        item, plain = regions[Draw(1, number)], labels[Draw(1, number)]
        if item["source"] == "region":
            made += 1
            assert item["label"].any()
            assert item["label"].shape == plain["label"].shape
            assert item["label"].dtype == plain["label"].dtype
            assert (item["label"] != plain["label"]).any()
    assert made >= 1


def test_a_generated_sample_reads_no_file(index):
    dataset = CropDataset(index, RULE, augment="basic", shares=TargetShares(generated=1))
    item = dataset[Draw(-99, 4)]
    assert item["id"] == "generated/volume/4"
    assert item["image"].shape == item["label"].shape == (1, 32, 32, 32)
    assert (item["image"] == dataset[Draw(0, 4)]["image"]).all()
    assert (item["image"] != dataset[Draw(0, 5)]["image"]).any()


def test_fewer_samples_are_generated_late_in_a_run(index):
    dataset = CropDataset(index, RULE, augment="basic", shares=TargetShares(generated=0.9))
    early, late = (
        np.mean([dataset[Draw(0, n, done)]["source"] == "generated" for n in range(20)])
        for done in (0.0, 1.0)
    )
    assert late < 0.5 < early


def test_crops_without_augmentation_keep_their_labels(index):
    with pytest.raises(InputError, match="--augment basic"):
        CropDataset(index, RULE, shares=TargetShares(region=0.5))
