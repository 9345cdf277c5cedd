"""The teacher's outputs on disk: one file a sample, and a manifest that says whose they are.

A sample's file holds ``image_embedding`` (C, g, g, g) and ``low_res_masks`` (clicks, s, s, s) as
float16, ``click_coords`` (clicks, 3), ``click_labels`` (clicks,), ``predicted_iou`` (clicks,) and
``meta``: all that the crop says of itself (sample id, grid, affine) and the teacher's fingerprint.
So the next step never guesses what belongs to what.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from segment_anything import Sam3D, checkpoint_payload, fingerprint
from utils.atomic import atomic_path
from utils.checkpoint import save_payload
from utils.crops import CropIndex, read_meta
from utils.data_loader import CropDataset, collate
from utils.distributed import wait_for_all
from utils.errors import InputError
from utils.geometry import CropRule
from utils.runtime import CLICKING, autocast, rank, world_size
from utils.teacher_outputs import teacher_outputs

MANIFEST = "manifest.json"
TEACHER = "teacher.pt"


@dataclass(frozen=True)
class TeacherStore:
    """A folder of stored outputs; ``samples`` are the crop index's rows that have one."""

    folder: Path
    fingerprint: str
    samples: list[dict]


@torch.inference_mode()
def store_outputs(
    teacher: Sam3D,
    index: CropIndex,
    out_dir: Path,
    *,
    rule: CropRule,
    num_clicks: int,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
) -> TeacherStore:
    """Run the teacher on every crop as it is and store what it says; stored ones are kept.

    Outputs of another teacher, or of a crop cut anew since, are made again. ``teacher.pt`` beside
    them is the teacher itself: its prompt encoder and decoder serve the student too. Ranks store
    every n-th sample each.
    """
    teacher.to(device).eval()
    identity = fingerprint(teacher)
    dataset = CropDataset(index)
    mine = list(enumerate(index.samples))[rank() :: world_size()]
    for number, sample in tqdm(mine, desc="store", unit="sample", disable=rank() > 0):
        path = out_dir / sample["file"]
        crop = read_meta(index.folder / sample["file"])
        meta = {"crop": crop, "teacher": identity, "num_clicks": num_clicks, "seed": seed}
        if path.exists() and read_meta(path) == meta:
            continue
        batch = collate([dataset[number]])
        rng = np.random.default_rng([seed, number, CLICKING])
        image, label = batch["image"].to(device), batch["label"]
        with autocast(device, precision):
            outputs = teacher_outputs(teacher, image, label, num_clicks, [rng])
        arrays = {key: value[0].cpu().numpy() for key, value in outputs.items()}
        for key in ("image_embedding", "low_res_masks"):
            arrays[key] = arrays[key].astype(np.float16)
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    wait_for_all()
    if rank() == 0:
        _describe(teacher, index, out_dir, rule=rule, num_clicks=num_clicks, seed=seed)
    wait_for_all()
    return TeacherStore(out_dir, identity, index.samples)


def _describe(
    teacher: Sam3D, index: CropIndex, out_dir: Path, *, rule: CropRule, num_clicks: int, seed: int
) -> None:
    """Write the teacher itself and the manifest beside the outputs."""
    save_payload(out_dir / TEACHER, checkpoint_payload(teacher, crop_rule=rule.to_dict()))
    manifest = {
        "teacher": fingerprint(teacher),
        "num_clicks": num_clicks,
        "seed": seed,
        "crops": str(index.folder),
        "samples": [sample["sample_id"] for sample in index.samples],
    }
    with atomic_path(out_dir / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1))


def open_store(folder: Path, index: CropIndex) -> TeacherStore:
    """Open stored outputs and hold them against the crops they were made of.

    Raises:
        InputError: no manifest, or samples of the crop index without outputs.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(
            f"{path}: not found, expected the teacher's stored outputs.\n"
            "Run preparelabel.py to its end first."
        )
    try:
        manifest = json.loads(path.read_text())
        stored, identity = set(manifest["samples"]), manifest["teacher"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a manifest ({error}), expected samples and teacher.\n"
            "Delete it and run preparelabel.py again: stored outputs are kept."
        ) from error
    missing = [s["sample_id"] for s in index.samples if s["sample_id"] not in stored]
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} crops of {index.folder} have no stored outputs, the first "
            f"is {missing[0]}.\nRun preparelabel.py again: it stores what is missing."
        )
    return TeacherStore(folder, identity, index.samples)


class TeacherOutputs(Dataset):
    """Crops with the teacher's outputs: `CropDataset`'s dicts and what `store_outputs` wrote.

    Raises:
        InputError: a file is unreadable, is another sample's, or another teacher's.
    """

    def __init__(self, store: TeacherStore, index: CropIndex) -> None:
        self.store = store
        self.crops = CropDataset(index)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, draw) -> dict:
        item = self.crops[draw]
        path = self.store.folder / f"{item['id']}.npz"
        stored = read_meta(path)
        if (stored.get("crop"), stored.get("teacher")) != (item["meta"], self.store.fingerprint):
            found = stored.get("crop", {}).get("sample_id")
            raise InputError(
                f"{path}: found outputs of teacher {stored.get('teacher')} on a crop of {found}; "
                f"expected those of teacher {self.store.fingerprint} on {item['id']} as it is cut "
                "now.\nRun preparelabel.py again on these crops."
            )
        with np.load(path, allow_pickle=False) as arrays:
            outputs = {
                key: torch.from_numpy(arrays[key])
                for key in ("image_embedding", "low_res_masks", "click_coords", "click_labels")
            }
        return item | outputs
