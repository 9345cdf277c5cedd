"""Names of cases and data sets: unprintable ones, and two that are one file, are refused."""

from collections.abc import Sequence
from dataclasses import replace

from utils.errors import InputError
from utils.files.names import colliding_names
from utils.preparation.entry import CaseJob

ONE_FILE = (
    "would be one file or folder on macOS or Windows. Expected names that differ in more than "
    "upper and lower case or the form of a Unicode character: rename one."
)


def usable_jobs(jobs: Sequence[CaseJob]) -> tuple[list[CaseJob], list[str]]:
    """Return the jobs to work on, and messages about those whose names are unprintable.

    Cases whose names may be one file on some system become one job that fails and names them all.

    Raises:
        InputError: the names of two data sets may be one folder.
    """
    printable = [job for job in jobs if _is_printable(job)]
    problems = [
        f"{job.case_id!r}: the case, or an organ of {list(job.sources)!r:.200}, has an unprintable "
        "name. Expected printable characters: rename files and folders."
        for job in jobs
        if not _is_printable(job)
    ]
    require_no_collision({job.dataset for job in printable} - {""}, "data sets")
    groups = colliding_names(job.case_id for job in printable)
    named = {group[0]: f"cases {_listed(group)} {ONE_FILE}" for group in groups}
    left_out = {case_id for _, *others in groups for case_id in others}
    usable = [
        replace(job, problem=named[job.case_id]) if job.case_id in named else job
        for job in printable
        if job.case_id not in left_out
    ]
    return usable, problems


def require_no_collision(names: set[str], what: str) -> None:
    """Raise `InputError` if two of the names may be one folder on some system."""
    if groups := colliding_names(names):
        raise InputError(f"{what} {_listed(groups[0])} {ONE_FILE}")


def _is_printable(job: CaseJob) -> bool:
    return all(map(str.isprintable, (job.case_id, job.dataset, *job.sources)))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(ascii, names[:5]))
