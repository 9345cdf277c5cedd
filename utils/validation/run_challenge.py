"""Validation by the challenge's protocol: `--protocol challenge` of both validation scripts.

Reads   challenge NPZ with ``imgs``, ``spacing``, perhaps ``boxes``; ``gts`` in them or beside them
Writes  cases/, predictions/   what is kept of each case (worker.py): a run that was stopped
                               resumes
        challenge.csv          the evaluator's table; targets.csv, groups.csv: ours
        report.html            all of it on one page, pictures inside
"""

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from segment_anything import Sam3D, fingerprint
from utils.errors import InputError
from utils.files.npz import read_npz
from utils.prediction.predictor import PredictorOptions
from utils.prompts.kinds import Click
from utils.results.figures import png_bytes
from utils.results.overlays import overlay_figure
from utils.run.executor import cpu_count, run_all
from utils.run.flags import positive_int
from utils.run.network import NetworkFile, trained_on
from utils.run.start import start_run
from utils.validation.curves import Overlay
from utils.validation.report import worst_cases, write_report
from utils.validation.scores import CaseScore
from utils.validation.tables import anatomy_table, grouped, overall_table, write_tables
from utils.validation.worker import Job, kept_score, score_case
from utils.volumes.geometry import CropRule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChallengeSummary:
    """What a run came to; scores as the challenge counts them."""

    model: str
    resolution: int  # edge of the network's input
    scores: list[CaseScore]
    failures: dict[str, str]
    trained_on: set[str] | None
    out_dir: Path


def find_challenge_cases(images: Path, labels: Path | None) -> list[tuple[Path, Path]]:
    """List (image file, label file) of a folder of challenge NPZ, sorted.

    Args:
        labels: folder with files of the same names; None where the images hold ``gts``.

    Raises:
        InputError: no cases, or one without labels.
    """
    files = sorted(path for path in images.glob("*.npz") if not path.name.startswith("."))
    if not files:
        raise InputError(
            f"{images}: found no .npz files, expected challenge cases.\nGive another --images."
        )
    pairs = [(path, (labels or images) / path.name) for path in files]
    missing = [label for _, label in pairs if not label.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file, nor {len(missing) - 1} others; expected a file with gts "
            "for each of the images.\nGive the folder of labels: --labels."
        )
    return pairs


def add_challenge_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the challenge's protocol."""
    challenge = parser.add_argument_group("protocol challenge")
    challenge.add_argument(
        "--protocol",
        choices=("clicks", "challenge"),
        default="clicks",
        help="clicks: each target of --val-datas alone, in a crop about it. challenge: whole "
        "volumes of --images from prompts alone, all classes at once (default: clicks)",
    )
    challenge.add_argument("--images", type=Path, help="folder of challenge NPZ")
    challenge.add_argument(
        "--labels", type=Path, help="folder of NPZ with gts (default: those of --images)"
    )
    challenge.add_argument("--json", type=Path, default=Path("CVPR25.json"), help="class file")
    challenge.add_argument(
        "--boxes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="begin with the boxes of cases that have them (default: on)",
    )
    challenge.add_argument(
        "--workers",
        type=positive_int,
        default=1,
        help="processes, each with a network of its own; scores do not depend on it (default: 1)",
    )
    challenge.add_argument(
        "--trained-on",
        type=Path,
        nargs="+",
        help="<organ>/<data set> folders that training had, to tell seen lesions from unseen ones "
        "(default: those that the checkpoint names)",
    )


