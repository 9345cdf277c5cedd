"""What the three data scripts share: cases of a folder, one loop over them, links (no torch).

A case id is a file's name without ``.npz`` and without ``_image`` or ``_label`` at its end. The
loop goes on after a case that cannot be used, and stops when an output cannot be written, since
the next ones could not be either.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from utils.atomic import WriteError, atomic_path
from utils.errors import InputError

Case = TypeVar("Case")


class Role(Enum):
    """What a file of a case holds; the value is the suffix that its name may end with."""

    IMAGE = "_image"
    LABEL = "_label"


class Outcome(Enum):
    """How a case ended that did not fail."""

    DONE = "done"
    SKIPPED = "skipped"


@dataclass
class Summary:
    """How many cases ended how; its text is the last line of a script."""

    done: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # one message per failed case

    @property
    def exit_code(self) -> int:
        """1 if any case failed."""
        return 1 if self.failures else 0

    def __str__(self) -> str:
        return f"done {self.done}, skipped {self.skipped}, failed {len(self.failures)}"


def find_npz(folder: Path, role: Role) -> dict[str, Path]:
    """Return case id -> file for all NPZ files in and below ``folder``, sorted by case id.

    Where a case has a file for its image and one for its label, the one for ``role`` is taken.

    Raises:
        InputError: no such folder, no such file in it, or two files for one case.
    """
    require_folder(folder, "a folder of challenge NPZ files")
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.rglob("[!.]*.npz") if p.is_file()):
        found.setdefault(case_id_of(path), []).append(path)
    if not found:
        raise InputError(
            f"{folder}: holds no .npz file, subfolders included. Expected challenge cases: check "
            "the path."
        )
    return {case_id: _only(paths, role) for case_id, paths in sorted(found.items())}


def case_id_of(path: Path) -> str:
    """Return the file's stem without ``_image`` or ``_label``."""
    return path.stem.removesuffix(Role.IMAGE.value).removesuffix(Role.LABEL.value)


def require_folder(folder: Path, expected: str) -> None:
    """Raise `InputError` unless ``folder`` exists and is one."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder. Expected {expected}: check the path, and that the step "
            "before has run."
        )


def is_current(output: Path, *sources: Path) -> bool:
    """Tell whether ``output`` exists and is no older than what it is made from."""
    try:
        written = output.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return False
    return all(source.stat().st_mtime_ns <= written for source in sources)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``; a copy where the disk knows no hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers``, how many cases are worked on at once."""
    parser.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="cases at a time, each in memory as a whole; 1 = one after the other (%(default)s)",
    )


def for_each_case(
    title: str,
    cases: Mapping[str, Case],
    work: Callable[[str, Case], Outcome],
    workers: int = 1,
) -> Summary:
    """Run ``work(case_id, case)`` for all cases, show progress, list failures as they happen.

    Threads suffice: decompression, compression and NumPy all release the interpreter's lock.

    Raises:
        WriteError: an output cannot be written; cases not yet begun are left.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}. Expected 1 or more: give a positive number.")
    summary = Summary()
    pool = ThreadPoolExecutor(workers)
    futures = {case_id: pool.submit(work, case_id, case) for case_id, case in cases.items()}
    try:
        for case_id, future in tqdm(futures.items(), desc=title, unit="case", disable=None):
            try:
                outcome = future.result()
            except WriteError:
                raise
            except (InputError, OSError) as error:
                message = str(error) if case_id in str(error) else f"{case_id}: {error}"
                summary.failures.append(message)
                tqdm.write(f"FAILED {message}", file=sys.stderr)
            else:
                summary.done += outcome is Outcome.DONE
                summary.skipped += outcome is Outcome.SKIPPED
    finally:
        pool.shutdown(cancel_futures=True)
    return summary


def _only(paths: list[Path], role: Role) -> Path:
    """Return the path of ``role`` among the files of one case."""
    with_suffix = [path for path in paths if path.stem.endswith(role.value)]
    candidates = with_suffix if len(with_suffix) == 1 else paths
    if len(candidates) > 1:
        listed = "\n  ".join(str(path) for path in candidates)
        raise InputError(
            f"{case_id_of(candidates[0])}: has {len(candidates)} files for its "
            f"{role.name.lower()}:\n  {listed}\nExpected one: move the others elsewhere."
        )
    return candidates[0]
