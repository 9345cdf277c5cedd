"""Start a run: its folders, its log and its seed."""

import argparse
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from utils.files.append import open_append
from utils.files.lock import owned
from utils.run.folder import FLAGS, LOG, require_own_folder, write_flags
from utils.run.log import start_log
from utils.run.ranks import rank


def seed_everything(seed: int) -> None:
    """Seed the global generators of random, NumPy and torch, which initialise weights."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def owning(*folders: Path, owned_before: tuple[Path, ...] = ()) -> Iterator[None]:
    """Own the output folders of a run during the block; of several ranks, rank 0 owns them.

    Args:
        folders: made if missing; one that is named twice is owned once.
        owned_before: folders that this run owns already.

    Raises:
        FolderInUseError: another process owns a folder. Rank 0 then ends, and torchrun ends the
            other ranks.
        WriteError: a folder cannot be written to.
    """
    mine = {folder.resolve() for folder in owned_before}
    with ExitStack() as locks:
        for folder in folders if rank() == 0 else ():
            if folder.resolve() not in mine:
                mine.add(folder.resolve())
                locks.enter_context(owned(folder))
        yield


def start_run(
    args: argparse.Namespace,
    out_dir: Path,
    *,
    script: str = "",
    writes: Iterable[str] = (),
) -> None:
    """Seed the run and log to stderr; rank 0 also logs to run.log in ``out_dir``.

    Rank 0 writes ``args.json`` if there is none. That of an earlier run stays until the run has
    passed its checks and calls `write_flags`.

    Args:
        args: flags of the script, with ``seed``.
        out_dir: folder of the run; made if missing.
        script, writes: as in `require_own_folder`.

    Raises:
        InputError: files of another origin would be replaced.
        WriteError: the folder cannot be written to.
    """
    seed_everything(args.seed)
    files: list[logging.Handler] = []
    if rank() == 0:
        require_own_folder(out_dir, script, writes)
        if not (out_dir / FLAGS).exists():
            write_flags(args, out_dir, script)
        files.append(_LogFile(out_dir / LOG))
    level = logging.INFO if rank() == 0 else logging.WARNING
    start_log(level=level, format="%(asctime)s %(message)s", more=files)


class _LogFile(logging.FileHandler):
    """Appends to a file, and never through a link."""

    def _open(self) -> TextIO:
        return open_append(Path(self.baseFilename))
