"""Crops -> batches: one dict type, deterministic order, the sample's id always with it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.augment import contrast, distort, move
from utils.crops import CropIndex, read_crop
from utils.errors import InputError
from utils.runtime import AUGMENTING, SAMPLING

AUGMENTATIONS = ("none", "basic", "torchio")


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
            rng = np.random.default_rng([self._seed, step, SAMPLING])
            whole = size * self._passes * self._world
            drawn = rng.choice(len(self._shares), whole, p=self._shares)
            draws = [Draw(int(i), step * whole + n) for n, i in enumerate(drawn)]
            for number in range(self._rank, self._passes * self._world, self._world):
                yield draws[number * size : (number + 1) * size]


class CropDataset(Dataset):
    """Crops as dicts: ``image`` (1, S, S, S) float, ``label`` (1, S, S, S) bool, ``id``.

    ``number`` is the `Draw`'s, which seeds whatever is random about the sample.

    Args:
        augment: ``none`` gives each crop as it is, by number or `Draw`; ``basic`` flips, shifts
            and changes contrast as the `Draw` decides; ``torchio`` also rotates and distorts.
    """

    def __init__(self, index: CropIndex, *, augment: str = "none", seed: int = 0) -> None:
        self.index, self.augment, self.seed = index, augment, seed

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getitem__(self, draw: Draw | int) -> dict:
        draw = draw if isinstance(draw, Draw) else Draw(draw, draw)
        sample = self.index.samples[draw.index]
        path = self.index.folder / sample["file"]
        image, label, meta = read_crop(path)
        found = (meta["sample_id"], meta["rule"])
        if found != (sample["sample_id"], self.index.rule.to_dict()):
            raise InputError(
                f"{path}: found sample, rule {found}, expected {sample['sample_id']}, "
                f"{self.index.rule.to_dict()}.\nAnother run has cut these crops anew: run "
                "preparelabel.py again, or give each run a --crops-dir of its own."
            )
        rng = None
        if self.augment != "none":
            rng = np.random.default_rng([self.seed, draw.number, AUGMENTING])
            image, label = move(image, label, rng)
        image = torch.from_numpy(np.ascontiguousarray(image))[None].float()
        label = torch.from_numpy(np.ascontiguousarray(label))[None]
        if self.augment == "torchio":
            image, label = distort(image, label, rng)
        return {
            "image": contrast(image, rng) if rng else image,
            "label": label,
            "id": sample["sample_id"],
            "number": draw.number,
            "meta": meta,
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


def make_loader(dataset: Dataset, batches: BalancedBatches, workers: int) -> DataLoader:
    """Return the loader of a training run; an unreadable sample comes as ``{"error": message}``."""
    return DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
