"""Protocol "clicks" on prepared folders: its cases, tables, curves, pictures and summary."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from utils.cases.prepared import Case, find_cases, read_case
from utils.files.atomic import atomic_path
from utils.files.nifti import read_nifti, write_nifti
from utils.prompts.kinds import Click
from utils.results.ball import BALL_RADII_MM, best_fixed_radius
from utils.results.csv_table import write_csv
from utils.results.curves import click_curve_figure
from utils.results.figures import png_bytes, save
from utils.results.overlays import overlay_figure
from utils.validation.clicks import Evaluator, ScoredCase
from utils.validation.protocol import (
    Finished,
    Overlay,
    RunSettings,
    ScoreJob,
    Summary,
    ValidationProtocol,
)
from utils.validation.scores import CLICKS, CaseScore, TargetScore
from utils.validation.tables import (
    click_rows,
    clicked,
    grouped,
    markdown,
    organ_rows,
    overall_rows,
)
from utils.validation.worker import opened


@dataclass(frozen=True)
class ClicksJob(ScoreJob):
    """A case of a prepared folder: one label of one organ, and its image."""

    protocol = CLICKS
    sample: Case
    max_instances: int
    predicts: bool  # write the prediction
    draws: bool  # write a picture

    @property
    def prediction_path(self) -> Path:
        """The mask after the last click, on the image's grid."""
        return self.out_dir / "predictions" / f"{self.case}.nii.gz"

    @property
    def picture_path(self) -> Path:
        """All targets' outlines and clicks."""
        return self.out_dir / "pictures" / f"{self.case}.png"

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Prediction and picture, as far as this run writes them."""
        wanted = {self.prediction_path: self.predicts, self.picture_path: self.draws}
        return tuple(path for path, is_wanted in wanted.items() if is_wanted)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Image and label."""
        return self.sample.image_path, self.sample.label_path

    def make_ready(self) -> None:
        """Make the run's evaluator."""
        _evaluator(self.settings, self.max_instances)

    def score(self) -> CaseScore:
        """Score all targets; write prediction and picture."""
        scored = _evaluator(self.settings, self.max_instances).run_case(self.sample)
        if self.predicts:
            dtype = np.uint8 if scored.prediction.max() < 256 else np.uint16
            prediction, image = scored.prediction.astype(dtype), scored.image
            write_nifti(self.prediction_path, prediction, image.affine, image.forms)
        if self.draws:
            save(_picture(scored), self.picture_path)
        return scored.score

    def overlay(self, score: CaseScore) -> Overlay | None:
        """Draw the worst target, if the prediction was written."""
        if not self.predicts:
            return None
        worst = score.worst_target
        image, label = read_case(self.sample)
        prediction = read_nifti(self.prediction_path).array
        figure = overlay_figure(
            image.array,
            label.array == worst.class_id,
            prediction == worst.class_id,
            spacing_zyx=image.spacing_zyx,
            clicks=_clicks_of([worst]),
        )
        curve = " → ".join(f"{value:.2f}" for value in worst.dsc[1:])
        instance = f"instance {worst.class_id}, " if len(score.targets) > 1 else ""
        return Overlay(score.case, f"{instance}DSC {curve}", png_bytes(figure))


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
    table: str  # Markdown; not in summary.json

    def to_dict(self) -> dict:
        """Return what ``summary.json`` holds."""
        names = [field.name for field in fields(self) if field.name != "table"]
        return {name: getattr(self, name) for name in names}

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
        )

    def __str__(self) -> str:
        dsc, nsd = (" ".join(f"{v:.3f}" for v in curve) for curve in (self.dsc, self.nsd))
        curves = (
            f"{self.targets} targets   DSC over clicks {dsc} (AUC {self.dsc_auc:.3f})   "
            f"NSD {nsd} (AUC {self.nsd_auc:.3f})"
        )
        where = f"tables, predictions, pictures, report -> {self.out_dir}"
        return "\n".join([self.table, "", curves, *self.notes, where])


