"""Cleaning labels: drop small components, and targets that are too small or too thin.

SAM-Med3D (arXiv:2310.15161) trains on labels cleaned in this way. Here all cleaning is off unless
flags ask for it. Masks are (D, H, W); sizes are mm and mm3, never voxels. Components are
joined over faces, edges and corners. Inputs are never modified; where nothing is dropped, the
input itself is returned.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from utils.errors import InputError
from utils.volumes.components import component_sizes, connected_components
from utils.volumes.geometry import Triple

#: Relative. Headers hold spacing in float32: 15 voxels of 1 mm must not count as less than 15 mm.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class CleaningRule:
    """What to drop from a label; 0 turns a field off.

    First all components but the ``keep_components`` largest are dropped. Then the rest is dropped
    as a whole if its volume is below ``min_volume_mm3``, or if the shortest side of its tight
    bounding box, along the volume's own axes, is below ``min_side_mm``.

    Raises:
        InputError: a field is negative or not finite, or ``keep_components`` is not whole.
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
        """Return the fields as a dict for JSON, as a job's settings hold them."""
        return asdict(self)


def add_cleaning_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags behind `CleaningRule`."""
    cleaning = parser.add_argument_group("cleaning of labels")
    cleaning.add_argument(
        "--min-volume-mm3",
        type=float,
        default=0,
        help="leave out targets below this volume in mm3; 0 = keep all (default: %(default)s)",
    )
    cleaning.add_argument(
        "--min-side-mm",
        type=float,
        default=0,
        help="leave out targets whose bounding box has a side shorter than this in mm; "
        "0 = keep all (default: %(default)s)",
    )
    cleaning.add_argument(
        "--keep-components",
        type=int,
        default=0,
        help="keep only this many of a target's components, the largest; 0 = keep all "
        "(default: %(default)s)",
    )


def cleaning_rule(args: argparse.Namespace) -> CleaningRule:
    """Return the rule that the flags of `add_cleaning_arguments` give."""
    return CleaningRule(args.min_volume_mm3, args.min_side_mm, args.keep_components)


def clean_target(
    label: np.ndarray, values: Sequence[int] | None, spacing_zyx: Triple, rule: CleaningRule
) -> tuple[np.ndarray, list[str]]:
    """Take one target out of a label and clean it.

    Args:
        label: (D, H, W) integers.
        values: the label values whose union is the target; None: all values are instances of it.
        spacing_zyx: voxel size in mm, in array order.
        rule: what to drop.

    Returns:
        As `clean_mask` or, for instances, as `clean_instances` of the label in uint16.
    """
    if values is None:
        return clean_instances(label.astype(np.uint16), spacing_zyx, rule)
    mask = label == values[0]
    for value in values[1:]:
        mask |= label == value
    return clean_mask(mask, spacing_zyx, rule)


def clean_mask(
    mask: np.ndarray, spacing_zyx: Triple, rule: CleaningRule
) -> tuple[np.ndarray, list[str]]:
    """Clean one target.

    Args:
        mask: (D, H, W) bool.
        spacing_zyx: voxel size in mm, in array order.
        rule: what to drop.

    Returns:
        The cleaned mask, all False if everything was dropped; and a line for each reason. There is
        no line if nothing was dropped, as with an empty mask.
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
    """Clean each instance of ``label`` (D, H, W) integers by itself, as `clean_mask` does.

    Numbers are kept and dropped voxels become 0; lines begin with ``instance <number>:``.
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
    """Apply ``rule`` to a mask that fills its box; return the cleaned mask and the reasons."""
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
    """Keep the ``most`` largest components (0 = all); equal sizes go by C order."""
    if most == 0:
        return part, []
    labels, count = connected_components(part)
    if count <= most:
        return part, []
    sizes = component_sizes(labels, count)
    chosen = np.zeros(count + 1, bool)
    chosen[1 + np.argsort(-sizes[1:], kind="stable")[:most]] = True
    kept = np.empty(part.shape, bool)
    for z, plane in enumerate(labels):  # plane by plane: NumPy casts an index to int64
        kept[z] = chosen[plane]
    total, lost = sizes[1:].sum(), sizes[1:][~chosen[1:]].sum()
    return kept, [f"{count - most:,} of {count:,} components, {lost:,} of {total:,} voxels"]


def _tight_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the half-open box around the True voxels, None where there are none."""
    return ndimage.find_objects(mask, max_label=1)[0]
