"""Where the targets of a training come from: labels, regions of the image, generated volumes."""

import argparse
from dataclasses import dataclass
from typing import Literal

import numpy as np

from utils.errors import InputError, require_number
from utils.run.flags import share

Source = Literal["label", "region", "generated"]
#: What is left of a share at the end of a run, where no other share is given.
LEFT = 0.2
#: Names of the flags below, without dashes.
SOURCE_FLAGS = ("region_share", "region_share_end", "generated_share", "generated_share_end")


@dataclass(frozen=True)
class TargetShares:
    """Shares of the samples whose target is no label, at the start and at the end of a run.

    Between start and end the shares change linearly. An end of None is a fifth of the start.

    Raises:
        InputError: a share is not between 0 and 1, or both together are more than 1.
    """

    region: float = 0.0
    region_end: float | None = None
    generated: float = 0.0
    generated_end: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("region", self.region), ("generated", self.generated)):
            require_number(f"--{name}-share", value, 0, 1)
            end = getattr(self, f"{name}_end")
            if end is not None:
                require_number(f"--{name}-share-end", end, 0, 1)
        for when, end in (("start", 0.0), ("end", 1.0)):
            total = sum(self.at(end))
            if total > 1 + 1e-9:
                raise InputError(
                    f"--region-share and --generated-share: found {total:g} of the samples at the "
                    f"{when} of the run, expected 1 at most. Give smaller shares."
                )

    def at(self, done: float) -> tuple[float, float]:
        """Return the shares of regions and of generated volumes.

        Args:
            done: the share of the run that is done, 0 to 1.

        >>> TargetShares(region=0.5).at(0.5)
        (0.3, 0.0)
        """
        return _faded(self.region, self.region_end, done), _faded(
            self.generated, self.generated_end, done
        )

    def source(self, done: float, rng: np.random.Generator) -> Source:
        """Draw where the target of one sample comes from."""
        (region, generated), drawn = self.at(done), rng.random()
        if drawn < region:
            return "region"
        return "generated" if drawn < region + generated else "label"

    def __bool__(self) -> bool:
        """Tell whether there is any target that is no label."""
        return any(self.at(0.0)) or any(self.at(1.0))


def _faded(start: float, end: float | None, done: float) -> float:
    end = LEFT * start if end is None else end
    return start + (end - start) * done


def add_source_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags of `SOURCE_FLAGS`."""
    group.add_argument(
        "--region-share",
        type=share,
        default=0.0,
        help="share of the augmented samples whose target is a region cut from the image, at the "
        "start of the run; 0 = none (default: 0)",
    )
    group.add_argument(
        "--region-share-end",
        type=share,
        help="the same at the end of the run (default: a fifth of --region-share)",
    )
    group.add_argument(
        "--generated-share",
        type=share,
        default=0.0,
        help="share of the augmented samples that are generated volumes of random shapes, at the "
        "start of the run; 0 = none (default: 0)",
    )
    group.add_argument(
        "--generated-share-end",
        type=share,
        help="the same at the end of the run (default: a fifth of --generated-share)",
    )


def target_shares(args: argparse.Namespace) -> TargetShares:
    """Return the values of the flags that `add_source_arguments` adds."""
    return TargetShares(*(getattr(args, name) for name in SOURCE_FLAGS))
