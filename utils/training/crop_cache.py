"""Volumes laid down once for training, so that crops can be cut anew for every step (no torch).

    images/<digest>.npy               an image in the network's orientation, on its own voxel grid
    <organ>/<data set>/<case>.npz     where a target lies in which image, and its voxels as bits
    index.json                        all targets

Images keep their type, are memory-mapped, and named by their content: targets of one image share
it, whatever folders it was copied to. Only the part of it that a crop needs is ever read. The cache
fits every network, since spacing and size are chosen when a crop is cut, and it can be carried to
another machine: nothing needs the NIfTI files again.
"""

import glob
import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from utils.errors import InputError
from utils.files.atomic import WriteError, atomic_path, remove_abandoned
from utils.files.stamp import stamp
from utils.run.executor import cpu_count, run_all
from utils.volumes.crops import Crop, cut_at, grid_on_target
from utils.volumes.geometry import CropGrid, CropRule, canonical_axes, spacing_zyx
from utils.volumes.intensity import holds_hounsfield
from utils.volumes.labels import ALL_USEFUL, InstanceRule

if TYPE_CHECKING:
    from utils.cases.prepared import Case

INDEX = "index.json"
IMAGES = "images"
#: What a target's own file says beside its row in the index.
ORIGIN = ("layout", "sources", "instances", "affine", "targets", "part_start", "part_shape")
#: The layout of this module's files; another one is laid down anew.
LAYOUT = 3


@dataclass(frozen=True)
class CropIndex:
    """What is in a cache; ``failures`` are the messages of targets that could not be laid down.

    A row of ``samples`` has, beside names and origin, what places crops without reading anything:
    ``shape`` and ``voxel_mm`` of the image, ``start`` and ``stop`` of the target's tight box, all
    in the network's orientation.
    """

    folder: Path
    samples: list[dict]
    failures: list[str]

    @property
    def folders(self) -> set[str]:
        """The "organ/data set" folders that the targets are from."""
        return {row["sample_id"].rsplit("/", 1)[0] for row in self.samples}


@dataclass(frozen=True)
class CachedTarget:
    """A target and its image, both in the network's orientation.

    ``image`` (R, A, S) is memory-mapped; ``mask`` bool is the part from voxel ``start`` on.
    """

    row: dict
    image: np.ndarray
    mask: np.ndarray
    start: tuple[int, int, int]

    def cut(self, grid: CropGrid) -> Crop:
        """Cut a cube."""
        return cut_at(
            grid,
            self.image,
            self.mask,
            target_start=self.start,
            hounsfield=self.row["hounsfield"],
        )

    def cut_centred(self, rule: CropRule) -> Crop:
        """Cut the cube about the middle of the target, as `utils.volumes.crops.cut` does."""
        shape, voxel_mm = tuple(self.row["shape"]), tuple(self.row["voxel_mm"])
        spacing_mm = rule.spacing_for(shape, voxel_mm)
        middle = tuple(
            (a + b - 1) / 2 for a, b in zip(self.row["start"], self.row["stop"], strict=True)
        )
        grid = grid_on_target(
            lambda centre: CropGrid.in_frame(centre, shape, voxel_mm, spacing_mm, rule.size),
            self.mask,
            middle,
            self.start,
        )
        return self.cut(grid)

    @property
    def identity(self) -> dict:
        """Say what this is: changes where the image, its voxel size or the target changes."""
        return {key: self.row[key] for key in ("sample_id", "image", "mask")}


