"""Read the stored teacher outputs for distillation; store_writer.py writes them.

Stored for each sample, with g tokens and s low-resolution cells along each axis:

* ``image_embedding`` (C, g, g, g), ``low_res_masks`` (clicks, s, s, s) logits and, with
  --store-layers, ``hidden_<n>`` (g, g, g, C), the output of block n counted from 1; float16 unless
  --store-precision is given
* ``click_coords`` (clicks, 3) in crop voxels, ``click_labels`` (clicks,) in {1, 0, -1} and
  ``predicted_iou`` (clicks,)

The crop of a sample is centred on its target and not augmented. The teacher's
network is ``teacher.pt`` in the same folder.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from segment_anything import Sam3D, fingerprint
from utils.errors import InputError
from utils.training.crop_cache import CropIndex
from utils.training.data_loader import CropDataset, Draw
from utils.training.tensor_shards import Shards, open_shards
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
                f"label changed; expected outputs of the present case in {index.folder}.\nRun "
                "preparelabel.py again: it replaces what has changed."
            )
    return TeacherStore(shards, index.samples)


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
        layered_draws: number of draws, from the start of a run, for which hidden states are loaded;
            hidden states are most of the data.

    Raises:
        InputError: on reading an item: a file is unreadable, or outputs are of another crop.
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

    def __getitem__(self, draw: Draw | int) -> dict:
        item = self.crops[draw]
        row, cut = self.store.shards.rows[item["id"]], item["crop"]
        # JSON has turned the row's tuples into lists; `_plain` does the same to the crop's grid.
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
