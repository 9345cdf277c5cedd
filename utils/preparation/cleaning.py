"""Labels without their crumbs: small components, and targets too small or too thin (no torch).

SAM-Med3D (arXiv:2310.15161) trains on labels cleaned so. Here all of it is off by default, and the
numbers are the user's. Masks are (D, H, W); sizes are mm and mm3, never voxels. Components are
joined over faces, edges and corners. Inputs are never modified; where nothing is dropped, the
input itself comes back.
"""

import argparse
import math
from dataclasses import asdict, dataclass

import cc3d
import numpy as np
from scipy import ndimage

from utils.errors import InputError
from utils.volumes.geometry import Triple

#: Headers hold spacing in float32: a side of 15 voxels of 1 mm must not be below 15 mm.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class CleaningRule:
    """What is dropped from a label; 0 turns a field off.

    Components go first: ``keep_components`` is how many of the largest stay. Then what is left
    goes as a whole if it has less than ``min_volume_mm3``, or if the shortest side of its tight
    bounding box, along the volume's own axes, has less than ``min_side_mm``.

    Raises:
        InputError: a field is negative or not finite, or components are not a whole number.
    """

    min_volume_mm3: float = 0
    min_side_mm: float = 0
    keep_components: int = 0

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            whole = field == "keep_components"
            if not math.isfinite(value) or value < 0 or (whole and value != int(value)):
                raise InputError(
                    f"--{field.replace('_', '-')} is {value}. "
                    f"Expected a {'whole' if whole else 'finite'} number, 0 or more: "
                    "correct it, or leave the flag out to drop nothing."
                )

    @property
    def active(self) -> bool:
        """Whether the rule can drop anything at all."""
        return any(asdict(self).values())

    def to_dict(self) -> dict:
        """Return the fields, as records of a run's settings store them."""
        return asdict(self)


def add_cleaning_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `CleaningRule`."""
    cleaning = parser.add_argument_group("cleaning of labels")
    cleaning.add_argument(
        "--min-volume-mm3",
        type=float,
        default=0,
        help="leave out targets of less than this volume in mm3; 0 = keep all (%(default)s)",
    )
    cleaning.add_argument(
        "--min-side-mm",
        type=float,
        default=0,
        help="leave out targets whose bounding box has a side shorter than this in mm; "
        "0 = keep all (%(default)s)",
    )
    cleaning.add_argument(
        "--keep-components",
        type=int,
        default=0,
        help="keep this many of a target's components, the largest; 0 = all (%(default)s)",
    )


def cleaning_rule(args: argparse.Namespace) -> CleaningRule:
    """Collect the flags of `add_cleaning_arguments`."""
    return CleaningRule(args.min_volume_mm3, args.min_side_mm, args.keep_components)


def clean_mask(
    mask: np.ndarray, spacing_zyx: Triple, rule: CleaningRule
) -> tuple[np.ndarray, list[str]]:
    """Clean one target.

    Args:
        mask: (D, H, W) bool.
        spacing_zyx: voxel size in mm, in array order.
        rule: what to drop.

    Returns:
        The mask without what was dropped, all False if that is everything; and a line per reason,
        none if nothing was dropped (of an empty mask nothing can be).
    """
    box = _tight_box(mask) if rule.active else None
    if box is None:
        return mask, []
    kept, reasons = _clean_part(mask[box], spacing_zyx, rule)
    if not reasons:
        return mask, []
    cleaned = np.zeros(mask.shape, bool)
    cleaned[box] = kept
    return cleaned, reasons


def clean_instances(
    label: np.ndarray, spacing_zyx: Triple, rule: CleaningRule
) -> tuple[np.ndarray, list[str]]:
    """Clean each instance of ``label`` (D, H, W) integers by itself; as `clean_mask` otherwise.

    Numbers stay as they are and dropped voxels become 0; lines begin with ``instance <number>:``.
    """
    cleaned, lines = label, []
    boxes = ndimage.find_objects(label) if rule.active else []
    for number, box in enumerate(boxes, start=1):
        if box is None:
            continue
        part = label[box] == number
        kept, reasons = _clean_part(part, spacing_zyx, rule)
        if reasons:
            cleaned = label.copy() if cleaned is label else cleaned
            cleaned[box][part & ~kept] = 0
            lines += [f"instance {number}: {reason}" for reason in reasons]
    return cleaned, lines


def _clean_part(
    part: np.ndarray, spacing_zyx: Triple, rule: CleaningRule
) -> tuple[np.ndarray, list[str]]:
    """Apply ``rule`` to a mask that fills its box; return what stays of it, and the reasons."""
    kept, reasons = _largest_components(part, rule.keep_components)
    misfits = []
    volume_mm3 = np.count_nonzero(kept) * math.prod(spacing_zyx)
    if volume_mm3 < rule.min_volume_mm3 * (1 - _ROUNDING):
        misfits.append(f"volume {volume_mm3:g} mm3 is below {rule.min_volume_mm3:g}")
    lengths = (side.stop - side.start for side in _tight_box(kept))
    side_mm = min(n * spacing for n, spacing in zip(lengths, spacing_zyx, strict=True))
    if side_mm < rule.min_side_mm * (1 - _ROUNDING):
        misfits.append(f"shortest side {side_mm:g} mm is below {rule.min_side_mm:g}")
    return np.zeros_like(kept) if misfits else kept, reasons + misfits


def _largest_components(part: np.ndarray, most: int) -> tuple[np.ndarray, list[str]]:
    """Keep the ``most`` largest components (0 = all); of equal ones, those first in C order."""
    if most == 0:
        return part, []
    labels, count = _numbered_components(part)
    if count <= most:
        return part, []
    sizes = cc3d.statistics(labels, no_slice_conversion=True)["voxel_counts"].astype(np.int64)
    chosen = np.zeros(count + 1, bool)
    chosen[1 + np.argsort(-sizes[1:], kind="stable")[:most]] = True
    kept = np.empty(part.shape, bool)
    for z, plane in enumerate(labels):  # NumPy casts an index to int64: a plane at a time
        kept[z] = chosen[plane]
    total, lost = sizes[1:].sum(), sizes[1:][~chosen[1:]].sum()
    return kept, [f"{count - most:,} of {count:,} components, {lost:,} of {total:,} voxels"]


def _numbered_components(part: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the 26-connected components by their first voxel in C order."""
    if sum(n > 1 for n in part.shape) < 2:  # cc3d fails on some columns of voxels
        labels, count = ndimage.label(part, np.ones((3, 3, 3)))
        return labels.astype(np.uint32), count
    # cc3d's numbers have this order if, and only if, the array is in C order.
    return cc3d.connected_components(np.ascontiguousarray(part), connectivity=26, return_N=True)


def _tight_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the half-open box around the True voxels, None where there are none."""
    return ndimage.find_objects(mask, max_label=1)[0]
