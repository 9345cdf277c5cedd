"""Run the teacher on a centred crop of every target, and store its outputs for distillation.

utils/training/teacher_store.py lists the stored tensors and reads them.
"""

import argparse
import json
import logging
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from segment_anything import Sam3D, SamConfig, autocast, fingerprint
from utils.errors import InputError, require_number
from utils.files.disk_space import readable, require_space
from utils.run.flags import MAX_SEED, non_negative_int, positive_int
from utils.run.ranks import rank, wait_for_all, world_size
from utils.training.crop_cache import CropIndex
from utils.training.data_loader import CropDataset, Draw, make_loader
from utils.training.loader import BatchLoader
from utils.training.seeds import CLICKING, stream
from utils.training.teacher_outputs import teacher_outputs
from utils.training.teacher_store import TeacherStore, open_store
from utils.training.tensor_shards import (
    ShardWriter,
    finish,
    require_own_index,
    written_rows,
)
from utils.volumes.geometry import CropRule

logger = logging.getLogger(__name__)

STORE_PRECISIONS = ("float16", "bfloat16", "float32")
#: Outputs with these name prefixes are large and are stored in ``StoreConfig.precision``.
LARGE = ("image_embedding", "low_res_masks", "hidden_")


@dataclass(frozen=True)
class StoreConfig:
    """What is stored; the fields are the flags of preparelabel.py.

    Raises:
        InputError: a field is out of its range.
    """

    num_clicks: int
    layers: tuple[int, ...]  # the blocks whose output is stored, counted from 1
    precision: str  # one of STORE_PRECISIONS
    seed: int  # of the simulated clicks
    shard_bytes: int = 2**28

    def __post_init__(self) -> None:
        require_number("--stored-clicks", self.num_clicks, 1, whole=True)
        if self.precision not in STORE_PRECISIONS:
            raise InputError(
                f"--store-precision: found {self.precision!r}, expected one of "
                f"{', '.join(STORE_PRECISIONS)}."
            )
        require_number("--seed", self.seed, 0, MAX_SEED, whole=True)
        require_number("--shard-mb", self.shard_bytes, 1, whole=True)

    @property
    def content(self) -> dict:
        """The fields that change the stored numbers."""
        return {
            "num_clicks": self.num_clicks,
            "layers": list(self.layers),
            "precision": self.precision,
            "seed": self.seed,
        }


def add_store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `StoreConfig`."""
    store = parser.add_argument_group("stored teacher outputs")
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
        help="also store the hidden states after these blocks, counted from 1, for distillation "
        "layer by layer (default: none)",
    )
    store.add_argument(
        "--store-precision",
        choices=STORE_PRECISIONS,
        default="float16",
        help="dtype of stored embeddings, masks and hidden states (default: float16)",
    )
    store.add_argument(
        "--shard-mb",
        type=positive_int,
        default=256,
        help="size of each file in MiB; a killed run loses at most the outputs of one file a rank "
        "(default: 256)",
    )


def store_config(args: argparse.Namespace) -> StoreConfig:
    """Collect the flags of `add_store_arguments`."""
    return StoreConfig(
        num_clicks=args.stored_clicks,
        layers=tuple(sorted(set(args.store_layers))),
        precision=args.store_precision,
        seed=args.seed,
        shard_bytes=args.shard_mb * 2**20,
    )


def bytes_per_sample(network: SamConfig, config: StoreConfig) -> int:
    """Return the size of a sample's outputs on disk."""
    encoder = network.encoder
    tokens = encoder.grid_size**3
    large = tokens * encoder.learnt_chans + config.num_clicks * network.low_res_size**3
    large += len(config.layers) * tokens * encoder.embed_dim
    return large * getattr(torch, config.precision).itemsize + config.num_clicks * 24


def require_layers(teacher: Sam3D, config: StoreConfig) -> None:
    """Raise an `InputError` if ``config.layers`` has blocks that the teacher lacks."""
    depth = teacher.config.encoder.depth
    beyond = [n for n in config.layers if not 1 <= n <= depth]
    if beyond:
        raise InputError(
            f"--store-layers {beyond[0]}: the teacher has blocks 1 to {depth}; expected these."
        )


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
    """Run the teacher on a centred crop of every target, and store its outputs in ``out_dir``.

    Outputs that are stored already are kept. Outputs of another teacher, of other flags or of a
    changed target are computed again, and the old outputs are removed at the end. A killed run
    continues where it stopped. Of n ranks, each rank stores every n-th sample.

    Args:
        rule: how crops are cut for this teacher.
        precision: dtype of the teacher's computation; ``config.precision`` is the dtype on disk.
        batch_size: crops in a pass of the teacher.
        workers: processes that load crops; 0 = none.

    Raises:
        InputError: the teacher has no such layer, the disk has too little space, a crop cannot be
            read, or a number is too large for the stored precision.
        WriteError: ``out_dir`` cannot be written to.
    """
    require_layers(teacher, config)
    require_own_index(out_dir)
    teacher.to(device).eval()
    plan = _plan(teacher, index, out_dir, rule, config)
    if rank() == 0:
        _require_space(plan, bytes_per_sample(teacher.config, config))
    wait_for_all()
    batches = _missing_batches(plan, index, batch_size)
    loader = make_loader(CropDataset(index, rule), batches, workers)
    _store_batches(teacher, loader, plan, config, device, precision)
    wait_for_all()
    if rank() == 0:
        _finish(plan)
    wait_for_all()
    return open_store(out_dir, index, rule)


