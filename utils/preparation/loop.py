"""The loop over the cases that all data scripts share.

A step has a list of jobs (one per case), a function that works on one job, and an output folder
with a ledger. The loop skips the cases that are current, checks the disk space, and works on the
rest. It continues after a case that cannot be used. It stops when an output cannot be written,
since the next outputs would fail too.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from utils.errors import InputError
from utils.files.atomic import (
    TEMPORARY,
    WriteError,
    atomic_path,
    checked_by,
    is_abandoned,
)
from utils.files.disk_space import free_space, readable, require_space
from utils.files.names import is_inside
from utils.files.npz_archive import MAX_VOXELS
from utils.preparation.case_names import usable_jobs
from utils.preparation.find_files import walk
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.outcomes import (
    TRACES,
    Outcome,
    PrepareSummary,
    add_outcome,
    message_and_trace,
    print_entry,
    print_refused,
    print_removed,
    report_failure,
)
from utils.preparation.records import CaseFacts
from utils.preparation.shards import in_shard, owned_shard
from utils.run.executor import cpu_count, run_all
from utils.run.flags import positive_int

Item = TypeVar("Item")


@dataclass(frozen=True)
class Step:
    """One preparation step: its name, its records, and the functions of one job.

    Attributes:
        title: name of the step.
        ledger: the records of the step.
        work: writes the outputs of one job, after it has claimed them; must be picklable.
        space: estimated upper bound of the bytes a job writes.
    """

    title: str
    ledger: Ledger
    work: Callable[[CaseJob, Entry], CaseFacts]
    space: Callable[[CaseJob], int]


def plan_job(plan: Callable[..., CaseJob], case_id: str, *args: object) -> CaseJob:
    """Return ``plan(case_id, *args)``; if that raises, a job that holds the problem."""
    try:
        return plan(case_id, *args)
    except Exception as error:  # one case must not end the run
        problem, trace = message_and_trace(error)
        files = args[0] if isinstance(args[0], list) else [args[0]]
        return CaseJob(case_id, "", {"file": files[0]}, problem=problem, trace=trace)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``; a copy where the disk has no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def link_to_first(outputs: Sequence[Path]) -> None:
    """Make all further ``outputs`` hard links to the first."""
    for output in outputs[1:]:
        link_or_copy(outputs[0], output)


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to run; they do not change the outputs."""
    group = parser.add_argument_group("how to run")
    group.add_argument(
        "--workers",
        type=positive_int,
        default=cpu_count(),
        help="processes, each with one case in memory (default: %(default)s, the number of cores)",
    )
    group.add_argument(
        "--shard",
        default="1/1",
        help="I/N: work on the I-th of N parts of the cases; the parts are the same in each step "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask cluster, tcp://host:port, instead of --workers",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print what would be done and the space it needs"
    )
    group.add_argument(
        "--prune",
        action="store_true",
        help="remove outputs of earlier runs whose case is no longer in the input",
    )
    group.add_argument(
        "--max-voxels",
        type=positive_int,
        default=MAX_VOXELS,
        help="refuse larger volumes; a worker needs up to about 10 bytes per voxel "
        "(default: %(default)s)",
    )


def progress_bar(items: Iterable[Item] | None = None, **options: object) -> "tqdm[Item]":
    """Show progress, rate and time left: at once on a terminal, one line per minute in a log.

    Args:
        items: the items to iterate over.
        options: of `tqdm`.
    """
    terminal = sys.stderr.isatty()
    options.setdefault("delay", 0)
    seconds = {} if terminal else {"mininterval": 60, "delay": 60, "miniters": 1}
    return tqdm(items, **{**options, **seconds})


