"""Protocol "clicks" on prepared folders: its cases, tables, curves, pictures and summary."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from utils.cases.choice import evenly_spaced
from utils.cases.prepared import Case, find_cases, read_case
from utils.files.atomic import atomic_path
from utils.files.nifti import read_nifti, write_nifti
from utils.prompts.kinds import Click
from utils.results.ball import ball_nsd
from utils.results.csv_table import write_csv
from utils.results.curves import click_curve_figure
from utils.results.figures import png_bytes, save
from utils.results.overlays import overlay_figure
from utils.validation.clicks import Evaluator, ScoredCase
from utils.validation.clicks_summary import ClicksSummary, best_ball, summarise
from utils.validation.image_check import ImageCheck, other_cases
from utils.validation.image_tables import ImageCheckResult, image_rows
from utils.validation.protocol import (
    Finished,
    Overlay,
    RunSettings,
    ScoreJob,
    ValidationProtocol,
)
from utils.validation.scores import CLICKS, CaseScore, TargetScore
from utils.validation.tables import (
    click_rows,
    clicked,
    organ_rows,
)
from utils.validation.thickness_tables import thickness_rows
from utils.validation.worker import opened
from utils.volumes.labels import as_label


@dataclass(frozen=True)
class ClicksJob(ScoreJob):
    """A case of a prepared folder: one label of one organ, and its image."""

    protocol = CLICKS
    sample: Case
    max_instances: int
    predicts: bool  # write the prediction
    draws: bool  # write a picture
    ceiling: bool  # also score the best mask of the grid
    check: ImageCheck | None  # None: no image check

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
        """Image and label, also those of the other case of an image check."""
        samples = [self.sample, self.check.other if self.check else None]
        return tuple(path for s in samples if s for path in (s.image_path, s.label_path))

    def make_ready(self) -> None:
        """Make the run's evaluator."""
        self._evaluator()

    def score(self) -> CaseScore:
        """Score all targets; write prediction and picture."""
        scored = self._evaluator().run_case(self.sample, self.check)
        if self.predicts:
            dtype = np.uint8 if scored.prediction.max() < 256 else np.uint16
            prediction, image = scored.prediction.astype(dtype), scored.image
            write_nifti(self.prediction_path, prediction, image.affine, image.forms)
        if self.draws:
            save(_picture(scored), self.picture_path)
        return scored.score

    def _evaluator(self) -> Evaluator:
        return _evaluator(self.settings, self.max_instances, self.ceiling)

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


class ClicksProtocol(ValidationProtocol):
    """Each target of ``--val-datas`` alone, in a crop about it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @property
    def options(self) -> list:
        """How many instances of a label are scored, and what is computed beside scores."""
        flags = {"ceiling": self.args.ceiling, "image check": self.args.image_check}
        return [self.args.max_instances, *(name for name, is_on in flags.items() if is_on)]

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
        others = other_cases(cases) if self.args.image_check else [None] * len(cases)
        pairs = evenly_spaced(list(zip(cases, others, strict=True)), self.args.cases)
        count = min(self.args.pictures, len(pairs))
        drawn = {int(i) for i in np.linspace(0, len(pairs) - 1, count)}
        return [
            ClicksJob(
                case=case.sample_id,
                out_dir=self.args.out_dir,
                settings=settings,
                sample=case,
                max_instances=self.args.max_instances,
                predicts=self.args.predictions,
                draws=number in drawn,
                ceiling=self.args.ceiling,
                check=ImageCheck(other) if self.args.image_check else None,
            )
            for number, (case, other) in enumerate(pairs)
        ]

    def finish(self, run: Finished) -> ClicksSummary:
        """Write cases.csv, organs.csv, thickness.csv, summary.json and the curves over the clicks.

        With --image-check also image_check.csv.
        """
        check = self._image_check(run.scores) if self.args.image_check else None
        summary = summarise(run, check)
        write_csv(run.out_dir / "cases.csv", click_rows(run.scores), digits=4)
        write_csv(run.out_dir / "organs.csv", organ_rows(run.scores), digits=4)
        if rows := thickness_rows(run.scores):
            write_csv(run.out_dir / "thickness.csv", rows, digits=4)
        if check:
            write_csv(run.out_dir / "image_check.csv", image_rows(run.scores), digits=4)
        with atomic_path(run.out_dir / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary.to_dict(), indent=1))
        ball = (f"ball of {summary.ball_radius_mm:.0f} mm at click 1", summary.ball_dsc)
        dsc = click_curve_figure({summary.model: summary.dsc}, ylabel="DSC", baseline=ball)
        save(dsc, run.out_dir / "dsc.png")
        nsd = click_curve_figure({summary.model: summary.nsd}, ylabel="NSD (2 mm)")
        save(nsd, run.out_dir / "nsd.png")
        return summary

    def _image_check(self, scores: Sequence[CaseScore]) -> ImageCheckResult:
        """Average the image check; the NSD of the best ball is computed here, from the labels."""
        radius, ball_dsc = best_ball(scores)
        samples = {case.sample_id: case for case in find_cases(self.args.val_datas)}
        nsds = []
        for score in scores:
            path = samples[score.case].label_path
            label = as_label(read_nifti(path).array, path)
            for target in score.targets:
                mask, (*click, _) = label == target.class_id, target.clicks[0]
                nsds.append(ball_nsd(mask, click, score.spacing_xyz[::-1], radius))
        return ImageCheckResult.of(scores, (radius, ball_dsc, float(np.mean(nsds))))


@lru_cache(maxsize=1)
def _evaluator(settings: RunSettings, max_instances: int, ceiling: bool) -> Evaluator:
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
        ceiling=ceiling,
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
