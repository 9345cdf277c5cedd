"""Scores of a case in either protocol: as measured, and after the challenge's rules.

Each target of a case has one score for each step. Step 0 is the box; a case without a box skips it
and scores 0 there. The later steps are clicks. DSC_AUC and NSD_AUC are areas over the click steps
only; DSC_Final and NSD_Final are the last step's scores. Protocol "clicks" has no boxes and no
further rules. In protocol "challenge":

* A case scores the mean over its targets, and its NSD of a step is 0 unless its mean DSC of that
  step is above 0.2. A case that takes more than 90 s a target scores 0 throughout.
* ``nsd_official`` uses the spacing in the order (x, y, z), as the evaluator does by mistake;
  ``nsd_correct`` uses array order (see utils/results/metrics.py). In protocol "clicks" both are the
  correct one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from utils.errors import InputError
from utils.results.ball import BALL_RADII_MM
from utils.results.metrics import CHALLENGE_DSC_FLOOR, interaction_auc

CLICKS, CHALLENGE = "clicks", "challenge"

#: The time limit of a case over all its steps, in wall seconds for each of its targets.
SECONDS_PER_TARGET = 90.0


class StepScores(NamedTuple):
    """Scores after each step; arrays (..., steps)."""

    dsc: np.ndarray
    nsd_official: np.ndarray
    nsd_correct: np.ndarray

    def mean(self) -> "StepScores":
        """Average the (n, steps) scores of n cases or targets."""
        return StepScores(*(scores.mean(axis=0) for scores in self))

    @property
    def auc(self) -> tuple[float, float, float]:
        """Areas over the click steps of (steps,) scores, at most the number of clicks - 1."""
        return tuple(interaction_auc(scores[1:]) for scores in self)

    @property
    def final(self) -> tuple[float, float, float]:
        """The last step of (steps,) scores."""
        return tuple(float(scores[-1]) for scores in self)


class ImageCurves(NamedTuple):
    """Scores of a target after each click with a wrong image in place of its own."""

    image: str  # one of `utils.validation.image_check.IMAGES`
    dsc: tuple[float, ...]
    nsd: tuple[float, ...]


class Ceiling(NamedTuple):
    """Scores of the best mask of the network's grid; see utils/results/ceiling.py."""

    dsc: float
    nsd: float
    cell_dsc: float  # of the mask that a loss on the grid's cells asks for
    cell_nsd: float


@dataclass(frozen=True)
class TargetScore:
    """One target as measured, before any rule; ``dsc`` and both NSDs have one score a step.

    The fields with defaults are of protocol "clicks", but for the thickness.
    """

    class_id: int
    name: str
    organ: str  # folder name
    voxels: int
    dsc: tuple[float, ...]
    nsd: tuple[float, ...]  # spacing in array order
    nsd_official: tuple[float, ...]  # the evaluator's
    clicks: tuple[tuple[int, int, int, int], ...]  # z, y, x, 1 = foreground; in order
    coverage: float | None = None  # share of the target's voxels inside its crop
    mended: tuple[float, ...] = ()  # by each click: the share of the clicked error that it removed
    ball_dsc: tuple[float, ...] = ()  # of the ball about the first click, for each BALL_RADII_MM
    encoder_ms: float = 0.0
    decoder_ms: tuple[float, ...] = ()  # of each click
    thickness_mm: float | None = None  # None in files of earlier versions
    ceiling: Ceiling | None = None  # with --ceiling
    images: tuple[ImageCurves, ...] = ()  # with --image-check

    @property
    def curves(self) -> tuple[tuple[float, ...], ...]:
        """The three scores over the steps, in the order of `StepScores`."""
        return self.dsc, self.nsd_official, self.nsd


