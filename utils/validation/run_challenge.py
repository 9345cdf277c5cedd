"""Protocol "challenge" on challenge NPZ: its cases, tables and summary."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from utils.cases.challenge import ChallengeCase, read_challenge_case, write_segs
from utils.cases.choice import evenly_spaced
from utils.cases.label_table import LabelTableError, modality_of, read_label_table
from utils.cases.prepared import require_usable_names
from utils.errors import InputError
from utils.files.npz import read_npz
from utils.prediction.predictor import Predictor
from utils.prediction.session import PredictorOptions
from utils.results.figures import png_bytes
from utils.results.overlays import overlay_figure
from utils.results.thickness import thickness_mm
from utils.run.device import peak_memory_mib
from utils.validation.challenge import PredictorAnswerer, Steps, evaluate, ranked
from utils.validation.protocol import (
    Finished,
    Overlay,
    RunSettings,
    ScoreJob,
    Summary,
    ValidationProtocol,
)
from utils.validation.scores import CHALLENGE, CaseScore, TargetScore
from utils.validation.tables import (
    anatomy_rows,
    clicked,
    grouped,
    markdown,
    overall_rows,
    write_challenge_tables,
)
from utils.validation.thickness_tables import thickness_table
from utils.validation.worker import opened
from utils.volumes.labels import as_label


@dataclass(frozen=True)
class ChallengeJob(ScoreJob):
    """A challenge file with its truth."""

    protocol = CHALLENGE
    image_path: Path
    label_path: Path
    class_file: Path
    boxes: bool  # begin with the boxes, if the case has any
    options: PredictorOptions

    @property
    def prediction_path(self) -> Path:
        """``segs`` after the last click, with class ids as in the truth."""
        return self.out_dir / "predictions" / f"{self.case}.npz"

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The prediction."""
        return (self.prediction_path,)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Image, label and class file."""
        return self.image_path, self.label_path, self.class_file

    def make_ready(self) -> None:
        """Make the run's predictor."""
        _predictor(self.settings, self.options)

    def score(self) -> CaseScore:
        """Run the protocol on the whole volume; write the prediction."""
        predictor = _predictor(self.settings, self.options)
        case = read_challenge_case(self.image_path)
        truth = self._read_truth(case)
        class_ids, _ = ranked(truth)
        self._require_boxes_of(case, class_ids)
        dataset, names = self._names(class_ids)
        boxes = case.boxes if self.boxes else None
        answerer = PredictorAnswerer(
            predictor, case.image, case.spacing_xyz, hounsfield=case.hounsfield
        )
        steps = evaluate(answerer, truth, case.spacing_xyz, boxes, self.settings.num_clicks)
        score = CaseScore(
            case=self.case,
            dataset=dataset,
            modality=modality_of(dataset),
            shape=truth.shape,
            spacing_xyz=case.spacing_xyz,
            has_box=boxes is not None,
            seconds=tuple(steps.seconds),
            peak_memory_mib=peak_memory_mib(predictor.network.device),
            targets=_target_scores(names, steps, truth, case.spacing_xyz[::-1]),
        )
        ids = np.array([0, *steps.class_ids], truth.dtype)
        write_segs(self.prediction_path, ids[steps.answers[-1]])
        return score

    def overlay(self, score: CaseScore) -> Overlay:
        """Draw the worst target."""
        worst = score.worst_target
        figure = overlay_figure(
            read_npz(self.image_path, ["imgs"])["imgs"],
            read_npz(self.label_path, ["gts"])["gts"] == worst.class_id,
            read_npz(self.prediction_path, ["segs"])["segs"] == worst.class_id,
            spacing_zyx=score.spacing_xyz[::-1],
            clicks=clicked(worst),
        )
        curve = " → ".join(f"{value:.2f}" for value in worst.dsc)
        return Overlay(score.case, f"{worst.name}, DSC {curve}", png_bytes(figure))

    def _read_truth(self, case: ChallengeCase) -> np.ndarray:
        truth = as_label(read_npz(self.label_path, ["gts"])["gts"], self.label_path)
        if truth.shape != case.image.shape:
            raise InputError(
                f"{self.label_path}: has shape {truth.shape} and the image {case.image.shape}. "
                "Expected one grid: take both files from one case."
            )
        return truth

    def _require_boxes_of(self, case: ChallengeCase, class_ids: list[int]) -> None:
        classes = len(class_ids)
        if classes == 0:
            raise InputError(f"{self.label_path}: the truth is empty, expected a class or more.")
        if case.prompts and len(case.prompts) != classes:
            raise InputError(
                f"{self.image_path}: has prompts for {len(case.prompts)} classes and "
                f"{self.label_path} has {classes} classes. Expected one entry a class, in order of "
                "class id: take both files from one case."
            )

    def _names(self, ids: list[int]) -> tuple[str, list[tuple[str, str]]]:
        """Return the case's data set, and name and organ of every class.

        Raises:
            LabelTableError: the class file lacks the data set, or one of the classes.
        """
        table = read_label_table(self.class_file)
        dataset = table.dataset_of(self.case)
        labels = table.labels_of(dataset)
        if labels.instance:
            return dataset, [(f"{labels.classes[1]} {value}", labels.organs[1]) for value in ids]
        unknown = [value for value in ids if value not in labels.classes]
        if unknown:
            raise LabelTableError(
                f"{dataset}: the truth holds class {unknown[0]}, {table.path} has "
                f"{sorted(labels.classes)}. Expected every class in the class file: add it."
            )
        return dataset, [(labels.classes[value], labels.organs[value]) for value in ids]


