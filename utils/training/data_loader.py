"""Crops -> batches: one dict type, deterministic order, the sample's id always with it."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.errors import InputError
from utils.training.augment import contrast, distort, place
from utils.training.crop_cache import CropIndex, read_target
from utils.training.seeds import AUGMENTING, SAMPLING, stream
from utils.volumes.geometry import CropRule

AUGMENTATIONS = ("none", "basic", "torchio")


def add_crop_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of an augmented `CropDataset`."""
    group.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="basic",
        help="of crops: basic: place, zoom, flips, contrast; torchio: rotation, bias field, gamma "
        "and noise too, which is slow (default: basic)",
    )
    group.add_argument(
        "--zoom-share",
        type=float,
        default=0.5,
        help="how often a crop's spacing suits its target, which then fills a quarter to nine "
        "tenths of it; 0 = never (default: 0.5)",
    )


@dataclass(frozen=True)
class Draw:
    """One sample of a run: which crop, and its place in the run, which seeds its augmentation."""

    index: int
    number: int


class BalancedBatches:
    """Batches of `Draw`, the same for the same seed, restartable at any step.

    An (organ, data set) with n samples is drawn with weight sqrt(n), spread evenly over its
    samples, so that 500 livers don't drown 5 pancreata and 5 pancreata aren't learnt by heart.

    A step draws ``batch_size * passes * world`` samples, whatever the three are: passes and ranks
    share the draws that one pass of one rank with so large a batch would have.

    Args:
        samples: rows of the crop index.
        steps: optimizer steps of the run; ``start`` of them are done.
        passes: batches a step, whose gradients are added up.
        rank, world: which process this is, of how many.
    """

    def __init__(
        self,
        samples: Sequence[dict],
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        *,
        passes: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        groups = [(s["organ"], s["dataset"]) for s in samples]
        sizes = Counter(groups)
        weights = np.array([sizes[group] ** -0.5 for group in groups])
        self._shares = weights / weights.sum()
        self._steps, self._seed, self._passes = range(start, steps), seed, passes
        self._batch_size, self._rank, self._world = batch_size, rank, world

    def __len__(self) -> int:
        return len(self._steps) * self._passes

    def __iter__(self) -> Iterator[list[Draw]]:
        size = self._batch_size
        for step in self._steps:
            rng = stream(self._seed, step, SAMPLING)
            whole = size * self._passes * self._world
            drawn = rng.choice(len(self._shares), whole, p=self._shares)
            draws = [Draw(int(i), step * whole + n) for n, i in enumerate(drawn)]
            for number in range(self._rank, self._passes * self._world, self._world):
                yield draws[number * size : (number + 1) * size]


class CropDataset(Dataset):
    """Crops as dicts: ``image`` (1, S, S, S) float, ``label`` (1, S, S, S) bool, ``id``.

    ``number`` is the `Draw`'s, which seeds whatever is random about the sample; ``crop`` says what
    was cut where.

    Args:
        rule: the cube that the network sees.
        augment: ``none`` gives each target centred, by number or `Draw`; ``basic`` places, zooms
            and flips the crop and changes contrast, as the `Draw` decides; ``torchio`` also rotates
            and distorts.
        zoom_share: how often an augmented crop has a spacing that suits its target's size.
    """

    def __init__(
        self,
        index: CropIndex,
        rule: CropRule,
        *,
        augment: str = "none",
        zoom_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.index, self.rule = index, rule
        self.augment, self.zoom_share, self.seed = augment, zoom_share, seed

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getitem__(self, draw: Draw | int) -> dict:
        draw = draw if isinstance(draw, Draw) else Draw(draw, draw)
        target = read_target(self.index.folder, self.index.samples[draw.index])
        rng = None
        if self.augment == "none":
            crop = target.cut_centred(self.rule)
        else:
            rng = stream(self.seed, draw.number, AUGMENTING)
            crop = target.cut(place(target.row, self.rule, rng, self.zoom_share))
            if not crop.label.any():  # a ring, and the cube in its middle
                crop = target.cut_centred(self.rule)
        image, label = (torch.from_numpy(part)[None] for part in (crop.image, crop.label))
        if self.augment == "torchio":
            image, label = distort(image, label, rng)
        return {
            "image": contrast(image, rng) if rng else image,
            "label": label,
            "id": target.row["sample_id"],
            "number": draw.number,
            "crop": target.identity | {"grid": asdict(crop.grid)},
        }


def collate(items: list[dict]) -> dict:
    """Stack tensors, list everything else; an item that could not be read takes over the batch."""
    for item in items:
        if "error" in item:
            return item
    first = items[0]
    return {
        key: torch.stack([i[key] for i in items])
        if isinstance(first[key], Tensor)
        else [i[key] for i in items]
        for key in first
    }


class _Guarded(Dataset):
    """Hands an `InputError` over as an item: a worker process would wrap it in its traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> dict:
        try:
            return self.dataset[draw]
        except InputError as error:
            return {"error": str(error)}


def make_loader(dataset: Dataset, batches: Iterable[list[Draw]], workers: int) -> DataLoader:
    """Return the loader of a training run; an unreadable sample comes as ``{"error": message}``."""
    return DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