def prepare(
    step: Step,
    jobs: Iterable[CaseJob],
    problems: Sequence[str],
    args: argparse.Namespace,
    *,
    left: Iterable[str] = (),
    prune: bool = False,
) -> PrepareSummary:
    """Work on the jobs that are due; show progress, print failures as they happen.

    Args:
        step: what to do with a job.
        jobs: all cases, of all shards.
        problems: messages about files that could not become a job.
        args: the flags of `add_preparation_arguments`.
        left: ids of further cases that exist and are left unchanged; counted as skipped.
        prune: remove outputs of cases that are no longer among the jobs, also without ``--prune``.

    Returns:
        The `PrepareSummary`. With ``--dry-run`` nothing is written, and it holds the plan.

    Raises:
        WriteError: an output cannot be written; cases not yet begun are not worked on.
        InputError: a flag is wrong, the disk space does not suffice, or a worker died.
    """
    jobs, left, summary = list(jobs), list(left), PrepareSummary()
    step.ledger.require_own_files()
    known = [*(job.case_id for job in jobs), *left]
    jobs, unusable = usable_jobs(jobs)
    for problem in (*problems, *unusable):
        report_failure(summary, problem)
    mine = [job for job in jobs if in_shard(job.case_id, args.shard)]
    due, need = _due_jobs(step, mine, left, summary, args)
    if args.dry_run:
        summary.plan = _plan(step, due, summary, need)
        return summary
    advice = "free space, choose another output folder, or do a part at a time with --shard"
    require_space(step.ledger.folder, need, step.title, advice)
    with owned_shard(step.ledger.records, args.shard):
        _remove_half_written(step.ledger, due)
        _handle_orphans(step, known, args, prune or args.prune)
        try:
            _run(step, due, summary, args)
        finally:
            _remove_half_written(step.ledger, due)  # of workers that were ended with the run
            step.ledger.write_manifest(known)
            print_refused(step.ledger)
    return summary


def _due_jobs(
    step: Step,
    jobs: list[CaseJob],
    left: list[str],
    summary: PrepareSummary,
    args: argparse.Namespace,
) -> tuple[list[CaseJob], int]:
    """Return the jobs that are not current, and the bytes they need; count the others."""
    checked = progress_bar(jobs, desc=f"{step.title}: what is due", unit="case", delay=2)
    due = [job for job in checked if not step.ledger.is_current(job)]
    summary.skipped = len(jobs) - len(due) + sum(in_shard(case_id, args.shard) for case_id in left)
    print_refused(step.ledger)
    return due, sum(_space_of(step, job) for job in due)


def _space_of(step: Step, job: CaseJob) -> int:
    try:
        return step.space(job)
    except Exception:  # the work on the case meets the same error, and reports it
        return 0


def _handle_orphans(step: Step, known: list[str], args: argparse.Namespace, prune: bool) -> None:
    """Remove, or only mention, outputs of earlier runs whose case is no longer in the input."""
    orphans = step.ledger.orphans(known)
    print_refused(step.ledger)
    orphans = [record for record in orphans if in_shard(record.case_id, args.shard)]
    if orphans and not prune:
        print_entry(
            f"NOTE {len(orphans)} cases of earlier runs are not in this input, "
            f"{orphans[0].case_id} first; their outputs are kept (--prune removes them)"
        )
    for record in orphans if prune else ():
        removed, kept = step.ledger.forget(record)
        print_removed(record.case_id, removed, kept)
        _remove_empty_folders(step.ledger.folder, removed)


def _run(step: Step, due: list[CaseJob], summary: PrepareSummary, args: argparse.Namespace) -> None:
    """Work on the jobs that are due, and put their outcomes into the summary, sorted."""
    sizes = {job.case_id: _bytes_of(job) for job in due}
    workers = max(1, min(args.workers, len(due)))
    outcomes = run_all(partial(_do, step), due, workers=workers, scheduler=args.dask_scheduler)
    total, removed = sum(sizes.values()), []
    bar = progress_bar(total=total, desc=step.title, unit="B", unit_scale=True)
    with bar, closing(outcomes):  # if the run stops, its workers end here
        for number, outcome in enumerate(outcomes, start=1):
            counts = f"{number}/{len(due)} cases, {len(summary.failures)} failed"
            bar.set_postfix_str(counts, refresh=False)
            bar.update(sizes[outcome.job.case_id])
            add_outcome(step.ledger.records, summary, outcome)
            removed += outcome.removed
    summary.failures.sort()
    summary.dropped.sort()
    _remove_empty_folders(step.ledger.folder, removed)


