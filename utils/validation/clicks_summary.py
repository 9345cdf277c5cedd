"""The summary of a validation by protocol "clicks": means over targets, as text and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from utils.results.ball import BALL_RADII_MM, best_fixed_radius
from utils.validation.ceiling_tables import ceiling_columns, ceiling_section
from utils.validation.image_tables import ImageCheckResult
from utils.validation.protocol import Finished, Section, Summary
from utils.validation.scores import CaseScore, TargetScore
from utils.validation.tables import clicked, grouped, markdown, overall_rows
from utils.validation.thickness_tables import thickness_table


@dataclass(frozen=True)
class ClicksSummary(Summary):
    """The figures of a validation, as in ``summary.json``; lists run over the clicks."""

    model: str
    fingerprint: str
    targets: int
    dsc: list[float]
    nsd: list[float]
    dsc_auc: float
    nsd_auc: float
    ball_radius_mm: float
    ball_dsc: float
    mended_foreground: float | None
    mended_background: float | None
    encoder_ms: float
    decoder_ms: float
    encoder_parameters: int
    parameters: int
    resolution: int
    peak_memory_mib: float
    device: str
    precision: str
    failures: list[str]
    out_dir: str
    ceiling: dict[str, float] | None  # None without --ceiling
    image_check: ImageCheckResult | None  # None without --image-check
    # The following are not in summary.json; the tables are Markdown.
    table: str
    by_thickness: str
    ceilings: Section | None

    def to_dict(self) -> dict:
        """Return what ``summary.json`` holds."""
        left_out = {"table", "by_thickness", "ceilings"}
        names = [field.name for field in fields(self) if field.name not in left_out]
        content = {name: getattr(self, name) for name in names}
        check = self.image_check
        return content | {"image_check": check.to_dict() if check else None}

    @property
    def failure_lines(self) -> list[str]:
        """One line for each case that could not be scored."""
        return self.failures

    @property
    def notes(self) -> Sequence[str]:
        """The error that later clicks fix, the ball as a baseline, times and memory."""
        return (
            f"later clicks fix {_share(self.mended_foreground)} of the missed region and "
            f"{_share(self.mended_background)} of the false region they are placed in",
            f"ball of the best radius, {self.ball_radius_mm:.0f} mm, at the first click: "
            f"DSC {self.ball_dsc:.3f}",
            f"encoder {self.encoder_ms:.1f} ms, decoder {self.decoder_ms:.1f} ms a click "
            f"({self.device}, {self.precision}); peak memory {self.peak_memory_mib:.0f} MiB; "
            f"{self.parameters / 1e6:.1f} M parameters",
            *([self._ceiling_note] if self.ceiling else []),
            *([self.image_check.note] if self.image_check else []),
        )

    @property
    def _ceiling_note(self) -> str:
        lost = (
            f"{metric} {self.ceiling[f'ceiling_{metric}']:.3f} (the grid loses "
            f"{self.ceiling[f'lost_by_grid_{metric}']:.3f}, the network "
            f"{self.ceiling[f'lost_by_network_{metric}']:.3f})"
            for metric in ("DSC", "NSD")
        )
        return f"ceiling of the mask's grid: {', '.join(lost)}"

    @property
    def sections(self) -> Sequence[Section]:
        """The image check and the ceiling, as far as they were asked for."""
        check = self.image_check.section if self.image_check else None
        return [section for section in (check, self.ceilings) if section]

    def __str__(self) -> str:
        dsc, nsd = (" ".join(f"{v:.3f}" for v in curve) for curve in (self.dsc, self.nsd))
        curves = (
            f"{self.targets} targets   DSC over clicks {dsc} (AUC {self.dsc_auc:.3f})   "
            f"NSD {nsd} (AUC {self.nsd_auc:.3f})"
        )
        where = f"tables, predictions, pictures, report -> {self.out_dir}"
        tables = [text for text in (self.table, self.by_thickness) if text]
        tables += [markdown(section.rows) for section in self.sections]
        return "\n".join(["\n\n".join(tables), "", curves, *self.notes, where])


def summarise(run: Finished, check: ImageCheckResult | None) -> ClicksSummary:
    """Return the summary of a finished run.

    Args:
        check: of a run with image check.
    """
    (whole,) = grouped(run.scores, "all")
    targets = [target for case in run.scores for target in case.targets]
    radius, ball = best_ball(run.scores)
    dsc_auc, _, nsd_auc = whole.scores.auc
    return ClicksSummary(
        model=run.network.name,
        fingerprint=run.network.fingerprint,
        targets=len(targets),
        dsc=whole.scores.dsc[1:].tolist(),
        nsd=whole.scores.nsd_correct[1:].tolist(),
        dsc_auc=dsc_auc,
        nsd_auc=nsd_auc,
        ball_radius_mm=radius,
        ball_dsc=ball,
        mended_foreground=mended_by_later_clicks(targets, foreground=True),
        mended_background=mended_by_later_clicks(targets, foreground=False),
        encoder_ms=float(np.median([t.encoder_ms for t in targets])),
        decoder_ms=float(np.median([ms for t in targets for ms in t.decoder_ms])),
        encoder_parameters=run.network.encoder_parameters,
        parameters=run.network.parameters,
        resolution=run.network.resolution,
        peak_memory_mib=max(case.peak_memory_mib for case in run.scores),
        device=run.settings.device,
        precision=run.settings.precision,
        failures=[f"{case}: {message}" for case, message in run.failures.items()],
        out_dir=str(run.out_dir),
        ceiling=ceiling_columns(targets) or None,
        image_check=check,
        by_thickness=thickness_table(run.scores),
        ceilings=ceiling_section(run.scores),
        table=markdown(overall_rows({run.network.name: run.scores}, run.network.edges)),
    )


def best_ball(scores: Sequence[CaseScore]) -> tuple[float, float]:
    """Return the radius in mm, and the mean DSC, of the best ball about the first click."""
    curves = [target.ball_dsc for case in scores for target in case.targets]
    return best_fixed_radius(np.array(curves), BALL_RADII_MM)


def mended_by_later_clicks(targets: Sequence[TargetScore], *, foreground: bool) -> float | None:
    """Return the share of the clicked error that a click removes, over all clicks but the first.

    Args:
        foreground: True for clicks into missed regions, False for clicks into false regions.

    Returns:
        None where there is no such click.
    """
    shares = [
        share
        for target in targets
        for click, share in list(zip(clicked(target), target.mended, strict=True))[1:]
        if click.is_foreground == foreground and not math.isnan(share)
    ]
    return float(np.mean(shares)) if shares else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
