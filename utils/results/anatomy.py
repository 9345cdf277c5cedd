"""The anatomical group of an organ, for tables with one column a group.

The groups are those of SAM-Med3D's tables (arXiv:2310.15161), and "other". ``anatomy.json`` lists
the organs of each group by the names of their folders (`label_table.organ_slug`). An entry
"organ/data set" overrides the plain organ where one name means two things: "vessel" is a great
vessel except in microscopy. What needed a decision:

* "abdomen and thorax" includes bladder, trachea and all of the oesophagus; glands have a group of
  their own, in which the prostate is (and AMOS's "prostate or uterus"), but not the pancreas.
* "bone" is the skeleton with the discs between the vertebrae.
* "brain" is the central nervous system: spinal cord and canal, optic nerves and chiasm too.
* "cardiac" is the heart and the great vessels, the portal, splenic, iliac and carotid ones too, as
  in ``CT_TotalSeg_cardiac``.
* "lesion" is what disease or treatment put there: tumours, cysts, strokes, infections, resection
  cavities, and lymph nodes, since data sets hold the enlarged ones.
* "other" is what fits none: eyes, inner ear, larynx, mouth, and all that a microscope sees.
"""

from collections.abc import Collection
from functools import cache
from pathlib import Path

from utils.files.strict_json import read_json

LESION, SEEN_LESION, UNSEEN_LESION = "lesion", "seen lesion", "unseen lesion"
OTHER = "other"

#: Every group that `report_group` can return, in the order of SAM-Med3D's columns.
REPORT_GROUPS = (
    "abdomen and thorax",
    "bone",
    "brain",
    "cardiac",
    "gland",
    "muscle",
    SEEN_LESION,
    UNSEEN_LESION,
    LESION,
    OTHER,
)

_FILE = Path(__file__).with_name("anatomy.json")


def group_of(dataset: str, organ: str) -> str:
    """Return the group of an organ's folder in a data set; "other" if no group lists it."""
    groups = _groups()
    return groups.get(f"{organ}/{dataset}") or groups.get(organ, OTHER)


def report_group(dataset: str, organ: str, trained_on: Collection[str] | None) -> str:
    """Return the group of an organ; for a lesion, also whether it was in the training data.

    Args:
        dataset: key of the class file.
        organ: name of the organ's folder.
        trained_on: "organ/data set" of every folder trained on; a lesion is "seen" if its own
            folder is one of them, else "unseen". None if unknown: its group is just "lesion".
    """
    group = group_of(dataset, organ)
    if group != LESION or trained_on is None:
        return group
    return SEEN_LESION if f"{organ}/{dataset}" in trained_on else UNSEEN_LESION


@cache
def _groups() -> dict[str, str]:
    """Return the group of each entry of ``anatomy.json``."""
    content = read_json(_FILE, "the groups of organs", dict[str, list[str]])
    return {entry: group for group, entries in content.items() for entry in entries}
