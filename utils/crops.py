"""The network's input, cut once and kept: a cube of each target in the network's frame (no torch).

A crop file (``.npz``) holds ``image`` (float16, z-normalised), ``label`` (bits packed along
the last axis) and ``meta`` (JSON: sample id, source files, affine, `CropGrid`). ``index.json``
lists them. Nothing here needs the volumes again, so a cache can be carried to another machine.
"""

import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.atomic import atomic_path
from utils.errors import InputError
from utils.geometry import CropGrid, CropRule, bounding_box_centre

INDEX = "index.json"
#: Hounsfield range in which SAM-Med3D was trained.
HU_RANGE = (-1000, 1000)


@dataclass(frozen=True)
class Crop:
    """One network input with its truth.

    ``image`` (S, S, S) float32, normalised; ``label`` (S, S, S) bool; ``grid`` leads back to the
    volume; ``coverage`` is the share of the target's voxels that the cube contains.
    """

    image: np.ndarray
    label: np.ndarray
    grid: CropGrid
    coverage: float


@dataclass(frozen=True)
class CropIndex:
    """What is in a crop cache; ``failures`` are the messages of targets that could not be cut."""

    folder: Path
    rule: CropRule
    samples: list[dict]
    failures: list[str]


def normalise(image: np.ndarray, is_ct: bool) -> np.ndarray:
    """Z-normalise a crop by the mean and standard deviation of its voxels > 0 (SAM-Med3D's rule).

    CT is clamped to [-1000, 1000] first where values are HU, that is where some are negative;
    challenge files hold windowed 0..255.
    """
    image = image.astype(np.float32)
    if is_ct and image.min() < 0:
        image = np.clip(image, *HU_RANGE)
    body = image[image > 0]
    if body.size == 0:
        body = image
    return (image - body.mean()) / max(float(body.std()), 1e-6)


def cut(
    image: np.ndarray, target: np.ndarray, affine: np.ndarray, rule: CropRule, is_ct: bool
) -> Crop:
    """Cut the cube about the middle of ``target`` (D, H, W) bool out of ``image`` (D, H, W)."""
    centre = bounding_box_centre(target)
    grid = CropGrid.around(centre, target.shape, affine, rule)
    inside = grid.paste(np.ones((1, 1, 1), np.float32), outside=0) > 0
    return Crop(
        image=normalise(grid.crop(image), is_ct),
        label=grid.crop(target) >= 0.5,
        grid=grid,
        coverage=float(target[inside].sum() / target.sum()),
    )


def write_crop(path: Path, crop: Crop, meta: dict) -> None:
    """Write a crop and its ``meta`` to ``path`` (.npz), atomically."""
    arrays = {
        "image": crop.image.astype(np.float16),
        "label": np.packbits(crop.label, axis=-1),
        "meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_crop(path: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return image (S, S, S) float16, label (S, S, S) bool and meta of a crop file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            image = arrays["image"]
            label = np.unpackbits(arrays["label"], axis=-1).astype(bool)
            meta = json.loads(arrays["meta"].tobytes())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a readable crop ({error}), expected image, label and meta.\n"
            "Delete the file and run preparelabel.py again: it will be cut anew."
        ) from error
    return image, label, meta


def read_index(folder: Path) -> CropIndex:
    """Open a crop cache made earlier.

    Raises:
        InputError: there is none.
    """
    path = folder / INDEX
    if not path.exists():
        raise InputError(
            f"{path}: not found, expected a crop cache.\nRun preparelabel.py on prepared folders."
        )
    content = json.loads(path.read_text())
    return CropIndex(folder, CropRule(**content["rule"]), content["samples"], [])


def build_crops(
    folders: Sequence[Path | str],
    out_dir: Path,
    rule: CropRule,
    *,
    max_instances: int = 8,
    workers: int | None = None,
) -> CropIndex:
    """Cut a crop of every target of prepared ``folders`` into ``out_dir``; cut ones are kept.

    A crop is cut anew when its source files or the rule have changed. Targets that fail are
    reported in ``failures`` and the others go on.
    """
    from utils.cases import find_cases  # nibabel is needed only where NIfTI is read

    cases = find_cases(folders)
    known: dict[str, list[dict]] = {}
    if (out_dir / INDEX).exists():
        previous = read_index(out_dir)
        if previous.rule == rule:
            for row in previous.samples:
                known.setdefault(row["case"], []).append(row)
    samples, failures = [], []
    work = partial(_cut_case, out_dir=out_dir, rule=rule, max_instances=max_instances, known=known)
    with ProcessPoolExecutor(max_workers=workers or os.cpu_count()) as pool:
        done = pool.map(work, cases, chunksize=4)
        for made, failure in tqdm(done, total=len(cases), desc="crops", unit="case"):
            samples += made
            failures += [failure] if failure else []
    if not samples:
        raise InputError("no crop could be cut:\n" + "\n".join(failures[:5]))
    with atomic_path(out_dir / INDEX) as temporary:
        temporary.write_text(json.dumps({"rule": rule.to_dict(), "samples": samples}, indent=1))
    return CropIndex(out_dir, rule, samples, failures)


def _cut_case(case, *, out_dir, rule, max_instances, known) -> tuple[list[dict], str]:
    """Cut all targets of one case; return their index rows, or a failure message."""
    from utils.cases import instances_of, read_case

    try:
        sources = [_stamp(p) for p in (case.image_path, case.label_path) if p.exists()]
        rows = known.get(case.sample_id, [])
        if rows and all(r["sources"] == sources and (out_dir / r["file"]).exists() for r in rows):
            return rows, ""
        image, label = read_case(case)
        values = instances_of(label.array, max_instances)
        rows = []
        for value in values:
            suffix = f"#{value}" if len(values) > 1 else ""
            crop = cut(
                image.array,
                label.array == value,
                image.affine,
                rule,
                is_ct=case.dataset.startswith("CT"),
            )
            file = f"{case.sample_id}{suffix}.npz"
            row = {
                "sample_id": case.sample_id + suffix,
                "case": case.sample_id,
                "organ": case.organ,
                "dataset": case.dataset,
                "file": file,
                "coverage": round(crop.coverage, 4),
                "sources": sources,
            }
            geometry = {"affine": image.affine.tolist(), "grid": asdict(crop.grid)}
            write_crop(out_dir / file, crop, row | geometry)
            rows.append(row)
        return rows, ""
    except InputError as error:
        return [], f"{case.sample_id}: {error}"


def _stamp(path: Path) -> list:
    """Return what tells that a source file has changed."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]
