"""The teacher's outputs on disk, for distillation: what, whose, and of which crops.

Of each sample ``image_embedding`` (C, g, g, g), ``low_res_masks`` (clicks, s, s, s) and, where
asked for, ``hidden_<n>`` (g, g, g, C) after block n, in half precision by default; ``click_coords``
(clicks, 3), ``click_labels`` (clicks,) and ``predicted_iou`` (clicks,). Crops are centred and not
augmented. ``teacher.pt`` beside them is the teacher itself.
"""

import argparse
import json
import logging
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from segment_anything import Sam3D, SamConfig, autocast, fingerprint
from utils.errors import InputError
from utils.files.disk_space import readable, require_space
from utils.run.flags import non_negative_int, positive_int
from utils.run.ranks import rank, wait_for_all, world_size
from utils.training.crop_cache import CropIndex
from utils.training.data_loader import CropDataset, Draw, make_loader
from utils.training.seeds import CLICKING, stream
from utils.training.teacher_outputs import teacher_outputs
from utils.training.tensor_shards import Shards, ShardWriter, finish, open_shards, written_rows
from utils.volumes.geometry import CropRule

logger = logging.getLogger(__name__)

TEACHER = "teacher.pt"
PRECISIONS = ("float16", "bfloat16", "float32")
#: What is large, and stored in the precision that was asked for.
LARGE = ("image_embedding", "low_res_masks", "hidden_")


@dataclass(frozen=True)
class StoreConfig:
    """What is stored; the fields are the flags of preparelabel.py."""

    num_clicks: int
    layers: tuple[int, ...]
    precision: str
    seed: int
    shard_bytes: int = 2**28

    @property
    def content(self) -> dict:
        """Return what decides on the numbers."""
        return {
            "num_clicks": self.num_clicks,
            "layers": list(self.layers),
            "precision": self.precision,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class TeacherStore:
    """Stored outputs of every sample of a `CropIndex`."""

    shards: Shards
    samples: list[dict]

    @property
    def folder(self) -> Path:
        return self.shards.folder

    @property
    def fingerprint(self) -> str:
        """Tell which teacher it was."""
        return self.shards.common["teacher"]

    @property
    def layers(self) -> tuple[int, ...]:
        """Tell after which blocks there are hidden states."""
        return tuple(self.shards.common["layers"])


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `StoreConfig`."""
    store = parser.add_argument_group("stored outputs")
    store.add_argument(
        "--stored-clicks",
        type=positive_int,
        default=5,
        help="clicks stored for each sample (default: 5)",
    )
    store.add_argument(
        "--store-layers",
        type=non_negative_int,
        nargs="*",
        default=[],
        metavar="N",
        help="store the hidden states after these blocks too, counted from 1, for distillation "
        "layer by layer (default: none)",
    )
    store.add_argument(
        "--store-precision",
        choices=PRECISIONS,
        default="float16",
        help="of embeddings, masks and hidden states (default: float16)",
    )
    store.add_argument(
        "--shard-mb",
        type=positive_int,
        default=256,
        help="size of a file of the store; a run that is killed loses one at most (default: 256)",
    )


def store_config(args: argparse.Namespace) -> StoreConfig:
    """Collect the flags of `add_store_arguments`."""
    layers = tuple(sorted(set(args.store_layers)))
    return StoreConfig(
        args.stored_clicks, layers, args.store_precision, args.seed, args.shard_mb * 2**20
    )


def bytes_per_sample(network: SamConfig, config: StoreConfig) -> int:
    """Return the size of a sample's outputs on disk."""
    encoder = network.encoder
    tokens = encoder.grid_size**3
    large = tokens * encoder.embedding_chans + config.num_clicks * encoder.low_res_size**3
    large += len(config.layers) * tokens * encoder.embed_dim
    return large * getattr(torch, config.precision).itemsize + config.num_clicks * 24


@torch.inference_mode()
def store_outputs(
    teacher: Sam3D,
    index: CropIndex,
    out_dir: Path,
    *,
    rule: CropRule,
    config: StoreConfig,
    device: torch.device,
    precision: torch.dtype,
    batch_size: int = 1,
    workers: int = 0,
) -> TeacherStore:
    """Run the teacher on every target, centred, and store what it says; stored ones are kept.

    Outputs of another teacher, of other flags, or of a target that has changed since, are made
    again, and removed once all are there. Ranks store every n-th sample each.

    Raises:
        InputError: the teacher has no such layer, the disk has too little room, or a number is too
            large for the store's precision.
    """
    require_layers(teacher, config)
    teacher.to(device).eval()
    common = {"teacher": fingerprint(teacher), "rule": rule.to_dict()} | config.content
    whose = blake2b(json.dumps(common).encode(), digest_size=8).hexdigest()
    targets = {s["sample_id"]: [s["image"], s["mask"]] for s in index.samples}
    numbers = {s["sample_id"]: number for number, s in enumerate(index.samples)}

    def is_current(row: dict) -> bool:
        return row["whose"] == whose and targets.get(row["sample_id"]) == row["target"]

    stored = written_rows(out_dir, is_current)
    size, missing = bytes_per_sample(teacher.config, config), len(targets.keys() - stored.keys())
    need = size * missing
    if rank() == 0:
        logger.info(
            "store: %d samples of %s, %d are there; %s more",
            *(len(targets), readable(size), len(stored), readable(need)),
        )
        advice = "store fewer --store-layers or --stored-clicks, or distil with --online"
        require_space(out_dir, need, "the store of teacher outputs", advice)
    wait_for_all()
    mine = [s for s in list(targets)[rank() :: world_size()] if s not in stored]
    draws = [Draw(numbers[sample_id], numbers[sample_id]) for sample_id in mine]
    batches = [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]
    writer = ShardWriter(out_dir, rank(), config.shard_bytes)
    loader = make_loader(CropDataset(index, rule), batches, workers)
    progress = tqdm(total=len(mine), desc="store", unit="sample", disable=rank() > 0)
    for batch in loader:
        if "error" in batch:
            raise InputError(batch["error"])
        for sample_id, crop, tensors in _run(teacher, batch, config, device, precision):
            origin = {"whose": whose, "target": targets[sample_id], "grid": crop["grid"]}
            writer.add(sample_id, tensors, origin)
            progress.update()
    writer.flush()
    progress.close()
    wait_for_all()
    if rank() == 0:
        rows = written_rows(out_dir, is_current)
        lost = [sample_id for sample_id in targets if sample_id not in rows]
        if lost:
            raise InputError(
                f"{out_dir}: {len(lost)} samples that were stored are gone, {lost[0]} first; "
                "expected that nobody else writes here.\nRun again, one run at a time."
            )
        finish(out_dir, common, (rows[sample_id] for sample_id in targets))
    wait_for_all()
    return open_store(out_dir, index, rule)


def _run(
    teacher: Sam3D,
    batch: dict,
    config: StoreConfig,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[tuple[str, dict, dict[str, torch.Tensor]]]:
    """Yield each sample's id, crop, and tensors as they are stored."""
    # By name, so that a sample's clicks don't depend on what else is in the cache.
    names = [zlib.crc32(sample_id.encode()) for sample_id in batch["id"]]
    rngs = [stream(config.seed, name, CLICKING) for name in names]
    image = batch["image"].to(device)
    with autocast(device, precision):
        outputs = teacher_outputs(
            teacher, image, batch["label"], config.num_clicks, rngs, layers=config.layers
        )
    dtype = getattr(torch, config.precision)
    outputs = {
        key: (value.to(dtype) if key.startswith(LARGE) else value).cpu()
        for key, value in outputs.items()
    }
    for i, (sample_id, crop) in enumerate(zip(batch["id"], batch["crop"], strict=True)):
        tensors = {key: value[i] for key, value in outputs.items()}
        too_large = [key for key, t in tensors.items() if not torch.isfinite(t).all()]
        if too_large:
            raise InputError(
                f"{sample_id}: {too_large[0]} holds numbers that {config.precision} cannot; "
                "expected finite ones.\nGive --store-precision bfloat16 or float32; if that does "
                "not help, the teacher is broken."
            )
        yield sample_id, crop, tensors


def require_layers(teacher: Sam3D, config: StoreConfig) -> None:
    """Refuse layers that the teacher lacks."""
    depth = teacher.config.encoder.depth
    beyond = [n for n in config.layers if not 1 <= n <= depth]
    if beyond:
        raise InputError(
            f"--store-layers {beyond[0]}: the teacher has blocks 1 to {depth}; expected those."
        )


def open_store(folder: Path, index: CropIndex, rule: CropRule) -> TeacherStore:
    """Open stored outputs and hold them against the crops that they should be of.

    Raises:
        InputError: no store, or one of other crops; names the first.
    """
    shards = open_shards(folder)
    if shards.common["rule"] != rule.to_dict():
        raise InputError(
            f"{folder}: holds outputs on crops of {shards.common['rule']}, expected "
            f"{rule.to_dict()}.\nRun preparelabel.py again for this teacher."
        )
    missing = [s["sample_id"] for s in index.samples if s["sample_id"] not in shards.rows]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} crops of {index.folder} have no stored outputs, the first "
            f"is {missing[0]}.\nRun preparelabel.py again: it stores what is missing."
        )
    for sample in index.samples:
        stored = shards.rows[sample["sample_id"]]["target"]
        if stored != [sample["image"], sample["mask"]]:
            raise InputError(
                f"{folder}: holds outputs of {sample['sample_id']} as it was before its image or "
                f"label changed; expected those of {index.folder} as it is now.\nRun "
                "preparelabel.py again: it makes anew what has changed."
            )
    return TeacherStore(shards, index.samples)