def run_challenge(checkpoint: NetworkFile, args: argparse.Namespace) -> ChallengeSummary:
    """Validate as ``args`` say; leave scores, predictions, tables and the report."""
    if args.images is None:
        raise InputError("--protocol challenge needs --images, a folder of challenge NPZ.")
    pairs = find_challenge_cases(args.images, args.labels)
    start_run(args, args.out_dir)
    model, rule = checkpoint.open()
    settings = digest_of(model, rule, args)
    threads = max(1, cpu_count() // args.workers)
    jobs = [
        Job(
            image_path=image.absolute(),
            label_path=label.absolute(),
            class_file=args.json.resolve(),
            out_dir=args.out_dir.resolve(),
            checkpoint=checkpoint,
            device=args.device,
            precision=args.precision,
            engine=args.engine,
            num_clicks=args.num_clicks,
            boxes=args.boxes,
            threads=threads,
            settings=settings,
        )
        for image, label in pairs
    ]
    scores, failures = score_all(jobs, args.workers)
    if not scores:
        raise InputError("no case could be validated:\n" + "\n".join(list(failures.values())[:5]))
    seen = _trained_on(checkpoint, args)
    size = model.config.encoder.img_size
    write_tables(scores, args.out_dir, seen)
    write_report(
        args.out_dir / "report.html",
        scores,
        model=model.config.network,
        fingerprint=fingerprint(model),
        resolution=f"{size}³",
        settings=_shown_settings(checkpoint, rule, args, threads),
        overlays=draw_worst(jobs, scores, args.pictures),
        failures=failures,
        trained_on=seen,
    )
    return ChallengeSummary(model.config.network, size, scores, failures, seen, args.out_dir)


def score_all(jobs: list[Job], workers: int) -> tuple[list[CaseScore], dict[str, str]]:
    """Score the cases that are not scored yet.

    Returns:
        All scores by name, and case -> message of the failures.
    """
    kept = {job.case: score for job in jobs if (score := kept_score(job))}
    todo = [job for job in jobs if job.case not in kept]
    if kept:
        log.info("%d of %d cases were scored before", len(kept), len(jobs))
    failures = {}
    results = run_all(score_case, todo, workers=min(workers, max(1, len(todo))))
    for case, result in tqdm(results, total=len(todo), desc="validate", unit="case"):
        if isinstance(result, CaseScore):
            kept[case] = result
        else:
            failures[case] = result
    return [kept[name] for name in sorted(kept)], dict(sorted(failures.items()))


def digest_of(model: Sam3D, rule: CropRule, args: argparse.Namespace) -> str:
    """Return a digest of all that scores depend on beside the case."""
    content = [fingerprint(model), rule.to_dict(), asdict(PredictorOptions())]
    content += [args.num_clicks, args.boxes, args.precision, args.device, args.engine]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def draw_worst(jobs: list[Job], scores: list[CaseScore], count: int) -> list[Overlay]:
    """Draw the worst target of each of the worst cases."""
    of_case = {job.case: job for job in jobs}
    return [_overlay(of_case[score.case], score) for score in worst_cases(scores, count)]


def _overlay(job: Job, score: CaseScore) -> Overlay:
    worst = min(score.targets, key=lambda target: target.dsc[-1])
    image = read_npz(job.image_path, ["imgs"])["imgs"]
    truth = read_npz(job.label_path, ["gts"])["gts"] == worst.class_id
    prediction = read_npz(job.prediction_path, ["segs"])["segs"] == worst.class_id
    curve = " → ".join(f"{value:.2f}" for value in worst.dsc)
    figure = overlay_figure(
        image,
        truth,
        prediction,
        spacing_zyx=score.spacing_xyz[::-1],
        clicks=[Click((z, y, x), bool(kind)) for z, y, x, kind in worst.clicks],
    )
    return Overlay(score.case, f"{worst.name}, DSC {curve}", png_bytes(figure))


def _trained_on(checkpoint: NetworkFile, args: argparse.Namespace) -> set[str] | None:
    """Return "organ/data set" of what was trained on; None where nobody says."""
    if args.trained_on:
        return {f"{folder.parent.name}/{folder.name}" for folder in args.trained_on}
    return trained_on(checkpoint.path)


def _shown_settings(
    checkpoint: NetworkFile, rule: CropRule, args: argparse.Namespace, threads: int
) -> dict[str, str]:
    fit = ", finer where the whole volume fits" if rule.fit else ""
    return {
        "checkpoint": checkpoint.path.name,
        **({"encoder": checkpoint.encoder.name} if checkpoint.encoder else {}),
        "crops": f"{rule.size}³ voxels of {rule.spacing_mm:g} mm{fit}",
        "prompts": f"{'boxes where there are any, then ' if args.boxes else ''}"
        f"{args.num_clicks} clicks",
        "predictor": ", ".join(f"{k} {v}" for k, v in _flat(asdict(PredictorOptions()))),
        "device": f"{args.device}, {args.precision}, {args.engine}, {threads} threads a worker",
    }


def _flat(options: dict) -> Iterator[tuple[str, object]]:
    for name, value in options.items():
        yield from _flat(value) if isinstance(value, dict) else [(name, value)]


def print_challenge(summary: ChallengeSummary) -> int:
    """Print the tables and where the rest lies; return the script's exit code."""
    models = {summary.model: summary.scores}
    print(overall_table(models, f"{summary.resolution}³"))
    print(f"\n{anatomy_table(models, summary.trained_on)}\n")
    for group in [*grouped(summary.scores, "all"), *grouped(summary.scores, "prompt")]:
        dsc_auc, nsd_auc, _ = group.scores.auc
        dsc, nsd, nsd_correct = group.scores.final
        print(
            f"{group.name:12} {group.cases:4} cases   DSC_AUC {dsc_auc:.3f}  "
            f"NSD_AUC {nsd_auc:.3f}  DSC_Final {dsc:.3f}  NSD_Final {nsd:.3f} "
            f"({nsd_correct:.3f} with the spacing in the right order)"
        )
    late = sum(score.timed_out for score in summary.scores)
    if late:
        print(f"{late} cases took more than 90 s a class and count 0")
    print(f"tables, predictions, report -> {summary.out_dir / 'report.html'}")
    for case, message in summary.failures.items():
        print(f"{case}: {message}", file=sys.stderr)
    return 1 if summary.failures else 0
