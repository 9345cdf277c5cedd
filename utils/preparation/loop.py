"""The loop over the cases that all data scripts share.

A step has a list of jobs (one per case), a function that works on one job, and an output folder
with a ledger. The loop skips the cases that are current, checks the disk space, and works on the
rest. It continues after a case that cannot be used. It stops when an output cannot be written,
since the next outputs would fail too.
"""

import argparse
import os
import re
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from tqdm import tqdm

from utils.errors import InputError
from utils.files.atomic import TEMPORARY, WriteError, atomic_path, is_abandoned
from utils.files.disk_space import free_space, readable, require_space
from utils.files.npz_archive import MAX_VOXELS
from utils.preparation.find_files import walk
from utils.preparation.ledger import CaseJob, Entry, Ledger
from utils.preparation.records import CaseFacts, shortened
from utils.run.executor import cpu_count, run_all
from utils.run.flags import positive_int

Item = TypeVar("Item")


@dataclass
class PrepareSummary:
    """The number of cases per outcome; as text, the last line that a script prints."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # a message for each failed case
    dropped: list[str] = field(default_factory=list)  # a message for each cleaned case
    plan: str = ""  # what a dry run would do; empty otherwise

    @property
    def exit_code(self) -> int:
        """1 if any case failed."""
        return 1 if self.failures else 0

    def __str__(self) -> str:
        if self.plan:
            return self.plan
        return f"done {self.done}, skipped {self.skipped}, failed {len(self.failures)}"


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


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    job: CaseJob
    kind: str  # "done", "skipped", "failed" or "unwritable"
    message: str = ""
    notes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def plan_job(plan: Callable[..., CaseJob], case_id: str, *args: object) -> CaseJob:
    """Return ``plan(case_id, *args)``; if that raises, a job that holds the problem."""
    try:
        return plan(case_id, *args)
    except InputError as error:
        files = args[0] if isinstance(args[0], list) else [args[0]]
        return CaseJob(case_id, "", {"file": files[0]}, problem=str(error))


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
    for problem in problems:
        _report_failure(summary, problem)
    mine = [job for job in jobs if in_shard(job.case_id, args.shard)]
    due = _due_jobs(step, mine)
    summary.skipped = len(mine) - len(due) + sum(in_shard(case_id, args.shard) for case_id in left)
    need = sum(step.space(job) for job in due)
    if args.dry_run:
        summary.plan = _plan(step, due, summary, need)
        return summary
    advice = "free space, choose another output folder, or do a part at a time with --shard"
    require_space(step.ledger.folder, need, step.title, advice)
    known = [*(job.case_id for job in jobs), *left]
    _remove_half_written(step.ledger, {job.case_id.rsplit("/")[-1] for job in due})
    _handle_orphans(step, known, args, prune or args.prune)
    try:
        _run(step, due, summary, args)
    finally:
        if step.ledger.records.is_dir():
            step.ledger.write_manifest(known)
    return summary


def _due_jobs(step: Step, jobs: list[CaseJob]) -> list[CaseJob]:
    checked = progress_bar(jobs, desc=f"{step.title}: what is due", unit="case", delay=2)
    return [job for job in checked if not step.ledger.is_current(job)]


def in_shard(case_id: str, shard: str) -> bool:
    """Tell whether a case is in shard "I/N"; a case is in the same one in every step."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--shard is {shard!r}. Expected I/N with I from 1 to N, such as 2/8.")
    return crc32(case_id.rsplit("/")[-1].encode()) % count == number - 1


def _handle_orphans(step: Step, known: list[str], args: argparse.Namespace, prune: bool) -> None:
    """Remove, or only mention, outputs of earlier runs whose case is no longer in the input."""
    orphans = step.ledger.orphans(known)
    orphans = [record for record in orphans if in_shard(record.case_id, args.shard)]
    if orphans and not prune:
        _say(
            f"NOTE {len(orphans)} cases of earlier runs are not in this input, "
            f"{orphans[0].case_id} first; their outputs are kept (--prune removes them)"
        )
    for record in orphans if prune else ():
        removed = step.ledger.forget(record)
        _say(f"REMOVED {record.case_id}: {shortened(removed)}")
        _remove_empty_folders(step.ledger.folder, removed)