@dataclass(frozen=True)
class ChallengeSummary(Summary):
    """The result of a validation; scores as the challenge counts them."""

    model: str
    edges: str  # of the network's input, such as 128³
    scores: list[CaseScore]
    failures: dict[str, str]
    trained_on: set[str] | None
    out_dir: Path

    @property
    def failure_lines(self) -> list[str]:
        """One line for each case that could not be scored."""
        return [f"{case}: {message}" for case, message in self.failures.items()]

    @property
    def notes(self) -> Sequence[str]:
        """Empty: the report has a section for each figure."""
        return ()

    def __str__(self) -> str:
        models = {self.model: self.scores}
        lines = [markdown(overall_rows(models, self.edges)), ""]
        lines += [markdown(anatomy_rows(models, self.trained_on)), ""]
        if by_thickness := thickness_table(self.scores):
            lines += [by_thickness, ""]
        for group in [*grouped(self.scores, "all"), *grouped(self.scores, "prompt")]:
            dsc_auc, nsd_auc, _ = group.scores.auc
            dsc, nsd, nsd_correct = group.scores.final
            lines.append(
                f"{group.name:12} {group.cases:4} cases   DSC_AUC {dsc_auc:.3f}  "
                f"NSD_AUC {nsd_auc:.3f}  DSC_Final {dsc:.3f}  NSD_Final {nsd:.3f} "
                f"({nsd_correct:.3f} with the spacing in the right order)"
            )
        late = sum(score.timed_out for score in self.scores)
        if late:
            lines.append(f"{late} cases took more than 90 s a class and count 0")
        lines.append(f"tables, predictions, report -> {self.out_dir / 'report.html'}")
        return "\n".join(lines)


class ChallengeProtocol(ValidationProtocol):
    """Whole volumes of ``--images`` from prompts alone, by the challenge's rules."""

    predictor_options: ClassVar[PredictorOptions] = PredictorOptions()

    def __init__(self, args: argparse.Namespace) -> None:
        if args.images is None:
            raise InputError(
                "--protocol challenge: found no --images. It needs --images, a folder of challenge "
                "NPZ: give its path."
            )
        self.args = args

    @property
    def options(self) -> list:
        """The predictor's options, and whether boxes are given."""
        return [asdict(self.predictor_options), self.args.boxes]

    @property
    def shown(self) -> dict[str, str]:
        """Prompts, and the predictor's options."""
        boxes = "boxes where there are any, then " if self.args.boxes else ""
        options = asdict(self.predictor_options)
        options = options.pop("zoom") | options
        return {
            "prompts": f"{boxes}{self.args.num_clicks} clicks",
            "predictor": ", ".join(f"{name} {value}" for name, value in options.items()),
        }

    def jobs(self, settings: RunSettings) -> list[ScoreJob]:
        """Return a job for each case; paths are absolute, for workers elsewhere."""
        return [
            ChallengeJob(
                case=image.stem,
                image_path=image.absolute(),
                label_path=label.absolute(),
                out_dir=self.args.out_dir.resolve(),
                settings=settings,
                class_file=self.args.json.resolve(),
                boxes=self.args.boxes,
                options=self.predictor_options,
            )
            for image, label in evenly_spaced(
                find_challenge_cases(self.args.images, self.args.labels), self.args.cases
            )
        ]

    def finish(self, run: Finished) -> ChallengeSummary:
        """Write challenge.csv, targets.csv and groups.csv."""
        write_challenge_tables(run.scores, run.out_dir, run.trained_on)
        return ChallengeSummary(
            model=run.network.name,
            edges=run.network.edges,
            scores=run.scores,
            failures=run.failures,
            trained_on=run.trained_on,
            out_dir=run.out_dir,
        )


def find_challenge_cases(images: Path, labels: Path | None) -> list[tuple[Path, Path]]:
    """List (image file, label file) of a folder of challenge NPZ, sorted by case.

    Args:
        labels: folder with files of the same names; None where the images hold ``gts``.

    Raises:
        InputError: no cases, or one without labels.
    """
    files = sorted(
        (p for p in images.glob("*") if p.suffix.lower() == ".npz" and not p.name.startswith(".")),
        key=lambda path: path.stem,
    )
    if not files:
        raise InputError(
            f"{images}: found no .npz files, expected challenge cases.\nGive another --images."
        )
    require_usable_names(path.stem for path in files)
    pairs = [(path, (labels or images) / path.name) for path in files]
    missing = [label for _, label in pairs if not label.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file, nor {len(missing) - 1} others; expected a file with gts "
            "for each of the images.\nGive the folder of labels: --labels."
        )
    return pairs


@lru_cache(maxsize=1)
def _predictor(settings: RunSettings, options: PredictorOptions) -> Predictor:
    """Return the run's predictor, made once in each process."""
    return Predictor(
        *opened(settings),
        device=torch.device(settings.device),
        precision=getattr(torch, settings.precision),
        engine=settings.engine,
        options=options,
    )


def _target_scores(
    names: list[tuple[str, str]],
    steps: Steps,
    truth: np.ndarray,
    spacing_zyx: tuple[float, float, float],
) -> tuple[TargetScore, ...]:
    voxels = np.bincount(truth.reshape(-1))
    return tuple(
        TargetScore(
            class_id=value,
            name=name,
            organ=organ,
            voxels=int(voxels[value]),
            dsc=tuple(map(float, steps.dsc[:, n])),
            nsd=tuple(map(float, steps.nsd[:, n])),
            nsd_official=tuple(map(float, steps.nsd_official[:, n])),
            clicks=tuple((*c.zyx, int(c.is_foreground)) for c in steps.clicks[n]),
            thickness_mm=thickness_mm(truth == value, spacing_zyx),
        )
        for n, (value, (name, organ)) in enumerate(zip(steps.class_ids, names, strict=True))
    )
