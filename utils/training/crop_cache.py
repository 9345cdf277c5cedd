"""The crop cache: volumes on disk, from which training quickly cuts a new crop in every step.

    images/<digest>.npy               an image in the network's orientation, on its own voxel grid
    <organ>/<data set>/<case>.npz     a target: the name of its image, its place in this image, and
                                      its voxels as bits
    index.json                        all targets

Images keep their dtype (float64 becomes float32) and are memory-mapped: cutting a crop reads only
the voxels of that crop. An image's file name is a digest of its content, so that all targets of an
image share one file, even where the image was copied to several folders. One cache serves every
network, since spacing and size are chosen when a crop is cut. The cache can be copied to another
machine without the NIfTI files.
"""

import glob
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from utils.errors import InputError
from utils.files.atomic import WriteError, atomic_path, remove_abandoned
from utils.files.safe_read import UNREADABLE
from utils.files.stamp import stamp
from utils.files.strict_json import parse_json, read_json
from utils.run.executor import cpu_count, run_all
from utils.training.crop_digests import damaged, image_digest, mask_digest, mask_of, require_digest
from utils.training.crop_ownership import cases_of_index, require_own_targets
from utils.training.crop_rows import IMAGES, checked_rows, lean, require_row
from utils.volumes.crops import Crop, cut_at, grid_on_target
from utils.volumes.geometry import CropGrid, CropRule, canonical_axes, spacing_zyx
from utils.volumes.intensity import holds_hounsfield
from utils.volumes.labels import ALL_USEFUL, InstanceRule

if TYPE_CHECKING:
    from utils.cases.prepared import Case

INDEX = "index.json"
#: Version of the layout above; a cache of another version is built again.
LAYOUT = 3
EXPECTED_INDEX = "the index of a crop cache, which preparelabel.py writes"


@dataclass(frozen=True)
class CropIndex:
    """The targets in a crop cache; from `build_cache` or `read_index`.

    Attributes:
        folder: the cache.
        samples: a row for each target: its ``sample_id`` ("organ/data set/case", with "#instance"
            for one of several), ``case``, ``organ`` and ``dataset``; its ``file`` and ``image`` in
            the folder; ``shape`` and ``voxel_mm`` of the image, ``start`` and ``stop`` of the
            target's tight box, all in the network's orientation (R, A, S); ``mask``, a digest of
            the target; ``hounsfield``, whether the image is in HU.
        failures: a message for each case that could not be cached.
    """

    folder: Path
    samples: list[dict]
    failures: list[str]

    @property
    def folders(self) -> set[str]:
        """The "organ/data set" folders that the targets come from."""
        return {row["sample_id"].rsplit("/", 1)[0] for row in self.samples}


@dataclass(frozen=True)
class CachedTarget:
    """A target and its image, both in the network's orientation (R, A, S).

    Attributes:
        row: of `CropIndex.samples`.
        image: the whole image, memory-mapped.
        mask: bool; the part of the image that starts at voxel ``start``.
    """

    row: dict
    image: np.ndarray
    mask: np.ndarray
    start: tuple[int, int, int]

    def cut(self, grid: CropGrid) -> Crop:
        """Cut the cube ``grid`` out of image and mask."""
        return cut_at(
            grid,
            self.image,
            self.mask,
            target_start=self.start,
            hounsfield=self.row["hounsfield"],
        )

    def cut_centred(self, rule: CropRule) -> Crop:
        """Cut the cube around the middle of the target, as `utils.volumes.crops.cut` does."""
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
        """Sample id and digests; they change with the image, its voxel size and the mask."""
        return {key: self.row[key] for key in ("sample_id", "image", "mask")}


def read_target(folder: Path, row: dict) -> CachedTarget:
    """Open a target of an index, and compare it with its digests.

    The mask is compared whenever it is read, an image once in each process, since this reads the
    whole image.

    Args:
        folder, row: of a `CropIndex`.

    Raises:
        InputError: a file is missing, damaged or outside of ``folder``, or has changed since the
            index was written.
    """
    require_row(folder / INDEX, folder, row)
    path = folder / row["file"]
    stored, bits = _read(path)
    if lean(stored) != row:
        raise InputError(
            f"{path}: found target {stored.get('sample_id')} {stored.get('mask')}, expected "
            f"{row['sample_id']} {row['mask']}.\nAnother run has rewritten this file: run "
            "preparelabel.py again, or give each run a --crops-dir of its own."
        )
    mask = mask_of(path, stored, bits)
    path = folder / row["image"]
    try:
        image = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise damaged(path, error) from error
    if list(image.shape) != row["shape"]:
        raise damaged(path, f"shape {image.shape}, expected {row['shape']}")
    require_digest(path, image)
    return CachedTarget(row, image, mask, tuple(stored["part_start"]))


def read_index(folder: Path) -> CropIndex:
    """Open a cache that `build_cache` wrote.

    Raises:
        InputError: there is no cache, it has another version, or its index is damaged or names
            files outside of the folder.
    """
    path = folder / INDEX
    if not path.exists():
        raise InputError(
            f"{path}: not found, expected a crop cache.\nRun preparelabel.py on prepared folders."
        )
    content = read_json(path, EXPECTED_INDEX)
    if not isinstance(content, dict) or content.get("layout") != LAYOUT:
        found = content.get("layout") if isinstance(content, dict) else "no table"
        raise InputError(
            f"{path}: not a crop index of this version (layout {str(found)[:60]}, expected "
            f"{LAYOUT}).\nRun preparelabel.py again: it builds the cache anew."
        )
    return CropIndex(folder, checked_rows(path, content.get("samples")), [])