def require_teacher(store: TeacherStore, teacher: Sam3D) -> None:
    """Refuse outputs that ``teacher`` did not make."""
    if store.fingerprint != fingerprint(teacher):
        raise InputError(
            f"{store.folder}: holds outputs of teacher {store.fingerprint}, and its {TEACHER} is "
            f"{fingerprint(teacher)}; expected one and the same.\nRun preparelabel.py again: it "
            "was stopped before it had replaced them. Or distil with --online."
        )


class TeacherOutputs(Dataset):
    """Crops with the teacher's outputs: `CropDataset`'s dicts and what `store_outputs` wrote.

    Args:
        layered_draws: hidden states, most of what is stored, come with so many draws of the run.

    Raises:
        InputError: a file is unreadable, or of another crop.
    """

    def __init__(
        self,
        store: TeacherStore,
        index: CropIndex,
        rule: CropRule,
        *,
        layered_draws: float = math.inf,
    ) -> None:
        self.store = store
        self.crops = CropDataset(index, rule)
        self.layered_draws = layered_draws

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, draw) -> dict:
        item = self.crops[draw]
        row, cut = self.store.shards.rows[item["id"]], item["crop"]
        # Through JSON and back, as the row came.
        if (row["target"], row["grid"]) != ([cut["image"], cut["mask"]], _plain(cut["grid"])):
            raise InputError(
                f"{self.store.folder}: holds outputs of {item['id']} on the crop {row['grid']}, "
                f"expected {_plain(cut['grid'])}.\nRun preparelabel.py again on these crops."
            )
        layered = item["number"] < self.layered_draws
        return item | self.store.shards.read(
            item["id"], lambda name: layered or not name.startswith("hidden_")
        )


def _plain(grid: dict) -> dict:
    return json.loads(json.dumps(grid))
