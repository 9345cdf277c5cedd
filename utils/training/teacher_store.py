"""Read the stored teacher outputs for distillation; store_writer.py writes them.

Stored for each sample, with g tokens and m low-resolution cells along each axis:

* ``image_embedding`` (C, g, g, g), its learnt channels, ``low_res_masks`` (clicks, m, m, m) logits
  and, with --store-layers, ``hidden_<n>`` (g, g, g, C), the output of block n counted from 1;
  float16 unless --store-precision is given
* ``click_coords`` (clicks, 3) in crop voxels, ``click_labels`` (clicks,) in {1, 0, -1} and
  ``predicted_iou`` (clicks,)

The crop of a sample is centred on its target and not augmented. The teacher's
network is ``teacher.pt`` in the same folder.
"""

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segment_anything import (
    NO_CLICK,
    CheckpointError,
    Sam3D,
    SamConfig,
    fingerprint,
    open_checkpoint,
)
from utils.errors import InputError
from utils.files.strict_json import parse_json
from utils.run.ranks import rank
from utils.training.crop_cache import CropIndex
from utils.training.data_loader import CropDataset, Draw
from utils.training.teacher_outputs import hidden_name
from utils.training.tensor_shards import INDEX, Shards, open_shards, require_own_index
from utils.volumes.geometry import CropRule

TEACHER = "teacher.pt"


@dataclass(frozen=True)
class TeacherStore:
    """Stored outputs of every sample of a `CropIndex`, opened by `open_store`::

        index = read_index(Path("work_dir/crops"))
        store = open_store(Path("work_dir/teacher_outputs"), index, CropRule())
        tensors = store.shards.read("liver/CT_AMOS/CT_AMOS_0001")
        tensors["image_embedding"].shape                # (C, g, g, g)
        TeacherOutputs(store, index, CropRule())[0]     # a crop with its tensors

    Attributes:
        shards: reads the tensors of a sample by its id; this module's docstring lists them.
        samples: rows of the `CropIndex`, in its order.
    """

    shards: Shards
    samples: list[dict]

    @property
    def folder(self) -> Path:
        """The folder of the outputs."""
        return self.shards.folder

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the teacher of these outputs; see `segment_anything.fingerprint`."""
        return self.shards.common["teacher"]

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose hidden states are stored, counted from 1."""
        return tuple(self.shards.common["layers"])


def require_own_store(folder: Path) -> None:
    """Raise an `InputError` if files in ``folder`` would be replaced and are no teacher of ours."""
    require_own_index(folder)
    path = folder / TEACHER
    if not os.path.lexists(path) or rank() > 0:
        return
    with suppress(CheckpointError):
        if "crop_rule" in open_checkpoint(path).facts:
            return
    raise InputError(
        f"{path}: is no teacher of preparelabel.py, which would replace it. Expected a new folder, "
        "or that of an earlier run: choose another --teacher-dir."
    )


def open_store(folder: Path, index: CropIndex, rule: CropRule) -> TeacherStore:
    """Open the stored outputs of all samples of a crop cache.

    Args:
        folder: --teacher-dir of preparelabel.py.
        index: the crop cache; every sample needs stored outputs of its present image and mask.
        rule: how crops are cut; must equal the rule of the stored outputs.

    Raises:
        InputError: there are no stored outputs, they are incomplete, or they are of other crops;
            the message names the first such sample.
    """
    shards = open_shards(folder)
    _require_facts(shards)
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
        stored = shards.rows[sample["sample_id"]].get("target")
        if stored != [sample["image"], sample["mask"]]:
            raise InputError(
                f"{folder}: holds outputs of {sample['sample_id']} as it was before its image or "
                f"label changed; expected outputs of the present case in {index.folder}.\nRun "
                "preparelabel.py again: it replaces what has changed."
            )
    return TeacherStore(shards, index.samples)


class _Common(msgspec.Struct):
    """Facts that all samples of a store share."""

    teacher: str
    rule: dict
    num_clicks: Annotated[int, msgspec.Meta(ge=1)]
    layers: list[int]
    precision: Literal["float16", "bfloat16", "float32"]
    seed: int


def _require_facts(shards: Shards) -> None:
    """Raise an `InputError` if the facts that all samples share are not those of a store."""
    try:
        msgspec.convert(shards.common, _Common)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{shards.folder / INDEX}: its first line cannot be used ({error}), expected teacher, "
            "rule, clicks, layers, precision and seed.\nRun preparelabel.py again."
        ) from error


def require_teacher(store: TeacherStore, teacher: Sam3D) -> None:
    """Raise an `InputError` if the stored outputs are not of ``teacher``.

    Raises:
        InputError: the fingerprints differ.
    """
    if store.fingerprint != fingerprint(teacher):
        raise InputError(
            f"{store.folder}: holds outputs of teacher {store.fingerprint}, and its {TEACHER} is "
            f"{fingerprint(teacher)}; expected one and the same.\nA run of preparelabel.py was "
            "stopped before all outputs were replaced: run preparelabel.py again, or distil with "
            "--online."
        )