def build_cache(
    folders: Sequence[Path | str],
    out_dir: Path,
    *,
    instances: InstanceRule = ALL_USEFUL,
    workers: int | None = None,
) -> CropIndex:
    """Build or update the crop cache of prepared folders.

    A cached case is read again only if its NIfTI files or ``instances`` have changed; each target's
    file records both. A stopped run therefore keeps its finished cases. A case that fails becomes a
    message in ``failures``, and the other cases are cached.

    Args:
        folders: <organ>/<data set> folders with imagesTr and labelsTr, from reallocate.py.
        out_dir: the cache; made if missing.
        instances: which instances of an instance label become targets.
        workers: processes; None = one for each core.

    Returns:
        The index, also written to ``index.json``, sorted by folder and case.

    Raises:
        InputError: a folder is not a prepared one, no target could be read, or ``index.json`` is of
            another origin.
        WriteError: the disk is full, or the folder cannot be written to.
        WorkerDiedError: a worker process was killed; finished cases are kept.
    """
    from utils.cases.prepared import find_cases  # nibabel is needed only where NIfTI is read

    cases, listed = find_cases(folders), cases_of_index(out_dir / INDEX)
    samples, failures = [], []
    work = partial(_cache_case, out_dir=out_dir, instances=instances)
    jobs = ((number, case, case.sample_id in listed) for number, case in enumerate(cases))
    done = run_all(work, jobs, workers=workers or cpu_count())
    done = tqdm(done, total=len(cases), desc="crops", unit="case")
    for _, made, failure in sorted(done, key=lambda result: result[0]):
        samples += made
        failures += [failure] if failure else []
    remove_abandoned(out_dir)
    if not samples:
        raise InputError(
            f"{out_dir}: no target could be cached, expected at least one. The first failures:\n"
            + "\n".join(failures[:5])
        )
    with atomic_path(out_dir / INDEX) as temporary:
        temporary.write_text(json.dumps({"layout": LAYOUT, "samples": samples}, indent=1))
    return CropIndex(out_dir, samples, failures)


def _cache_case(
    job: tuple[int, "Case", bool], *, out_dir: Path, instances: InstanceRule
) -> tuple[int, list[dict], str]:
    """Cache all targets of a case; return its number, its index rows, and its failure or "".

    Args:
        job: number and case, and whether the index of an earlier run lists the case.
    """
    from utils.cases.prepared import read_case

    number, case, is_listed = job
    try:
        if not case.image_path.exists():
            read_case(case)  # raises an InputError that names the missing file
        origin = {
            "layout": LAYOUT,
            "case": case.sample_id,
            "organ": case.organ,
            "dataset": case.dataset,
            "sources": [stamp(case.image_path), stamp(case.label_path)],
            "instances": asdict(instances),
        }
        origin |= {"modality": case.modality} if case.modality else {}
        rows = _finished(out_dir, case.sample_id, origin)
        if not rows:
            paths = [out_dir / f"{case.sample_id}.npz", *_files_of(out_dir, case.sample_id)]
            require_own_targets(out_dir, [*paths, out_dir / IMAGES / "any"], is_listed=is_listed)
            rows = _write_case(case, out_dir, origin)
        return number, rows, ""
    except WriteError:
        raise
    except InputError as error:
        return number, [], f"{case.sample_id}: {error}"


def _write_case(case: "Case", out_dir: Path, origin: dict) -> list[dict]:
    """Write the image and all targets of a case; return the index rows of the targets."""
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
        # A margin of one voxel, so that interpolation at the target's surface sees background.
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
        row["mask"] = mask_digest(bits, row)
        _write_target(out_dir / row["file"], bits, row)
        rows.append(lean(row))
    return rows


def _turned(array: np.ndarray, axes: tuple, signs: tuple) -> np.ndarray:
    """Turn an array (D, H, W) to the network's orientation, (R, A, S)."""
    return np.transpose(array, axes)[tuple(slice(None, None, sign) for sign in signs)]


def _write_image(out_dir: Path, voxels: np.ndarray) -> str:
    """Write an image unless it exists; return its path relative to the cache."""
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    voxels = np.ascontiguousarray(voxels)
    name = f"{IMAGES}/{image_digest(voxels)}.npy"
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
    """Return the facts in a target's file, and its voxels as bits."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = parse_json(arrays["row"].tobytes(), dict[str, Any])
            return facts, arrays["bits"]
    except UNREADABLE as error:
        raise damaged(path, error) from error


def _finished(out_dir: Path, sample_id: str, origin: dict) -> list[dict]:
    """Return a case's index rows if all its targets are cached with this ``origin``, else []."""
    rows = []
    for path in _files_of(out_dir, sample_id):
        try:
            row, bits = _read(path)
            require_row(path, out_dir, lean(row))
            mask_of(path, row, bits)
        except InputError:
            return []
        if any(row.get(key) != value for key, value in origin.items()):
            return []
        if not (out_dir / row["image"]).exists():
            return []
        rows.append(row)
    complete = rows and len(rows) == rows[0].get("targets")
    # Sort by length first: instance 7 comes before instance 41, as in `_write_case`.
    rows = sorted(map(lean, rows), key=lambda r: (len(r["file"]), r["file"]))
    return rows if complete else []


def _files_of(out_dir: Path, sample_id: str) -> list[Path]:
    """List the target files of a case: ``case.npz``, or ``case#instance.npz`` per instance."""
    whole = out_dir / f"{sample_id}.npz"
    instances = whole.parent.glob(f"{glob.escape(whole.stem)}#*.npz")
    return [path for path in (whole, *instances) if path.exists()]
