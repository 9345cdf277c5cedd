"""Crops -> batches: one dict type, deterministic order, the sample's id always with it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.crops import CropIndex, read_crop


@dataclass(frozen=True)
class Draw:
    """One sample of a run: which crop, and its place in the run, which seeds its augmentation."""

    index: int
    number: int


class BalancedBatches:
    """Batches of `Draw`, the same for the same seed, restartable at any step.

    An (organ, data set) with n samples is drawn with weight sqrt(n), spread evenly over its
    samples, so that 500 livers don't drown 5 pancreata and 5 pancreata aren't learnt by heart.
    """

    def __init__(
        self, samples: Sequence[dict], batch_size: int, steps: int, seed: int, start: int = 0
    ) -> None:
        groups = [(s["organ"], s["dataset"]) for s in samples]
        sizes = Counter(groups)
        weights = np.array([sizes[group] ** -0.5 for group in groups])
        self._shares = weights / weights.sum()
        self._batch_size, self._steps, self._seed, self._start = batch_size, steps, seed, start

    def __len__(self) -> int:
        return self._steps - self._start

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self._start, self._steps):
            rng = np.random.default_rng([self._seed, step])
            drawn = rng.choice(len(self._shares), self._batch_size, p=self._shares)
            yield [Draw(int(i), step * self._batch_size + n) for n, i in enumerate(drawn)]


class CropDataset(Dataset):
    """Crops as dicts: ``image`` (1, S, S, S) float, ``label`` (1, S, S, S) bool, ``id``.

    With ``augment`` a `Draw` decides flips, a shift of up to an eighth of the cube and a change
    of contrast; without it a plain integer gives the crop as it is.
    """

    def __init__(self, index: CropIndex, *, augment: bool = False, seed: int = 0) -> None:
        self.index, self.augment, self.seed = index, augment, seed

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getitem__(self, draw: Draw | int) -> dict:
        number = draw.index if isinstance(draw, Draw) else draw
        sample = self.index.samples[number]
        image, label, _ = read_crop(self.index.folder / sample["file"])
        gain, offset = 1.0, 0.0
        if self.augment:
            rng = np.random.default_rng([self.seed, draw.number])
            image, label = move(image, label, rng)
            gain, offset = rng.uniform(0.8, 1.25), rng.uniform(-0.2, 0.2)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image))[None].float() * gain + offset,
            "label": torch.from_numpy(np.ascontiguousarray(label))[None],
            "id": sample["sample_id"],
        }


def move(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Flip and shift one crop; a shift that would lose target voxels is left out."""
    for axis in range(3):
        if rng.random() < 0.5:
            image, label = np.flip(image, axis), np.flip(label, axis)
    shift = rng.integers(-label.shape[0] // 8, label.shape[0] // 8 + 1, size=3)
    moved = _shifted(label, shift, False)
    if np.count_nonzero(moved) == np.count_nonzero(label):
        # What comes in is what most of the border shows, not an extreme.
        image, label = _shifted(image, shift, np.median(image[0])), moved
    return image, label


def _shifted(array: np.ndarray, shift: Sequence[int], fill: float) -> np.ndarray:
    """Move the content by whole voxels; what comes in from outside is ``fill``."""
    out = np.full_like(array, fill)
    into = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, array.shape, strict=True))
    source = tuple(
        slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, array.shape, strict=True)
    )
    out[into] = array[source]
    return out


def collate(items: list[dict]) -> dict:
    """Stack tensors, list everything else."""
    first = items[0]
    return {
        key: torch.stack([i[key] for i in items])
        if isinstance(first[key], Tensor)
        else [i[key] for i in items]
        for key in first
    }


def make_loader(dataset: Dataset, batches: BalancedBatches, workers: int) -> DataLoader:
    """Return the loader of a training run."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
