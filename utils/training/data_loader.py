"""Batches of crops from the cache; the order depends on the seed alone."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import InputError, require_number
from utils.run.flags import MAX_SEED, share
from utils.training.augment import contrast, distort, place
from utils.training.crop_cache import CropIndex, read_target
from utils.training.generated import generated_volume
from utils.training.loader import BatchLoader
from utils.training.regions import region_target
from utils.training.seeds import AUGMENTING, SAMPLING, TARGETS, stream
from utils.training.sources import (
    SOURCE_FLAGS,
    Source,
    TargetShares,
    add_source_arguments,
    target_shares,
)
from utils.volumes.geometry import CropRule

AUGMENTATIONS = ("none", "basic", "torchio")
#: Names of the flags of an augmented `CropDataset`, without dashes.
CROP_FLAGS = ("augment", "zoom_share", "flip_share", *SOURCE_FLAGS)


def add_crop_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of an augmented `CropDataset`."""
    group.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="basic",
        help="augmentation of crops; basic: place, zoom, flips, contrast; torchio: also rotation, "
        "bias field, gamma and noise, which is slow (default: basic)",
    )
    group.add_argument(
        "--zoom-share",
        type=share,
        default=0.5,
        help="share of the crops whose spacing is chosen so that the target fills a quarter to "
        "nine tenths of the edge; 0 = none (default: 0.5)",
    )
    group.add_argument(
        "--flip-share",
        type=share,
        default=0.5,
        help="share of the crops that are flipped, for each axis on its own; 0 = none "
        "(default: 0.5)",
    )
    add_source_arguments(group)


def augmentation(args: argparse.Namespace) -> dict[str, object]:
    """Return the arguments of a `CropDataset` that the flags in `CROP_FLAGS` and --seed give."""
    return {
        "augment": args.augment,
        "zoom_share": args.zoom_share,
        "flip_share": args.flip_share,
        "shares": target_shares(args),
        "seed": args.seed,
    }


@dataclass(frozen=True)
class Draw:
    """One sample of a run: which target, and the number that seeds its random choices."""

    index: int  # of the target in the crop index
    number: int  # of the sample in the run, from 0; seeds its augmentation and clicks
    done: float = 0.0  # share of the run in [0, 1) when it was sent to the loader; what fades


class BalancedBatches:
    """Batches of `Draw` that depend on the seed alone, and can start at any step.

    An (organ, data set) with n samples is drawn with weight sqrt(n), spread evenly over its
    samples. 500 livers are drawn 10 times as often as 5 pancreata, not 100 times; a single pancreas
    is drawn 10 times as often as a single liver, not 100 times as with equal weights.

    A step draws ``batch_size * passes * world`` samples. With one seed the samples depend only on
    this product, so that passes and ranks share the samples of one large batch.

    Args:
        samples: rows of the crop index.
        steps: optimizer steps of the run, of which ``start`` are done; None = without end.
        passes: micro-batches in a step, whose gradients are added up.
        rank: number of this process.
        world: how many processes there are.
        done_of: returns `Draw.done` of the samples of a step, counted from 0; by default the share
            of the steps before it.
    """

    def __init__(
        self,
        samples: Sequence[dict],
        batch_size: int,
        steps: int | None,
        seed: int,
        start: int = 0,
        *,
        passes: int = 1,
        rank: int = 0,
        world: int = 1,
        done_of: Callable[[int], float] | None = None,
    ) -> None:
        groups = [(s["organ"], s["dataset"]) for s in samples]
        sizes = Counter(groups)
        weights = np.array([sizes[group] ** -0.5 for group in groups])
        self._shares = weights / weights.sum()
        self._start, self._steps, self._seed, self._passes = start, steps, seed, passes
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._done_of = done_of or (lambda step: step / steps if steps else 0.0)

    def __iter__(self) -> Iterator[list[Draw]]:
        size = self._batch_size
        start, steps = self._start, self._steps
        for step in count(start) if steps is None else range(start, steps):
            rng = stream(self._seed, step, SAMPLING)
            whole = size * self._passes * self._world
            drawn = rng.choice(len(self._shares), whole, p=self._shares)
            done = self._done_of(step)
            draws = [Draw(int(i), step * whole + n, done) for n, i in enumerate(drawn)]
            for number in range(self._rank, self._passes * self._world, self._world):
                yield draws[number * size : (number + 1) * size]


LABELS_ALONE = TargetShares()


