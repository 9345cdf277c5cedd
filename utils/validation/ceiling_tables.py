"""Tables of what the mask's grid loses, and what the network loses; see utils/results/ceiling.py.

A score below 1 has two parts: 1 - ceiling is lost by the grid (and by the crop, where it does not
hold the whole target), and ceiling - reached is lost by the network.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from utils.results.thickness import THICKNESS_CLASSES, thickness_class
from utils.validation.protocol import Section
from utils.validation.scores import CaseScore, TargetScore

_METRICS = ("DSC", "NSD")


def ceiling_columns(targets: Sequence[TargetScore]) -> dict[str, float]:
    """Return means over targets for a CSV file; empty without --ceiling."""
    if any(target.ceiling is None for target in targets):
        return {}
    ceilings = np.mean([target.ceiling for target in targets], axis=0).reshape(2, 2)
    reached = np.mean([(target.dsc[-1], target.nsd[-1]) for target in targets], axis=0)
    columns = {}
    for n, metric in enumerate(_METRICS):
        ceiling, of_cells = map(float, ceilings[:, n])
        columns |= {
            f"ceiling_{metric}": ceiling,
            f"lost_by_grid_{metric}": 1 - ceiling,
            f"lost_by_network_{metric}": ceiling - float(reached[n]),
            f"ceiling_of_cell_loss_{metric}": of_cells,
        }
    return columns


def ceiling_section(scores: Sequence[CaseScore]) -> Section | None:
    """Return the report's table; None without --ceiling."""
    rows = []
    for name, targets in _groups(scores):
        columns = ceiling_columns(targets)
        if not columns:
            return None
        reached = [np.mean([getattr(t, m.lower())[-1] for t in targets]) for m in _METRICS]
        rows.append({"targets of": name, "targets": str(len(targets))})
        for metric, value in zip(_METRICS, reached, strict=True):
            shown = {
                "reached": value,
                "ceiling": columns[f"ceiling_{metric}"],
                "lost by grid": columns[f"lost_by_grid_{metric}"],
                "lost by network": columns[f"lost_by_network_{metric}"],
                "ceiling, loss on cells": columns[f"ceiling_of_cell_loss_{metric}"],
            }
            rows[-1] |= {f"{metric} {title}": f"{value:.3f}" for title, value in shown.items()}
    note = (
        "Reached: after the last click. Ceiling: the best mask of the network's low-resolution "
        "grid. Loss on cells: the mask that a loss on this grid, not on a finer one, asks for."
    )
    return Section("What the grid loses, and what the network loses", note, rows)


def _groups(scores: Sequence[CaseScore]) -> Iterator[tuple[str, list[TargetScore]]]:
    """Yield all targets, then those of each thickness class, of each data set, of each organ."""
    groups = defaultdict(list)
    for case in scores:
        for target in case.targets:
            groups[0, "all"].append(target)
            if target.thickness_mm is not None:
                number = THICKNESS_CLASSES.index(thickness_class(target.thickness_mm))
                groups[1 + number, f"thickness {THICKNESS_CLASSES[number]}"].append(target)
            groups[10, case.dataset].append(target)
            groups[11, f"{case.dataset}, {target.organ}"].append(target)
    for key in sorted(groups):
        yield key[1], groups[key]