def _remove_empty_folders(root: Path, removed: Iterable[str]) -> None:
    """Remove the folders below ``root`` that are empty now that ``removed`` files are gone."""
    for name in removed:
        for folder in (root / name).parents:
            if folder == root or any(folder.iterdir() if folder.is_dir() else ()):
                break
            with suppress(OSError):
                folder.rmdir()


def _do(step: Step, job: CaseJob) -> Outcome:
    """Run one job in any process.

    Every failure, also a defect of this program, is returned as an `Outcome`.
    """
    entry, trace = None, job.trace
    try:
        if job.problem:
            raise InputError(job.problem)
        entry = step.ledger.open(job)
        if entry.confirm():
            return Outcome(job, "skipped")
        with checked_by(entry.record_written):
            found = step.work(job, entry)
        entry.finish(found)
        lines = {"notes": found.notes, "remarks": found.remarks}
        return Outcome(job, "done", removed=tuple(entry.removed), kept=tuple(entry.kept), **lines)
    except WriteError as error:
        return Outcome(job, "unwritable", str(error))
    except Exception as error:  # one case must not end a run of days
        message, its_trace = message_and_trace(error)
        trace = trace or its_trace
    if trace or job.case_id.rsplit("/")[-1] not in message:
        message = f"{job.case_id}: {message}"
    if trace:
        message += f". Please report it with the traceback in {step.ledger.records / TRACES}"
    try:
        step.ledger.fail(job, message, entry)
    except WriteError as error:
        return Outcome(job, "unwritable", str(error))
    except (InputError, OSError) as error:
        message += f"\n(and no record could be made of it: {error})"
    removed = tuple(entry.removed) if entry else ()
    return Outcome(job, "failed", message, removed=removed, trace=trace)


def _plan(step: Step, due: list[CaseJob], summary: PrepareSummary, need: int) -> str:
    blocked = [job for job in due if job.problem]
    for job in blocked:
        report_failure(summary, job.problem)
    counts = Counter(job.dataset for job in due if not job.problem)
    width = max(map(len, counts), default=0)
    lines = [f"{dataset:{width}}  {count:6} cases" for dataset, count in sorted(counts.items())]
    free, place = free_space(step.ledger.folder)
    lines.append(
        f"{step.title} would do {len(due) - len(blocked)} cases, skip {summary.skipped}, "
        f"and fail at {len(summary.failures)}"
    )
    lines.append(
        f"needs about {readable(need)}, {readable(free)} are free in {place}; nothing was written"
    )
    return "\n".join(lines)


def _remove_half_written(ledger: Ledger, jobs: Iterable[CaseJob]) -> None:
    """Remove the half-written files that killed processes left behind for these cases."""
    cases = {job.case_id.rsplit("/")[-1] for job in jobs}
    names = {f"{case}{suffix}" for case in cases for suffix in (".nii.gz", ".json")}
    names.add(ledger.manifest.name)
    if ledger.folder.is_dir():
        for path in walk(ledger.folder, set(), [], hidden=True):
            is_ours = TEMPORARY.sub("", path.name, count=1) in names
            inside = is_inside(path.relative_to(ledger.folder).as_posix(), ledger.folder)
            if is_ours and inside and is_abandoned(path):
                path.unlink(missing_ok=True)


def _bytes_of(job: CaseJob) -> int:
    sizes = 0
    for path in job.sources.values():
        try:
            sizes += path.stat().st_size
        except OSError:
            continue
    return max(1, sizes)