def read_target(folder: Path, row: dict) -> CachedTarget:
    """Open a target of an index.

    Raises:
        InputError: a file is missing, damaged, or not the one that the index means.
    """
    path = folder / row["file"]
    stored, bits = _read(path)
    if stored.get("mask") != row["mask"] or stored.get("image") != row["image"]:
        raise InputError(
            f"{path}: found target {stored.get('sample_id')} {stored.get('mask')}, expected "
            f"{row['sample_id']} {row['mask']}.\nAnother run has laid it down anew: run "
            "preparelabel.py again, or give each run a --crops-dir of its own."
        )
    start, shape = tuple(stored["part_start"]), stored["part_shape"]
    mask = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
    path = folder / row["image"]
    try:
        image = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(path, error) from error
    if list(image.shape) != row["shape"]:
        raise _damaged(path, f"shape {image.shape}, expected {row['shape']}")
    return CachedTarget(row, image, mask, start)


def read_index(folder: Path) -> CropIndex:
    """Open a cache made earlier.

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
        if content["layout"] != LAYOUT:
            raise ValueError(f"layout {content['layout']}, expected {LAYOUT}")
        return CropIndex(folder, content["samples"], [])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a crop index of this version ({error}).\n"
            "Run preparelabel.py again: it lays the volumes down anew."
        ) from error


def build_cache(
    folders: Sequence[Path | str],
    out_dir: Path,
    *,
    instances: InstanceRule = ALL_USEFUL,
    workers: int | None = None,
) -> CropIndex:
    """Lay down every target of prepared ``folders`` in ``out_dir``; what is there is kept.

    A case is read anew when its files or ``instances`` have changed: its targets' own files say
    what they were made of, so a run that was stopped loses nothing and mixes nothing up. Cases that
    fail are reported in ``failures`` and the others go on.

    Raises:
        WriteError: the disk is full, or the folder does not let us write.
        WorkerDiedError: a worker process was killed; finished cases are kept.
    """
    from utils.cases.prepared import find_cases  # nibabel is needed only where NIfTI is read

    cases = find_cases(folders)
    samples, failures = [], []
    work = partial(_lay_down, out_dir=out_dir, instances=instances)
    done = run_all(work, enumerate(cases), workers=workers or cpu_count())
    done = tqdm(done, total=len(cases), desc="crops", unit="case")
    for _, made, failure in sorted(done, key=lambda result: result[0]):
        samples += made
        failures += [failure] if failure else []
    remove_abandoned(out_dir)
    if not samples:
        raise InputError("no target could be read:\n" + "\n".join(failures[:5]))
    with atomic_path(out_dir / INDEX) as temporary:
        temporary.write_text(json.dumps({"layout": LAYOUT, "samples": samples}, indent=1))
    return CropIndex(out_dir, samples, failures)


def _lay_down(
    numbered: tuple[int, "Case"], *, out_dir: Path, instances: InstanceRule
) -> tuple[int, list[dict], str]:
    """Cache all targets of one case; return its number, index rows, and what went wrong if any."""
    from utils.cases.prepared import read_case

    number, case = numbered
    try:
        if not case.image_path.exists():
            read_case(case)  # says what is missing
        origin = {
            "layout": LAYOUT,
            "case": case.sample_id,
            "organ": case.organ,
            "dataset": case.dataset,
            "sources": [stamp(case.image_path), stamp(case.label_path)],
            "instances": asdict(instances),
        }
        rows = _finished(out_dir, case.sample_id, origin) or _write_case(case, out_dir, origin)
        return number, rows, ""
    except WriteError:
        raise
    except InputError as error:
        return number, [], f"{case.sample_id}: {error}"


def _write_case(case, out_dir: Path, origin: dict) -> list[dict]:
    from utils.cases.prepared import read_case, targets_of

    image, label = read_case(case)
    targets = targets_of(case, label.array, InstanceRule(**origin["instances"]))
    axes, signs = canonical_axes(image.affine)
    voxels = _turned(image.array, axes, signs)
    voxel_mm = [spacing_zyx(image.affine)[axis] for axis in axes]
    place = {
        "image": _write_image(out_dir, voxels),
        "shape": list(voxels.shape),
        "voxel_mm": voxel_mm,
        "affine": image.affine.tolist(),
        "hounsfield": holds_hounsfield(image.array, case.is_ct),
        "targets": len(targets),
    }
    for stale in _files_of(out_dir, case.sample_id):
        stale.unlink()
    rows, turned = [], _turned(label.array, axes, signs)
    boxes = ndimage.find_objects(turned)
    for sample_id, value in targets:
        box = boxes[value - 1]
        # A voxel of margin, so that interpolation at the target's surface meets what is beyond.
        part = tuple(
            slice(max(side.start - 1, 0), min(side.stop + 1, length))
            for side, length in zip(box, turned.shape, strict=True)
        )
        mask = turned[part] == value
        bits = np.packbits(mask)
        target = {
            "sample_id": sample_id,
            "file": f"{sample_id}.npz",
            "start": [side.start for side in box],
            "stop": [side.stop for side in box],
            "part_start": [side.start for side in part],
            "part_shape": list(mask.shape),
        }
        row = origin | place | target
        where = json.dumps([row[key] for key in ("part_start", "part_shape", "shape", "voxel_mm")])
        digest = hashlib.blake2b(bits.tobytes() + where.encode(), digest_size=8)
        row["mask"] = digest.hexdigest()
        _write_target(out_dir / row["file"], bits, row)
        rows.append(_lean(row))
    return rows


def _lean(row: dict) -> dict:
    """Return what the index needs of a target: there may be 131,000 of them, in every process."""
    return {key: value for key, value in row.items() if key not in ORIGIN}


def _turned(array: np.ndarray, axes: tuple, signs: tuple) -> np.ndarray:
    """Turn an array (D, H, W) to the network's orientation, (R, A, S)."""
    return np.transpose(array, axes)[tuple(slice(None, None, sign) for sign in signs)]