def _run(step: Step, due: list[CaseJob], summary: PrepareSummary, args: argparse.Namespace) -> None:
    """Work on the jobs that are due, and put their outcomes into the summary, sorted."""
    sizes = {job.case_id: _bytes_of(job) for job in due}
    workers = max(1, min(args.workers, len(due)))
    outcomes = run_all(partial(_do, step), due, workers=workers, scheduler=args.dask_scheduler)
    total, removed = sum(sizes.values()), []
    with progress_bar(total=total, desc=step.title, unit="B", unit_scale=True) as bar:
        for number, outcome in enumerate(outcomes, start=1):
            counts = f"{number}/{len(due)} cases, {len(summary.failures)} failed"
            bar.set_postfix_str(counts, refresh=False)
            bar.update(sizes[outcome.job.case_id])
            _add_outcome(summary, outcome)
            removed += outcome.removed
    summary.failures.sort()
    summary.dropped.sort()
    _remove_empty_folders(step.ledger.folder, removed)


def _add_outcome(summary: PrepareSummary, outcome: Outcome) -> None:
    """Count an outcome and print its messages; raise `WriteError` for an unwritable output."""
    if outcome.kind == "unwritable":
        raise WriteError(outcome.message)
    if outcome.kind == "failed":
        _report_failure(summary, outcome.message)
    summary.done += outcome.kind == "done"
    summary.skipped += outcome.kind == "skipped"
    if outcome.notes:
        summary.dropped.append(f"{outcome.job.case_id}: {shortened(outcome.notes)}")
        _say(f"DROPPED {summary.dropped[-1]}")
    if outcome.removed:
        _say(f"REMOVED {outcome.job.case_id}: {shortened(outcome.removed)}")


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
    entry = None
    try:
        if job.problem:
            raise InputError(job.problem)
        entry = step.ledger.open(job)
        if entry.confirm():
            return Outcome(job, "skipped")
        found = step.work(job, entry)
        entry.finish(found)
        return Outcome(job, "done", notes=found.notes, removed=tuple(entry.removed))
    except WriteError as error:
        return Outcome(job, "unwritable", str(error))
    except (InputError, OSError, MemoryError) as error:
        message = str(error) or type(error).__name__
    except Exception:  # one case must not end a run of days; keep the traceback
        message = f"a defect of this program, please report it:\n{traceback.format_exc()}"
    message = message if job.case_id.rsplit("/")[-1] in message else f"{job.case_id}: {message}"
    try:
        step.ledger.fail(job, message, entry)
    except WriteError as error:
        return Outcome(job, "unwritable", str(error))
    except (InputError, OSError) as error:
        message += f"\n(and no record could be made of it: {error})"
    return Outcome(job, "failed", message, removed=tuple(entry.removed) if entry else ())


def _report_failure(summary: PrepareSummary, message: str) -> None:
    summary.failures.append(message)
    _say(f"FAILED {message}")


def _say(line: str) -> None:
    """Print a line: above the progress bar on a terminal, alone in a log."""
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def _plan(step: Step, due: list[CaseJob], summary: PrepareSummary, need: int) -> str:
    blocked = [job for job in due if job.problem]
    for job in blocked:
        _report_failure(summary, job.problem)
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


def _remove_half_written(ledger: Ledger, case_ids: set[str]) -> None:
    """Remove the half-written files that a killed run left behind for these cases."""
    names = {f"{case_id}{suffix}" for case_id in case_ids for suffix in (".nii.gz", ".json")}
    names.add(ledger.manifest.name)
    if ledger.folder.is_dir():
        for path in walk(ledger.folder, set(), [], hidden=True):
            is_ours = TEMPORARY.sub("", path.name, count=1) in names
            if is_ours and is_abandoned(path):
                path.unlink(missing_ok=True)


def _bytes_of(job: CaseJob) -> int:
    sizes = 0
    for path in job.sources.values():
        try:
            sizes += path.stat().st_size
        except OSError:
            continue
    return max(1, sizes)