@dataclass(frozen=True)
class _Plan:
    """What a call of `store_outputs` has to store, and which samples were stored before.

    Attributes:
        common: facts shared by all samples: teacher, crop rule, `StoreConfig.content`.
        maker: digest of ``common``; rows with another digest are not used.
        targets: the image and the mask of each sample, by its id.
        stored: the ids of the samples that were stored before.
    """

    folder: Path
    common: dict
    maker: str
    targets: dict[str, list[str]]
    stored: set[str]


def _plan(
    teacher: Sam3D, index: CropIndex, folder: Path, rule: CropRule, config: StoreConfig
) -> _Plan:
    """List the samples to store, and the samples that are stored already."""
    common = {"teacher": fingerprint(teacher), "rule": rule.to_dict()} | config.content
    maker = blake2b(json.dumps(common).encode(), digest_size=8).hexdigest()
    targets = {s["sample_id"]: [s["image"], s["mask"]] for s in index.samples}
    return _Plan(folder, common, maker, targets, set(_current_rows(folder, maker, targets)))


def _current_rows(folder: Path, maker: str, targets: dict[str, list[str]]) -> dict[str, dict]:
    """Return the rows on disk, by sample id, that match ``maker`` and the present ``targets``."""

    def is_current(row: dict) -> bool:
        return row.get("whose") == maker and targets.get(row["sample_id"]) == row.get("target")

    return written_rows(folder, is_current)


def _require_space(plan: _Plan, bytes_each: int) -> None:
    """Log the size of the missing outputs; raise an `InputError` if the disk has less space."""
    need = bytes_each * (len(plan.targets) - len(plan.stored))
    logger.info(
        "teacher outputs: %d samples of %s, %d are stored already; %s to write",
        *(len(plan.targets), readable(bytes_each), len(plan.stored), readable(need)),
    )
    advice = "store fewer --store-layers or --stored-clicks, or distil with --online"
    require_space(plan.folder, need, "the folder of teacher outputs", advice)


def _missing_batches(plan: _Plan, index: CropIndex, batch_size: int) -> list[list[Draw]]:
    """Return the samples that this rank has to compute, in batches."""
    numbers = {s["sample_id"]: number for number, s in enumerate(index.samples)}
    of_rank = list(plan.targets)[rank() :: world_size()]
    missing = [numbers[sample_id] for sample_id in of_rank if sample_id not in plan.stored]
    draws = [Draw(number, number) for number in missing]
    return [draws[i : i + batch_size] for i in range(0, len(draws), batch_size)]


def _store_batches(
    teacher: Sam3D,
    loader: BatchLoader,
    plan: _Plan,
    config: StoreConfig,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Compute the outputs of all batches and write them, shard by shard."""
    writer = ShardWriter(plan.folder, rank(), config.shard_bytes)
    progress = tqdm(
        total=sum(map(len, loader.draws)),
        desc="store",
        unit="sample",
        disable=rank() > 0,
    )
    with closing(iter(loader)) as batches:
        for batch in batches:
            if "error" in batch:
                raise InputError(batch["error"])
            for sample_id, crop, tensors in _outputs_of(teacher, batch, config, device, precision):
                target = plan.targets[sample_id]
                row = {"whose": plan.maker, "target": target, "grid": crop["grid"]}
                writer.add(sample_id, tensors, row)
                progress.update()
    writer.flush()
    progress.close()


def _outputs_of(
    teacher: Sam3D,
    batch: dict,
    config: StoreConfig,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[tuple[str, dict, dict[str, Tensor]]]:
    """Yield each sample's id, crop, and tensors as they are stored."""
    # Seed by name, so that a sample's clicks do not depend on the other targets in the cache.
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
                f"{sample_id}: {too_large[0]} holds numbers too large for {config.precision}; "
                "expected finite ones.\nGive --store-precision bfloat16 or float32. If the numbers "
                "are still not finite, train the teacher again."
            )
        yield sample_id, crop, tensors


def _finish(plan: _Plan) -> None:
    """Write the index of all samples, and remove outputs that are not in the index.

    Raises:
        InputError: stored outputs have disappeared during this run.
    """
    rows = _current_rows(plan.folder, plan.maker, plan.targets)
    lost = [sample_id for sample_id in plan.targets if sample_id not in rows]
    if lost:
        raise InputError(
            f"{plan.folder}: outputs of {len(lost)} samples have disappeared, {lost[0]} first; "
            "expected no other program to write here.\nRun again, one run at a time."
        )
    finish(plan.folder, plan.common, (rows[sample_id] for sample_id in plan.targets))