class ClicksProtocol(ValidationProtocol):
    """Each target of ``--val-datas`` alone, in a crop about it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @property
    def options(self) -> list:
        """How many instances of a label are scored."""
        return [self.args.max_instances]

    @property
    def shown(self) -> dict[str, str]:
        """Prompts and instances."""
        return {
            "prompts": f"{self.args.num_clicks} clicks on each target alone",
            "instances": f"the largest {self.args.max_instances} of a label",
        }

    def jobs(self, settings: RunSettings) -> list[ScoreJob]:
        """Return a job for each case; the drawn cases are evenly spaced in their order."""
        cases = find_cases(self.args.val_datas)
        count = min(self.args.pictures, len(cases))
        drawn = {int(i) for i in np.linspace(0, len(cases) - 1, count)}
        return [
            ClicksJob(
                case=case.sample_id,
                out_dir=self.args.out_dir,
                settings=settings,
                sample=case,
                max_instances=self.args.max_instances,
                predicts=self.args.predictions,
                draws=number in drawn,
            )
            for number, case in enumerate(cases)
        ]

    def finish(self, run: Finished) -> ClicksSummary:
        """Write cases.csv, organs.csv, summary.json and the curves over the clicks."""
        summary = _summarise(run)
        write_csv(run.out_dir / "cases.csv", click_rows(run.scores), digits=4)
        write_csv(run.out_dir / "organs.csv", organ_rows(run.scores), digits=4)
        with atomic_path(run.out_dir / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary.to_dict(), indent=1))
        ball = (f"ball of {summary.ball_radius_mm:.0f} mm at click 1", summary.ball_dsc)
        dsc = click_curve_figure({summary.model: summary.dsc}, ylabel="DSC", baseline=ball)
        save(dsc, run.out_dir / "dsc.png")
        nsd = click_curve_figure({summary.model: summary.nsd}, ylabel="NSD (2 mm)")
        save(nsd, run.out_dir / "nsd.png")
        return summary


@lru_cache(maxsize=1)
def _evaluator(settings: RunSettings, max_instances: int) -> Evaluator:
    """Return the run's evaluator, made once in each process."""
    model, rule = opened(settings)
    device = torch.device(settings.device)
    return Evaluator(
        model,
        rule,
        num_clicks=settings.num_clicks,
        device=device,
        precision=getattr(torch, settings.precision),
        engine=settings.engine,
        max_instances=max_instances,
    )


def _picture(scored: ScoredCase) -> Figure:
    first = scored.score.targets[0]
    return overlay_figure(
        scored.image.array,
        scored.label.array > 0,
        scored.prediction > 0,
        spacing_zyx=scored.image.spacing_zyx,
        clicks=_clicks_of(scored.score.targets),
        title=f"{scored.score.case}   DSC {first.dsc[1]:.2f} → {first.dsc[-1]:.2f}",
    )


def _clicks_of(targets: Sequence[TargetScore]) -> list[Click]:
    return [click for target in targets for click in clicked(target)]


def _summarise(run: Finished) -> ClicksSummary:
    (whole,) = grouped(run.scores, "all")
    targets = [target for case in run.scores for target in case.targets]
    radius, ball = best_fixed_radius(np.array([t.ball_dsc for t in targets]), BALL_RADII_MM)
    dsc_auc, _, nsd_auc = whole.scores.auc
    return ClicksSummary(
        model=run.network.name,
        fingerprint=run.network.fingerprint,
        targets=len(targets),
        dsc=whole.scores.dsc[1:].tolist(),
        nsd=whole.scores.nsd_correct[1:].tolist(),
        dsc_auc=dsc_auc,
        nsd_auc=nsd_auc,
        ball_radius_mm=float(radius),
        ball_dsc=float(ball),
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
        table=markdown(overall_rows({run.network.name: run.scores}, run.network.edges)),
    )


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