class TeacherOutputs(Dataset):
    """Crops with the teacher's outputs: dicts as of `CropDataset`, with the stored tensors added.

    Args:
        layered_until: share of the run, from its start, in which hidden states are loaded; they
            are most of the data.
        network: of the teacher; the shapes of the tensors are compared with it.

    Raises:
        InputError: on reading an item: a file is unreadable, or outputs are of another crop or
            cannot be a teacher's.
    """

    def __init__(
        self,
        store: TeacherStore,
        index: CropIndex,
        rule: CropRule,
        *,
        layered_until: float = math.inf,
        network: SamConfig | None = None,
    ) -> None:
        self.network = network
        self.store = store
        self.crops = CropDataset(index, rule)
        self.layered_until = layered_until

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, draw: Draw | int) -> dict:
        item = self.crops[draw]
        row, cut = self.store.shards.rows[item["id"]], item["crop"]
        # JSON has turned the row's tuples into lists; `_plain` does the same to the crop's grid.
        stored = row["target"], row.get("grid")
        if stored != ([cut["image"], cut["mask"]], _plain(cut["grid"])):
            raise InputError(
                f"{self.store.folder}: holds outputs of {item['id']} on the crop {stored[1]}, "
                f"expected {_plain(cut['grid'])}.\nRun preparelabel.py again on these crops."
            )
        layered = not isinstance(draw, Draw) or draw.done < self.layered_until
        tensors = self.store.shards.read(
            item["id"], lambda name: layered or not name.startswith("hidden_")
        )
        self._require_outputs(row, tensors, item["image"].shape[-1])
        return item | tensors

    def _require_outputs(self, row: dict, tensors: dict[str, Tensor], size: int) -> None:
        """Raise an `InputError` if tensors cannot be a teacher's outputs for a crop."""
        common = self.store.shards.common
        fault = output_fault(tensors, common["num_clicks"], common["precision"], size)
        wanted = stored_shapes(self.network, common) if self.network else {}
        for name, shape in wanted.items():
            if name in tensors and tuple(tensors[name].shape) != shape:
                fault = f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}"
            if name not in row["tensors"]:
                fault = f"{name} is missing"
        if fault:
            raise InputError(
                f"{self.store.folder / row['shard']}: the outputs of {row['sample_id']} cannot be "
                f"used ({fault}), expected those of the teacher.\nDelete the file and run "
                "preparelabel.py again, which computes these samples anew."
            )


def stored_shapes(network: SamConfig, common: dict) -> dict[str, tuple[int, ...]]:
    """Return the shape of each stored tensor, by name.

    Args:
        network: the teacher's.
        common: the facts that all samples share.
    """
    encoder, clicks = network.encoder, common["num_clicks"]
    tokens, cells = (encoder.grid_size,) * 3, (network.low_res_size,) * 3
    return {
        "image_embedding": (encoder.learnt_chans, *tokens),
        "low_res_masks": (clicks, *cells),
        "predicted_iou": (clicks,),
        "click_coords": (clicks, 3),
        "click_labels": (clicks,),
        **{hidden_name(n): (*tokens, encoder.embed_dim) for n in common["layers"]},
    }


def output_fault(tensors: dict[str, Tensor], clicks: int, precision: str, size: int) -> str:
    """Return what is wrong with the values of stored tensors, or "".

    Args:
        tensors: of a sample, by name.
        clicks: how many are stored.
        precision: dtype of the large tensors.
        size: edge of the crop in voxels.
    """
    missing = {"image_embedding", "low_res_masks", "click_coords", "click_labels"} - tensors.keys()
    if missing:
        return f"{min(missing)} is missing"
    small = {"click_coords": torch.float32, "click_labels": torch.int64}
    small["predicted_iou"] = torch.float32
    for name, tensor in tensors.items():
        expected = small.get(name, getattr(torch, precision))
        if tensor.dtype != expected:
            return f"{name} is {tensor.dtype}, expected {expected}"
        if not torch.isfinite(tensor).all():
            return f"{name} is not finite"
    coords, labels = tensors["click_coords"], tensors["click_labels"]
    if coords.shape != (clicks, 3) or labels.shape != (clicks,):
        return f"{tuple(coords.shape)} click_coords and {tuple(labels.shape)} click_labels"
    if not torch.isin(labels, torch.tensor([0, 1, NO_CLICK])).all():
        return f"click_labels are {labels.tolist()}"
    if coords.min() < 0 or coords.max() > size - 1:
        return f"click_coords are outside of the cube of {size} voxels"
    return ""


def _plain(grid: dict) -> dict:
    return parse_json(json.dumps(grid))
