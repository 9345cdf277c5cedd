"""What the data scripts share: one loop over the cases (no torch).

A step is a list of jobs (one a case), a function that works on one, and an output folder with a
ledger. The loop leaves out what is current, checks the disk space, works on the rest, goes on after
a case that cannot be used, and stops when an output cannot be written, since the next ones could
not be either.
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

Item = TypeVar("Item")


@dataclass
class PrepareSummary:
    """How many cases ended how; its text is the last line of a script."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # one message per failed case
    dropped: list[str] = field(default_factory=list)  # one message per case that was cleaned
    plan: str = ""  # what a dry run would have done

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
    """What one script does.

    Attributes:
        title: name of the step.
        ledger: its records.
        work: writes the outputs of one job; picklable. It claims them before it writes.
        space: how many bytes the outputs of a job take, at most about.
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
    """Return ``plan(case_id, files, ...)``, or a job with the problem that planning found."""
    try:
        return plan(case_id, *args)
    except InputError as error:
        files = args[0] if isinstance(args[0], list) else [args[0]]
        return CaseJob(case_id, "", {"file": files[0]}, problem=str(error))


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``; a copy where the disk knows no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def link_to_first(outputs: Sequence[Path]) -> None:
    """Make all ``outputs`` the file that the first of them is."""
    for output in outputs[1:]:
        link_or_copy(outputs[0], output)


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how, not what: they do not change the outputs."""
    group = parser.add_argument_group("how to run")
    group.add_argument(
        "--workers",
        type=int,
        default=cpu_count(),
        help="processes, each with one case in memory (the cores: %(default)s)",
    )
    group.add_argument(
        "--shard",
        default="1/1",
        help="I/N: do the I-th of N parts, of the same cases in each step (%(default)s)",
    )
    group.add_argument(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask cluster, tcp://host:port, instead of --workers",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be done and what room it needs"
    )
    group.add_argument(
        "--prune",
        action="store_true",
        help="remove outputs of earlier runs whose case is no longer in the input",
    )
    group.add_argument(
        "--max-voxels",
        type=int,
        default=MAX_VOXELS,
        help="refuse larger volumes; a worker takes some 10 bytes a voxel at worst (%(default)s)",
    )


def progress(items: Iterable[Item] | None = None, **options: object) -> "tqdm[Item]":
    """Show how far it is, the rate and the time left: at once on a terminal, a line a minute else.

    Args:
        items: what to go through.
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
    prune: bool | None = None,
) -> PrepareSummary:
    """Do what is due of ``jobs``; show progress, list failures as they happen.

    Args:
        step: what to do with a job.
        jobs: all cases, of all shards.
        problems: what could not even become a job.
        args: the flags of `add_preparation_arguments`.
        left: ids of cases that are there and left as they are; counted as skipped.
        prune: remove outputs of cases that are no longer among the jobs (default: ``--prune``).

    Returns:
        The `PrepareSummary`. With ``--dry-run`` nothing is written, and it holds the plan.

    Raises:
        WriteError: an output cannot be written; cases not yet begun are left.
        InputError: the flags cannot be, there is too little room, or a worker died.
    """
    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}. Expected 1 or more: give a number.")
    jobs = list(jobs)
    summary = PrepareSummary()
    for problem in problems:
        _report_failure(summary, problem)
    mine = [job for job in jobs if in_shard(job.case_id, args.shard)]
    looking = progress(mine, desc=f"{step.title}: what is due", unit="case", delay=2)
    due = [job for job in looking if not step.ledger.is_current(job)]
    left = list(left)
    summary.skipped = len(mine) - len(due) + sum(in_shard(case_id, args.shard) for case_id in left)
    need = sum(step.space(job) for job in due)
    if args.dry_run:
        summary.plan = _plan(step, due, summary, need)
        return summary
    advice = "free space, choose another output folder, or do a part at a time with --shard"
    require_space(step.ledger.folder, need, step.title, advice)
    _sweep(step.ledger, {job.case_id.rsplit("/")[-1] for job in due})
    known = [*(job.case_id for job in jobs), *left]
    _see_to_orphans(step, known, args, args.prune if prune is None else prune)
    try:
        _run(step, due, summary, args)
    finally:
        if step.ledger.records.is_dir():
            step.ledger.write_manifest(known)
    summary.failures.sort()
    summary.dropped.sort()
    return summary


def in_shard(case_id: str, shard: str) -> bool:
    """Tell whether a case is in shard "I/N"; a case is in the same one in every step."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--shard is {shard!r}. Expected I/N with I from 1 to N, such as 2/8.")
    return crc32(case_id.rsplit("/")[-1].encode()) % count == number - 1


def _see_to_orphans(step: Step, known: list[str], args: argparse.Namespace, prune: bool) -> None:
    """Remove, or mention, what earlier runs made of cases that are no longer there."""
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
    sizes = {job.case_id: _bytes_of(job) for job in due}
    workers = max(1, min(args.workers, len(due)))
    outcomes = run_all(partial(_do, step), due, workers=workers, scheduler=args.dask_scheduler)
    total, removed = sum(sizes.values()), []
    with progress(total=total, desc=step.title, unit="B", unit_scale=True) as bar:
        for number, outcome in enumerate(outcomes, start=1):
            counts = f"{number}/{len(due)} cases, {len(summary.failures)} failed"
            bar.set_postfix_str(counts, refresh=False)
            bar.update(sizes[outcome.job.case_id])
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
                removed += outcome.removed
    _remove_empty_folders(step.ledger.folder, removed)


def _remove_empty_folders(root: Path, removed: Iterable[str]) -> None:
    """Remove the folders below ``root`` in which nothing is left of what was in them."""
    for name in removed:
        for folder in (root / name).parents:
            if folder == root or any(folder.iterdir() if folder.is_dir() else ()):
                break
            with suppress(OSError):
                folder.rmdir()


def _do(step: Step, job: CaseJob) -> Outcome:
    """Work on one job, in whichever process; nothing is raised but by our own defects."""
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
    except Exception:  # one case must not end a run of days; the traceback is not lost
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
    """Print a line above the progress bar; in a log, where a bar is rare, without drawing it."""
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


def _sweep(ledger: Ledger, case_ids: set[str]) -> None:
    """Remove half-written files that a killed run left of cases that are now done again."""
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
