"""Results of the image check: means over targets, and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.validation.image_check import EXPLAINED, IMAGES, NOISE, OWN, image_share
from utils.validation.protocol import Section
from utils.validation.scores import CaseScore, TargetScore
from utils.validation.thickness_tables import SHOWN_CLICKS


@dataclass(frozen=True)
class MeanCurves:
    """Mean scores over targets; lists run over the clicks."""

    targets: int
    dsc: list[float]
    nsd: list[float]


@dataclass(frozen=True)
class ImageCheckResult:
    """The image check of a run; ``dsc`` and ``nsd`` of the ball are those of one radius."""

    curves: dict[str, MeanCurves]  # image -> scores, the own image first
    ball_radius_mm: float
    ball_dsc: float
    ball_nsd: float

    @classmethod
    def of(
        cls, scores: Sequence[CaseScore], ball: tuple[float, float, float]
    ) -> "ImageCheckResult":
        """Average the targets of a run with image check.

        Args:
            ball: radius in mm, DSC and NSD of the best ball about the first click.
        """
        rows = [row for case in scores for t in case.targets for row in _images_of(t).items()]
        curves = {}
        for image in IMAGES:
            own = np.array([row for name, row in rows if name == image])  # (targets, 2, clicks)
            if len(own):
                dsc, nsd = own.mean(axis=0).tolist()
                curves[image] = MeanCurves(len(own), dsc, nsd)
        return cls(curves, *ball)

    @property
    def clicks(self) -> list[int]:
        """The clicks that are shown."""
        return [k for k in SHOWN_CLICKS if k <= len(self.curves[OWN].dsc)]

    def shares(self, metric: str) -> dict[int, float | None]:
        """Return the image share by click, of "dsc" or "nsd"; see `image_share`."""
        own, noise = (getattr(self.curves[image], metric) for image in (OWN, NOISE))
        ball = getattr(self, f"ball_{metric}")
        return {k: image_share(own[k - 1], noise[k - 1], ball) for k in self.clicks}

    def to_dict(self) -> dict:
        """Return what ``summary.json`` holds."""
        return {
            "curves": {name: vars(curves) for name, curves in self.curves.items()},
            "ball_radius_mm": self.ball_radius_mm,
            "ball_dsc": self.ball_dsc,
            "ball_nsd": self.ball_nsd,
            "image_share_dsc": self.shares("dsc"),
            "image_share_nsd": self.shares("nsd"),
        }

    @property
    def note(self) -> str:
        """The result in a line."""
        shares = [
            f"{metric.upper()} {' '.join(map(_share, self.shares(metric).values()))}"
            for metric in ("dsc", "nsd")
        ]
        own, noise = (
            " ".join(f"{self.curves[image].dsc[k - 1]:.3f}" for k in self.clicks)
            for image in (OWN, NOISE)
        )
        return (
            f"image share at clicks {' '.join(map(str, self.clicks))}: {', '.join(shares)}   "
            f"(DSC {own}; the same clicks on noise {noise})"
        )

    @property
    def section(self) -> Section:
        """The report's table."""
        rows = [
            _row(name, *([c[k - 1] for k in self.clicks] for c in (of.dsc, of.nsd)), self.clicks)
            for name, of in self.curves.items()
        ]
        ball = [[value] * len(self.clicks) for value in (self.ball_dsc, self.ball_nsd)]
        rows.append(_row(f"ball of {self.ball_radius_mm:.0f} mm at click 1", *ball, self.clicks))
        shares = (list(self.shares(metric).values()) for metric in ("dsc", "nsd"))
        rows.append(_row("image share", *shares, self.clicks))
        note = (
            f"{EXPLAINED} Image share = (own - noise) / (own - ball); 0: the network does not look "
            "at the image; no number where it is no better than the ball."
        )
        return Section("Does the network look at the image?", note, rows)


def image_rows(scores: Sequence[CaseScore]) -> list[dict]:
    """Return the rows of ``image_check.csv``: one for each target and image."""
    return [
        {
            "sample_id": target.name,
            "organ": target.organ,
            "dataset": case.dataset,
            "image": image,
            **{f"DSC_{k}": value for k, value in enumerate(dsc, 1)},
            **{f"NSD_{k}": value for k, value in enumerate(nsd, 1)},
        }
        for case in scores
        for target in case.targets
        for image, (dsc, nsd) in _images_of(target).items()
    ]


def _images_of(target: TargetScore) -> Mapping[str, tuple[Sequence[float], Sequence[float]]]:
    """Return DSC and NSD over the clicks by image, the own one first."""
    own = {OWN: (target.dsc[1:], target.nsd[1:])}
    return own | {image: (dsc, nsd) for image, dsc, nsd in target.images}


def _row(
    name: str, dsc: Sequence[float | None], nsd: Sequence[float | None], clicks: Sequence[int]
) -> dict[str, str]:
    return {
        "image": name,
        **{f"DSC {k}": _share(value) for k, value in zip(clicks, dsc, strict=True)},
        **{f"NSD {k}": _share(value) for k, value in zip(clicks, nsd, strict=True)},
    }


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
