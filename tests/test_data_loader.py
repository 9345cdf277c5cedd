import numpy as np
import pytest
from small_cases import write_prepared
from small_networks import RULE

from utils.training.crop_cache import build_cache
from utils.training.data_loader import BalancedBatches, CropDataset, Draw, make_loader
from utils.training.seeds import CLICKING


def _rows(**sizes):
    return [{"organ": organ, "dataset": "A"} for organ, n in sizes.items() for _ in range(n)]


@pytest.fixture
def index(tmp_path):
    return build_cache([write_prepared(tmp_path / "tree")], tmp_path / "crops", workers=1)


def test_a_large_group_is_drawn_by_the_root_of_its_size():
    rows = _rows(liver=90, pancreas=10)
    drawn = [d.index for batch in BalancedBatches(rows, 10, 1000, seed=0) for d in batch]
    livers = np.mean(np.array(drawn) < 90)
    assert livers == pytest.approx(90**0.5 / (90**0.5 + 10**0.5), abs=0.02)


def test_batches_restarted_at_a_step_are_those_of_the_whole_run():
    rows = _rows(liver=7, spleen=3)
    whole = list(BalancedBatches(rows, 4, 10, seed=5))
    assert list(BalancedBatches(rows, 4, 10, seed=5, start=6)) == whole[6:]
    assert list(BalancedBatches(rows, 4, 10, seed=6)) != whole


def test_augmentation_depends_on_the_draw_alone(index):
    dataset = CropDataset(index, RULE, augment="basic", seed=3)
    first, again, other = dataset[Draw(1, 8)], dataset[Draw(1, 8)], dataset[Draw(1, 9)]
    assert (first["image"] == again["image"]).all()
    assert (first["image"] != other["image"]).any()


def test_a_loader_gives_batches_with_ids(index):
    loader = make_loader(
        CropDataset(index, RULE, augment="basic"), BalancedBatches(index.samples, 2, 3, 0), 0
    )
    batches = list(loader)
    assert len(batches) == 3
    assert batches[0]["image"].shape == batches[0]["label"].shape == (2, 1, 32, 32, 32)
    assert all(i.startswith("liver/CT_A/CT_A_") for i in batches[0]["id"])


def test_torchio_turns_image_and_label_alike(index):
    plain, turned = (CropDataset(index, RULE, augment=a, seed=1) for a in ("basic", "torchio"))
    changed = 0
    for number in range(6):
        item = turned[Draw(0, number)]
        inside = item["image"][item["label"]].mean()
        assert inside > item["image"][~item["label"]].mean() + 1  # the ball stays the bright part
        changed += (plain[Draw(0, number)]["image"] != item["image"]).any().item()
    assert changed >= 3
    assert (turned[Draw(0, 3)]["image"] == turned[Draw(0, 3)]["image"]).all()


def test_an_unreadable_sample_comes_as_a_message_from_a_worker(index):
    (index.folder / index.samples[0]["file"]).write_bytes(b"")
    loader = make_loader(CropDataset(index, RULE), BalancedBatches(index.samples[:1], 1, 1, 0), 1)
    assert "CT_A_0.npz: not readable" in next(iter(loader))["error"]


def test_which_sample_is_drawn_does_not_decide_where_it_is_clicked():
    rows = _rows(liver=10)
    first, central = [], []
    for (draw,) in BalancedBatches(rows, 1, 400, seed=0):
        first.append(draw.index < 5)
        central.append(np.random.default_rng([0, draw.number, CLICKING]).random() < 0.5)
    assert abs(np.corrcoef(first, central)[0, 1]) < 0.15


def test_ranks_and_passes_share_the_draws_of_one_rank_with_the_whole_batch():
    rows = _rows(liver=10, spleen=3)
    whole = list(BalancedBatches(rows, 12, 5, seed=0, start=2))
    parts = [
        list(BalancedBatches(rows, 2, 5, seed=0, start=2, passes=3, rank=r, world=2))
        for r in (0, 1)
    ]
    assert [len(part) for part in parts] == [9, 9]
    for step, draws in enumerate(whole):
        shared = [
            draw for part in parts for batch in part[3 * step : 3 * step + 3] for draw in batch
        ]
        assert sorted(shared, key=lambda draw: draw.number) == draws
