"""The network's input, cut once and kept: a cube of each target in the network's frame (no torch).

A crop file (``.npz``) holds ``image`` (float16, z-normalised), ``label`` (bits packed along
the last axis) and ``meta`` (JSON: sample id, source files, affine, `CropGrid`). ``index.json``
lists them. Nothing here needs the volumes again, so a cache can be carried to another machine.
"""

import glob
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.atomic import WriteError, atomic_path
from utils.errors import InputError
from utils.geometry import CropGrid, CropRule, bounding_box_centre
from utils.labels import ALL_USEFUL, InstanceRule

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


def normalise(image: np.ndarray) -> np.ndarray:
    """Z-normalise a crop by the mean and standard deviation of its voxels > 0, as SAM-Med3D."""
    image = image.astype(np.float32)
    body = image[image > 0]
    if body.size == 0:
        body = image
    deviation = float(body.std())
    # A constant body has none; dividing padding by next to nothing would overflow float16.
    return (image - body.mean()) / (deviation if deviation > 1e-6 else 1.0)


def cut(
    image: np.ndarray, target: np.ndarray, affine: np.ndarray, rule: CropRule, is_ct: bool
) -> Crop:
    """Cut the cube about the middle of ``target`` (D, H, W) bool out of ``image`` (D, H, W).

    Where the target leaves the middle of its own box empty, so that the cube would miss it, the
    cube sits on its voxel nearest to the middle. A target too small for the crop's voxels keeps
    one voxel for each of its own, so no label is empty. CT is clamped to [-1000, 1000] where
    values are HU, that is where some are negative; challenge files hold windowed 0..255.
    """
    centre = bounding_box_centre(target)
    grid = CropGrid.around(centre, target.shape, affine, rule)
    if not (target & grid.covered()).any():
        voxels = np.argwhere(target)
        nearest = voxels[np.argmin(((voxels - centre) ** 2).sum(axis=1))]
        grid = CropGrid.around(tuple(map(float, nearest)), target.shape, affine, rule)
    values = grid.crop(image)
    if is_ct and image.min() < 0:
        values = np.clip(values, *HU_RANGE)
    label = grid.crop(target) >= 0.5
    if not label.any():
        points = np.array([grid.to_crop(voxel) for voxel in np.argwhere(target & grid.covered())])
        label[tuple(np.clip(np.rint(points).astype(int), 0, rule.size - 1).T)] = True
    coverage = float(target[grid.covered()].sum() / target.sum())
    return Crop(normalise(values), label, grid, coverage)


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
    """Return image (S, S, S) float16, label (S, S, S) bool and meta of a crop file.

    Raises:
        InputError: the file is damaged, or not ours.
    """
    with _arrays_of(path) as arrays:
        label = np.unpackbits(arrays["label"], axis=-1).astype(bool)
        return arrays["image"], label, json.loads(arrays["meta"].tobytes())


def read_meta(path: Path) -> dict:
    """Return what an ``.npz`` of ours says of itself, without reading its arrays.

    Raises:
        InputError: the file is damaged, or not ours.
    """
    with _arrays_of(path) as arrays:
        return json.loads(arrays["meta"].tobytes())


@contextmanager
def _arrays_of(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not readable ({error}), expected a crop or a teacher's outputs.\n"
            "Delete the file and run preparelabel.py again: it will be made anew."
        ) from error


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
    try:
        content = json.loads(path.read_text())
        return CropIndex(folder, CropRule(**content["rule"]), content["samples"], [])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a crop index ({error}), expected rule and samples.\n"
            "Delete it and run preparelabel.py again: finished crops are kept."
        ) from error


def build_crops(
    folders: Sequence[Path | str],
    out_dir: Path,
    rule: CropRule,
    *,
    instances: InstanceRule = ALL_USEFUL,
    workers: int | None = None,
) -> CropIndex:
    """Cut a crop of every target of prepared ``folders`` into ``out_dir``; cut ones are kept.

    A crop is cut anew when its source files, the rule or ``instances`` have changed: its own
    file says what it was made of, so a run that was stopped loses nothing and mixes nothing up.
    Targets that fail are reported in ``failures`` and the others go on.

    Raises:
        WriteError: the disk is full, or the folder does not let us write.
    """
    from utils.cases import find_cases  # nibabel is needed only where NIfTI is read

    cases = find_cases(folders)
    samples, failures = [], []
    work = partial(_cut_case, out_dir=out_dir, rule=rule, instances=instances)
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


def _cut_case(case, *, out_dir, rule, instances) -> tuple[list[dict], str]:
    """Cut all targets of one case; return their index rows, or a failure message."""
    from utils.cases import read_case

    try:
        if not case.image_path.exists():
            read_case(case)  # says what is missing
        origin = {
            "case": case.sample_id,
            "organ": case.organ,
            "dataset": case.dataset,
            "sources": [_stamp(case.image_path), _stamp(case.label_path)],
            "rule": rule.to_dict(),
            "instances": asdict(instances),
        }
        return _finished(out_dir, case.sample_id, origin) or _cut_anew(case, out_dir, origin), ""
    except WriteError:
        raise
    except InputError as error:
        return [], f"{case.sample_id}: {error}"


def _cut_anew(case, out_dir: Path, origin: dict) -> list[dict]:
    from utils.cases import read_case, targets_of

    image, label = read_case(case)
    rule = CropRule(**origin["rule"])
    targets = targets_of(case, label.array, InstanceRule(**origin["instances"]))
    for stale in _files_of(out_dir, case.sample_id):
        stale.unlink()
    rows = []
    for sample_id, value in targets:
        crop = cut(image.array, label.array == value, image.affine, rule, case.is_ct)
        row = origin | {
            "sample_id": sample_id,
            "file": f"{sample_id}.npz",
            "targets": len(targets),
            "coverage": round(crop.coverage, 4),
        }
        geometry = {"affine": image.affine.tolist(), "grid": asdict(crop.grid)}
        write_crop(out_dir / row["file"], crop, row | geometry)
        rows.append(row)
    return rows


def _finished(out_dir: Path, sample_id: str, origin: dict) -> list[dict]:
    """Return the rows of a case whose crops are all there and of this origin, else nothing."""
    rows = []
    for path in _files_of(out_dir, sample_id):
        try:
            meta = read_meta(path)
        except InputError:
            return []
        if any(meta.get(key) != value for key, value in origin.items()):
            return []
        rows.append({key: meta[key] for key in meta if key not in ("affine", "grid")})
    complete = rows and len(rows) == rows[0]["targets"]
    # By length first: instance 7 comes before instance 41, as when they were cut.
    return sorted(rows, key=lambda r: (len(r["file"]), r["file"])) if complete else []


def _files_of(out_dir: Path, sample_id: str) -> list[Path]:
    """List the crops of a case: ``case.npz``, or ``case#instance.npz`` for each instance."""
    whole = out_dir / f"{sample_id}.npz"
    instances = whole.parent.glob(f"{glob.escape(whole.stem)}#*.npz")
    return [path for path in (whole, *instances) if path.exists()]


def _stamp(path: Path) -> list:
    """Return what tells that a source file has changed."""
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]