class CropDataset(Dataset):
    """Crops of a cache, by their number in the index or by a `Draw`.

    An item is a dict: ``image`` (1, S, S, S) float32, normalised; ``label`` (1, S, S, S) bool,
    never empty; ``source``, where the label comes from; ``id``, the sample's id; ``number``, of the
    `Draw`; ``crop``, the identity of image and mask, and the grid of the cut (of a generated volume
    its name alone). The axes are the network's: right, anterior, superior::

        index = read_index(Path("work_dir/crops"))
        CropDataset(index, CropRule())[0]["image"].shape    # (1, 128, 128, 128)

    Args:
        index: of the crop cache.
        rule: size S and spacing of the crops.
        augment: ``none``: centred on the target. ``basic``: place, zoom, flips and contrast vary
            with the `Draw`. ``torchio``: also rotation, bias field, gamma and noise.
        zoom_share: share of the augmented crops whose spacing is chosen from the target's size.
        flip_share: share of the augmented crops that are flipped, for each axis.
        shares: of the augmented samples with other targets than labels; needs an augmentation.
        seed: seeds the augmentation, together with the number of the `Draw`.

    Raises:
        InputError: an argument is out of its range; or, on reading an item, a file of the cache is
            missing, damaged or has changed.
    """

    def __init__(
        self,
        index: CropIndex,
        rule: CropRule,
        *,
        augment: str = "none",
        zoom_share: float = 0.5,
        flip_share: float = 0.5,
        shares: TargetShares = LABELS_ALONE,
        seed: int = 0,
    ) -> None:
        if augment not in AUGMENTATIONS:
            raise InputError(
                f"--augment: found {augment!r}, expected one of {', '.join(AUGMENTATIONS)}."
            )
        require_number("--zoom-share", zoom_share, 0, 1)
        require_number("--flip-share", flip_share, 0, 1)
        if augment == "none" and shares:
            raise InputError(
                "--region-share, --generated-share: found with --augment none, expected --augment "
                "basic or torchio. Leave the shares out, or choose another --augment."
            )
        require_number("--seed", seed, 0, MAX_SEED, whole=True)
        self.index, self.rule = index, rule
        self.augment, self.seed = augment, seed
        self.zoom_share, self.flip_share = zoom_share, flip_share
        self.shares = shares

    def __len__(self) -> int:
        return len(self.index.samples)

    def __getitem__(self, draw: Draw | int) -> dict:
        draw = draw if isinstance(draw, Draw) else Draw(draw, draw)
        source, choices = self._source(draw)
        if source == "generated":
            return self._generated(draw, choices)
        target = read_target(self.index.folder, self.index.samples[draw.index])
        rng = None
        if self.augment == "none":
            crop = target.cut_centred(self.rule)
        else:
            rng = stream(self.seed, draw.number, AUGMENTING)
            shares = self.zoom_share, self.flip_share
            crop = target.cut(place(target.row, self.rule, rng, *shares))
            if not crop.label.any():  # such as a crop inside the hole of a ring
                crop = target.cut_centred(self.rule)
        image, label = (torch.from_numpy(part)[None] for part in (crop.image, crop.label))
        if self.augment == "torchio":
            image, label = distort(image, label, rng)
        if source == "region":
            region = region_target(image[0].numpy(), label[0].numpy(), choices)
            if region is None:  # such as in a crop of one intensity
                source = "label"
            else:
                label = torch.from_numpy(region)[None]
        return {
            "image": contrast(image, rng) if rng else image,
            "label": label,
            "source": source,
            "id": target.row["sample_id"],
            "number": draw.number,
            "crop": target.identity | {"grid": asdict(crop.grid)},
        }

    def _source(self, draw: Draw) -> tuple[Source, np.random.Generator | None]:
        """Return where the target of a draw comes from, and the generator of its choices."""
        if not self.shares:
            return "label", None
        choices = stream(self.seed, draw.number, TARGETS)
        return self.shares.source(draw.done, choices), choices

    def _generated(self, draw: Draw, choices: np.random.Generator) -> dict:
        """Return a generated volume as an item; nothing is read from the cache."""
        parts = generated_volume(self.rule.size, choices)
        image, label = (torch.from_numpy(part)[None] for part in parts)
        name = f"generated/volume/{draw.number}"
        return {
            "image": contrast(image, stream(self.seed, draw.number, AUGMENTING)),
            "label": label,
            "source": "generated",
            "id": name,
            "number": draw.number,
            "crop": {"sample_id": name},
        }


def collate(items: list[dict]) -> dict:
    """Stack tensors, list other values."""
    first = items[0]
    return {
        key: torch.stack([i[key] for i in items])
        if isinstance(first[key], Tensor)
        else [i[key] for i in items]
        for key in first
    }


class _Load:
    """Makes batches; returns the message of an unreadable sample, since an error ends a worker."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, draws: Sequence[Draw]) -> dict:
        try:
            return collate([self.dataset[draw] for draw in draws])
        except InputError as error:
            return {"error": str(error)}


def make_loader(dataset: Dataset, batches: Iterable[list[Draw]], workers: int) -> BatchLoader:
    """Return the loader of a run; a batch with an unreadable sample is ``{"error": message}``.

    Args:
        batches: the samples of each batch.
        workers: processes that load; 0 = load in this process.
    """
    return BatchLoader(_Load(dataset), batches, workers)
