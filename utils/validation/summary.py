"""Validation results as CSV, tables and pictures, and the run behind both validation scripts."""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from segment_anything import Sam3D, fingerprint
from utils.cases.prepared import find_cases
from utils.data_paths import val_datas
from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.nifti import write_nifti
from utils.results.ball import best_fixed_radius
from utils.results.csv_table import write_csv
from utils.results.curves import click_curve_figure
from utils.results.figures import save
from utils.results.overlays import overlay_figure
from utils.run.device import peak_memory_mib, pick_device, pick_engine, pick_precision
from utils.run.flags import add_engine_arguments, add_run_arguments, non_negative_int, positive_int
from utils.run.start import start_run
from utils.validation.clicks import BALL_RADII_MM, CaseResult, Evaluator, TargetResult
from utils.volumes.geometry import CropRule


@dataclass(frozen=True)
class Summary:
    """The figures of one validation, as in ``summary.json``; lists run over the clicks."""

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


def add_validation_arguments(parser: argparse.ArgumentParser, out_dir: Path) -> None:
    """Add the flags that both validation scripts have."""
    files = parser.add_argument_group("files")
    files.add_argument(
        "--val-datas",
        type=Path,
        nargs="+",
        default=[Path(folder) for folder in val_datas],
        help="<organ>/<data set> folders (default: val_datas of utils/data_paths.py)",
    )
    files.add_argument("--out-dir", type=Path, default=out_dir, help=f"(default: {out_dir})")
    protocol = parser.add_argument_group("protocol and output")
    protocol.add_argument(
        "--num-clicks", type=positive_int, default=5, help="clicks a target (default: 5)"
    )
    protocol.add_argument(
        "--max-instances",
        type=positive_int,
        default=8,
        help="largest instances of a label (default: 8)",
    )
    protocol.add_argument(
        "--pictures",
        type=non_negative_int,
        default=12,
        help="overlays drawn; 0 = none (default: 12)",
    )
    protocol.add_argument(
        "--predictions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write predictions as NIfTI on the input's grid (default: on)",
    )
    add_engine_arguments(parser)
    add_run_arguments(parser)


def run_validation(model: Sam3D, rule: CropRule, args: argparse.Namespace) -> Summary:
    """Validate ``model`` on ``args.val_datas``; leave CSV, summary.json, predictions, pictures."""
    start_run(args, args.out_dir)
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    cases = find_cases(args.val_datas)
    evaluator = Evaluator(
        model,
        rule,
        num_clicks=args.num_clicks,
        device=device,
        precision=precision,
        engine=pick_engine(args.engine, device),
        max_instances=args.max_instances,
    )
    # Spread over the sorted cases, so that every organ has its turn.
    drawn = {cases[int(i)] for i in np.linspace(0, len(cases) - 1, min(args.pictures, len(cases)))}
    targets, failures = [], []
    for case in tqdm(cases, desc="validate", unit="case"):
        try:
            result = evaluator.run_case(case)
        except InputError as error:
            failures.append(f"{case.sample_id}: {error}")
            continue
        targets += result.targets
        if args.predictions:
            path = args.out_dir / "predictions" / f"{case.sample_id}.nii.gz"
            dtype = np.uint8 if result.prediction.max() < 256 else np.uint16
            write_nifti(path, result.prediction.astype(dtype), result.image.affine)
        if case in drawn:
            _draw_case(args.out_dir / "pictures" / f"{case.sample_id}.png", result)
    if not targets:
        raise InputError("no case could be validated:\n" + "\n".join(failures[:5]))
    summary = _summarise(model, targets, failures, args.out_dir, device, precision)
    _write_results(targets, summary, args.out_dir)
    return summary


def _draw_case(path: Path, result: CaseResult) -> None:
    first = result.targets[0]
    figure = overlay_figure(
        result.image.array,
        result.label.array > 0,
        result.prediction > 0,
        spacing_zyx=result.image.spacing_zyx,
        clicks=[click for target in result.targets for click in target.clicks],
        title=f"{result.case.sample_id}   DSC {first.dsc[0]:.2f} → {first.dsc[-1]:.2f}",
    )
    save(figure, path)


def _summarise(
    model: Sam3D,
    targets: Sequence[TargetResult],
    failures: list[str],
    out_dir: Path,
    device: torch.device,
    precision: torch.dtype,
) -> Summary:
    radius, ball = best_fixed_radius(np.stack([t.ball_dsc for t in targets]), BALL_RADII_MM)
    return Summary(
        model=model.config.network,
        fingerprint=fingerprint(model),
        targets=len(targets),
        dsc=[float(v) for v in np.mean([t.dsc for t in targets], axis=0)],
        nsd=[float(v) for v in np.mean([t.nsd for t in targets], axis=0)],
        dsc_auc=float(np.mean([t.dsc_auc for t in targets])),
        nsd_auc=float(np.mean([t.nsd_auc for t in targets])),
        ball_radius_mm=float(radius),
        ball_dsc=float(ball),
        mended_foreground=mended_by_later_clicks(targets, foreground=True),
        mended_background=mended_by_later_clicks(targets, foreground=False),
        encoder_ms=float(np.median([t.encoder_ms for t in targets])),
        decoder_ms=float(np.median([ms for t in targets for ms in t.decoder_ms])),
        encoder_parameters=sum(p.numel() for p in model.image_encoder.parameters()),
        parameters=sum(p.numel() for p in model.parameters()),
        resolution=model.config.encoder.img_size,
        peak_memory_mib=peak_memory_mib(device),
        device=str(device),
        precision=str(precision).removeprefix("torch."),
        failures=failures,
        out_dir=str(out_dir),
    )


