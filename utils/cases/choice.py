"""Some of many cases, evenly spaced, where scoring or comparing all of them would take too long."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def evenly_spaced(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return ``count`` of the items, evenly spaced from the first to the last; None: all.

    >>> evenly_spaced("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if count is None or count >= len(items):
        return list(items)
    return [items[number] for number in np.linspace(0, len(items) - 1, count).round().astype(int)]
