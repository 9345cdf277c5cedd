"""Both validation scripts: score all cases by a protocol; leave scores, tables, pictures, a report.

The network is opened once in each process. Scores, predictions and pictures do
not depend on the number of workers. Times do, and are those of the run that scored the case.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from utils.errors import InputError
from utils.files.answers import require_distinct_files
from utils.files.hub import address_of
from utils.files.names import require_inside
from utils.run.checkpoint_flags import with_local_files
from utils.run.device import pick_device, pick_engine, pick_precision
from utils.run.executor import cpu_count
from utils.run.folder import write_flags
from utils.run.network import NetworkFile
from utils.run.shipped import Role, checkpoint_or_default
from utils.run.start import owning, start_run
from utils.validation.protocol import (
    Finished,
    NetworkFacts,
    Overlay,
    RunSettings,
    ScoreJob,
    Summary,
    ValidationProtocol,
)
from utils.validation.report import worst_cases, write_report
from utils.validation.run_challenge import ChallengeProtocol
from utils.validation.run_clicks import ClicksProtocol
from utils.validation.scores import CaseScore
from utils.validation.worker import open_once, score_all
from utils.volumes.geometry import CropRule

SCRIPT = "validation.py"  # both scripts: a validation may follow another in one folder
WRITES = (
    *("cases", "predictions", "pictures", "report.html", "summary.json", "dsc.png", "nsd.png"),
    *("cases.csv", "organs.csv", "thickness.csv", "image_check.csv"),
    *("challenge.csv", "targets.csv", "groups.csv"),
)

OUTSIDE = "Expected outputs in this folder: remove the link, or choose another --out-dir."

PROTOCOLS: dict[str, type[ValidationProtocol]] = {
    "clicks": ClicksProtocol,
    "challenge": ChallengeProtocol,
}


def validate(
    args: argparse.Namespace,
    *,
    role: Role = "student",
    own: Path | None = None,
    network: NetworkFile | None = None,
    protocols: Mapping[str, type[ValidationProtocol]] = PROTOCOLS,
) -> Summary:
    """Validate a network by the flags; write all outputs to ``args.out_dir``.

    Args:
        args: from `utils.validation.arguments.validation_parser`.
        role, own: which checkpoint is taken where the flags name none, as in
            `utils.run.shipped.checkpoint_or_default`.
        network: in place of the one that the flags name.
        protocols: in place of this project's own; by the values of ``--protocol``.

    Raises:
        InputError: the network or the flags cannot be used, no case could be scored, or another run
            writes to the folder.
        WriteError: an output cannot be written.
    """
    protocol = protocols[args.protocol](args)
    args = with_local_files(args)
    if network is None:
        args.checkpoint = checkpoint_or_default(args.checkpoint, role, own=own)
        network = _network_of(args)
    _, rule, facts = open_once(network)
    settings = _settings(network, facts, rule, args, protocol)
    jobs = protocol.jobs(settings)
    written = [path for job in jobs for path in (*job.outputs, job.score_path, job.log_path)]
    read = [path for job in jobs for path in job.sources]
    require_distinct_files(written, [*read, *network.files])
    _require_inside(jobs, args.out_dir)
    with owning(args.out_dir):
        start_run(args, args.out_dir, script=SCRIPT, writes=WRITES)
        write_flags(args, args.out_dir, SCRIPT)
        scores, failures = score_all(jobs, args.workers)
        if not scores:
            first = "\n".join(f"{case}: {text}" for case, text in list(failures.items())[:5])
            raise InputError(f"no case could be validated:\n{first}")
        run = Finished(
            network=facts,
            scores=list(scores.values()),
            failures=failures,
            trained_on=_trained_on(network, args),
            settings=settings,
            out_dir=args.out_dir,
        )
        return _finish(run, protocol, rule, draw_worst(jobs, run.scores, args.pictures))


def _network_of(args: argparse.Namespace) -> NetworkFile:
    """Return the network that the flags name."""
    return NetworkFile(args.checkpoint, args.network, args.teacher, args.encoder, args.refine)


def _require_inside(jobs: Sequence[ScoreJob], out_dir: Path) -> None:
    """Refuse outputs that links would place outside of their folder."""
    places = [(path, job.out_dir) for job in jobs for path in (*job.outputs, job.score_path)]
    places += [(out_dir / "pictures" / f"{job.case}.png", out_dir) for job in jobs]
    for path, folder in places:
        require_inside(path, folder, OUTSIDE)


def _finish(
    run: Finished, protocol: ValidationProtocol, rule: CropRule, overlays: list[Overlay]
) -> Summary:
    """Write tables and report."""
    summary = protocol.finish(run)
    write_report(
        run.out_dir / "report.html",
        run.scores,
        model=run.network.name,
        fingerprint=run.network.fingerprint,
        resolution=run.network.edges,
        settings=_shown(run.settings, rule, protocol),
        notes=summary.notes,
        sections=summary.sections,
        overlays=overlays,
        failures=run.failures,
        trained_on=run.trained_on,
    )
    return summary


def draw_worst(jobs: Sequence[ScoreJob], scores: Sequence[CaseScore], count: int) -> list[Overlay]:
    """Draw the worst target of each of the worst cases."""
    of_case = {job.case: job for job in jobs}
    drawn = (of_case[score.case].overlay(score) for score in worst_cases(scores, count))
    return [overlay for overlay in drawn if overlay]


def _settings(
    network: NetworkFile,
    facts: NetworkFacts,
    rule: CropRule,
    args: argparse.Namespace,
    protocol: ValidationProtocol,
) -> RunSettings:
    """Return the settings of the run, with device and engine chosen, and their digest."""
    device = pick_device(args.device)
    precision = str(pick_precision(args.precision, device)).removeprefix("torch.")
    engine = pick_engine(args.engine, device)
    content = [args.protocol, facts.fingerprint, rule.to_dict(), protocol.options]
    content += [args.num_clicks, str(device), precision, engine]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    alone = args.workers == 1
    return RunSettings(
        network=network,
        device=str(device),
        precision=precision,
        engine=engine,
        num_clicks=args.num_clicks,
        threads=torch.get_num_threads() if alone else max(1, cpu_count() // args.workers),
        fingerprint=facts.fingerprint,
        digest=digest,
    )


def _trained_on(network: NetworkFile, args: argparse.Namespace) -> set[str] | None:
    """Return the "organ/data set" folders of the training, from flag or file; None if unknown."""
    if args.trained_on:
        return {f"{folder.parent.name}/{folder.name}" for folder in args.trained_on}
    return network.trained_on()


def _shown(settings: RunSettings, rule: CropRule, protocol: ValidationProtocol) -> dict[str, str]:
    """Return the report's settings."""
    network, fit = settings.network, ", finer where the whole volume fits" if rule.fit else ""
    device = f"{settings.device}, {settings.precision}, {settings.engine}"
    return {
        "checkpoint": address_of(network.path) or network.path.name,
        **({"encoder": network.encoder.name} if network.encoder else {}),
        **({} if network.refine is None else {"refinement": f"strength {network.refine:g}"}),
        "crops": f"{rule.size}³ voxels of {rule.spacing_mm:g} mm{fit}",
        **protocol.shown,
        "device": f"{device}, {settings.threads} threads a worker",
    }