def _write_image(out_dir: Path, voxels: np.ndarray) -> str:
    """Write an image unless it is there; return its path relative to the cache."""
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    voxels = np.ascontiguousarray(voxels)
    digest = hashlib.blake2b(voxels.data, digest_size=16)
    digest.update(f"{voxels.dtype.str} {voxels.shape}".encode())
    name = f"{IMAGES}/{digest.hexdigest()}.npy"
    path = out_dir / name
    # np.save writes a header of at least 64 bytes before the voxels.
    if not path.exists() or path.stat().st_size < voxels.nbytes + 64:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, voxels)
    return name


def _write_target(path: Path, bits: np.ndarray, row: dict) -> None:
    arrays = {"bits": bits, "row": np.frombuffer(json.dumps(row).encode(), dtype=np.uint8)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _read(path: Path) -> tuple[dict, np.ndarray]:
    """Return what a target's file says of itself, and its voxels as bits."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return json.loads(arrays["row"].tobytes()), arrays["bits"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, found: object) -> InputError:
    return InputError(
        f"{path}: not readable ({found}), expected a part of a crop cache.\n"
        "Delete the file and run preparelabel.py again: it will be made anew."
    )


def _finished(out_dir: Path, sample_id: str, origin: dict) -> list[dict]:
    """Return the rows of a case whose targets are all there and of this origin, else nothing."""
    rows = []
    for path in _files_of(out_dir, sample_id):
        try:
            row, _ = _read(path)
        except InputError:
            return []
        if any(row.get(key) != value for key, value in origin.items()):
            return []
        if not (out_dir / row["image"]).exists():
            return []
        rows.append(row)
    complete = rows and len(rows) == rows[0]["targets"]
    # By length first: instance 7 comes before instance 41, as when they were written.
    rows = sorted(map(_lean, rows), key=lambda r: (len(r["file"]), r["file"]))
    return rows if complete else []


def _files_of(out_dir: Path, sample_id: str) -> list[Path]:
    """List the targets of a case: ``case.npz``, or ``case#instance.npz`` for each instance."""
    whole = out_dir / f"{sample_id}.npz"
    instances = whole.parent.glob(f"{glob.escape(whole.stem)}#*.npz")
    return [path for path in (whole, *instances) if path.exists()]