def mended_by_later_clicks(targets: Sequence[TargetResult], *, foreground: bool) -> float | None:
    """Return how much of the error it lies in a click after the first mends, on average."""
    shares = [
        share
        for target in targets
        for (_, is_foreground), share in list(zip(target.clicks, target.mended, strict=True))[1:]
        if is_foreground == foreground and not math.isnan(share)
    ]
    return float(np.mean(shares)) if shares else None


def _write_results(targets: Sequence[TargetResult], summary: Summary, out_dir: Path) -> None:
    """Write cases.csv, organs.csv, summary.json and the curves over clicks."""
    clicks = range(len(summary.dsc))
    rows = [
        {
            "sample_id": t.sample_id,
            "organ": t.organ,
            "dataset": t.dataset,
            "coverage": t.coverage,
            "DSC_AUC": t.dsc_auc,
            "NSD_AUC": t.nsd_auc,
            **{f"DSC_{k + 1}": t.dsc[k] for k in clicks},
            **{f"NSD_{k + 1}": t.nsd[k] for k in clicks},
            **{f"mended_{k + 1}": t.mended[k] if k < len(t.mended) else math.nan for k in clicks},
            "encoder_ms": t.encoder_ms,
            "decoder_ms": float(np.mean(t.decoder_ms)),
            "clicks_zyx": " ".join(
                f"{'+' if positive else '-'}{z},{y},{x}" for (z, y, x), positive in t.clicks
            ),
        }
        for t in targets
    ]
    write_csv(out_dir / "cases.csv", rows, digits=4)
    write_csv(out_dir / "organs.csv", organ_rows(targets), digits=4)
    with atomic_path(out_dir / "summary.json") as temporary:
        temporary.write_text(json.dumps(vars(summary), indent=1))
    ball = (f"ball of {summary.ball_radius_mm:.0f} mm at click 1", summary.ball_dsc)
    dsc = click_curve_figure({summary.model: summary.dsc}, ylabel="DSC", baseline=ball)
    nsd = click_curve_figure({summary.model: summary.nsd}, ylabel="NSD (2 mm)")
    save(dsc, out_dir / "dsc.png")
    save(nsd, out_dir / "nsd.png")


def organ_rows(targets: Sequence[TargetResult]) -> list[dict]:
    """Average the targets of each (data set, organ); the ball has that group's best radius."""
    groups = defaultdict(list)
    for target in targets:
        groups[target.dataset, target.organ].append(target)
    rows = []
    for (dataset, organ), group in sorted(groups.items()):
        dsc = np.mean([t.dsc for t in group], axis=0)
        nsd = np.mean([t.nsd for t in group], axis=0)
        radius, ball = best_fixed_radius(np.stack([t.ball_dsc for t in group]), BALL_RADII_MM)
        rows.append(
            {
                "dataset": dataset,
                "organ": organ,
                "targets": len(group),
                **{f"DSC_{k + 1}": float(v) for k, v in enumerate(dsc)},
                **{f"NSD_{k + 1}": float(v) for k, v in enumerate(nsd)},
                "DSC_AUC": float(np.mean([t.dsc_auc for t in group])),
                "NSD_AUC": float(np.mean([t.nsd_auc for t in group])),
                "ball_radius_mm": float(radius),
                "ball_DSC": float(ball),
            }
        )
    return rows


def summary_table(summary: Summary) -> str:
    """Return the table in SAM-Med3D's form: model, prompt, resolution, inference time, Dice."""
    lines = [
        "| Model | Prompt | Resolution | Inference time (ms) | Dice (%) |",
        "|---|---|---|---|---|",
    ]
    for clicks in sorted({1, min(5, len(summary.dsc)), len(summary.dsc)}):
        milliseconds = summary.encoder_ms + clicks * summary.decoder_ms
        prompt = f"{clicks} point" + ("s" if clicks > 1 else "")
        lines.append(
            f"| {summary.model} | {prompt} | {summary.resolution}³ | {milliseconds:.0f} "
            f"| {100 * summary.dsc[clicks - 1]:.2f} |"
        )
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def print_summary(summary: Summary) -> int:
    """Print the tables and where the rest lies; return the script's exit code."""
    print(summary_table(summary))
    curve = " ".join(f"{v:.3f}" for v in summary.dsc)
    nsd_curve = " ".join(f"{v:.3f}" for v in summary.nsd)
    print(
        f"\n{summary.targets} targets   DSC over clicks {curve} (AUC {summary.dsc_auc:.3f})   "
        f"NSD {nsd_curve} (AUC {summary.nsd_auc:.3f})\n"
        f"a click after the first mends {_percent(summary.mended_foreground)} of the missed part "
        f"it lies in, {_percent(summary.mended_background)} of a part too much\n"
        f"ball of the best radius, {summary.ball_radius_mm:.0f} mm, at the first click: "
        f"DSC {summary.ball_dsc:.3f}\n"
        f"encoder {summary.encoder_ms:.1f} ms, decoder {summary.decoder_ms:.1f} ms a click "
        f"({summary.device}, {summary.precision}); peak memory {summary.peak_memory_mib:.0f} MiB; "
        f"{summary.parameters / 1e6:.1f} M parameters\n"
        f"tables, predictions and pictures -> {summary.out_dir}"
    )
    for failure in summary.failures:
        print(failure, file=sys.stderr)
    return 1 if summary.failures else 0