@dataclass(frozen=True)
class CaseScore:
    """One case: the scores of its targets, its times and its memory."""

    case: str
    dataset: str
    modality: str
    shape: tuple[int, int, int]
    spacing_xyz: tuple[float, float, float]  # mm
    has_box: bool
    # Wall time of each step; in protocol "clicks" of the network alone. 0 for a skipped box step.
    seconds: tuple[float, ...]
    peak_memory_mib: float
    targets: tuple[TargetScore, ...]
    protocol: Literal["clicks", "challenge"] = CHALLENGE

    @classmethod
    def from_dict(cls, content: Mapping) -> "CaseScore":
        """Read the output of `to_dict`, with lists or tuples.

        Raises:
            InputError: a field is missing, unknown or of another type, there is no target, or a
                number is out of its range; the message names the case.
        """
        try:
            score = msgspec.convert(content, cls)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise InputError(_unreadable(content, str(error))) from error
        unknown = content.keys() - {each.name for each in fields(cls)}
        for target in content["targets"]:
            unknown |= target.keys() - {each.name for each in fields(TargetScore)}
        if unknown:
            raise InputError(_unreadable(content, f"the unknown fields {sorted(unknown)!a:.200}"))
        if found := next((fault for fault, is_there in _faults(score) if is_there), ""):
            raise InputError(_unreadable(content, found))
        return score

    def to_dict(self) -> dict:
        """Return plain containers for JSON; fields that hold their default are left out."""
        content = _without_defaults(self, asdict(self))
        pairs = zip(self.targets, content["targets"], strict=True)
        return content | {"targets": [_without_defaults(*pair) for pair in pairs]}

    @property
    def worst_target(self) -> TargetScore:
        """The target of lowest DSC after the last click; the first of equals."""
        return min(self.targets, key=lambda target: target.dsc[-1])

    @property
    def total_seconds(self) -> float:
        """Wall seconds of all steps."""
        return sum(self.seconds)

    @property
    def seconds_allowed(self) -> float:
        """Wall seconds above which the challenge scores the case 0."""
        return SECONDS_PER_TARGET * len(self.targets)

    @property
    def timed_out(self) -> bool:
        """Whether the case took so long that it scores 0."""
        return self.protocol == CHALLENGE and self.total_seconds > self.seconds_allowed

    @cached_property
    def target_scores(self) -> StepScores:
        """(targets, steps) scores as the protocol counts them."""
        measured = np.array([t.curves for t in self.targets], dtype=float)  # (targets, 3, steps)
        dsc, nsd_official, nsd_correct = np.moveaxis(measured * (not self.timed_out), 1, 0)
        if self.protocol == CLICKS:
            return StepScores(dsc, nsd_official, nsd_correct)
        above = dsc.mean(axis=0) > CHALLENGE_DSC_FLOOR
        return StepScores(dsc, nsd_official * above, nsd_correct * above)

    @cached_property
    def scores(self) -> StepScores:
        """(steps,) scores of the case."""
        return self.target_scores.mean()


def _without_defaults(record: TargetScore | CaseScore, content: dict) -> dict:
    defaults = {each.name: each.default for each in fields(record)}
    return {name: value for name, value in content.items() if value != defaults[name]}


def _faults(score: CaseScore) -> Iterator[tuple[str, bool]]:
    """Yield what may be wrong with the values of a score, and whether it is."""
    targets, steps = score.targets, len(score.seconds)
    curves = [curve for target in targets for curve in target.curves]
    yield "no target", not targets
    yield "fewer than two steps", steps < 2
    yield "curves of other lengths than the steps", any(len(curve) != steps for curve in curves)
    yield "scores that are not from 0 to 1", not all(0 <= v <= 1 for curve in curves for v in curve)
    times = [*score.seconds, *(ms for t in targets for ms in (t.encoder_ms, *t.decoder_ms))]
    sizes = [*times, score.peak_memory_mib]
    sizes += [size for target in targets for size in (target.voxels, target.thickness_mm or 0)]
    yield "a negative or infinite time or size", not all(0 <= v < math.inf for v in sizes)
    grid = [*score.shape, *score.spacing_xyz]
    yield "no such shape or spacing", not all(0 < value < math.inf for value in grid)
    limits = (*score.shape, 2)  # a click's kind is 0 or 1
    clicks = [zip(click, limits, strict=True) for t in targets for click in t.clicks]
    yield "no such click", not all(0 <= v < limit for click in clicks for v, limit in click)
    names = [score.case, score.dataset, score.modality]
    names += [name for target in targets for name in (target.name, target.organ)]
    checks = [image for target in targets for image in target.images]
    names += [image.image for image in checks]
    yield "an unprintable name", not all(map(str.isprintable, names))
    shares = [v for t in targets for v in (t.coverage or 0, *t.ball_dsc, *(t.ceiling or ()))]
    shares += [v for image in checks for v in (*image.dsc, *image.nsd)]
    yield "shares that are not from 0 to 1", not all(0 <= v <= 1 for v in shares)
    lengths = {len(curve) for image in checks for curve in (image.dsc, image.nsd)}
    yield "wrong images of other clicks", not lengths <= {steps - 1}
    if score.protocol == CLICKS:
        balls = [len(target.ball_dsc) for target in targets]
        yield "balls of other radii", any(count != len(BALL_RADII_MM) for count in balls)
        counts = [{len(t.clicks), len(t.mended), len(t.decoder_ms)} for t in targets]
        yield "times of other clicks", any(len(c) > 1 or c == {0} for c in counts)


def _unreadable(content: object, found: str) -> str:
    name = content.get("case") if isinstance(content, Mapping) else None
    return (
        f"{name or 'a case without a name'}: its scores cannot be used ({found}). Expected the "
        "fields that validation writes, with a target or more, two steps or more, and a finite "
        "score for each: delete its file, and validate it again."
    )
