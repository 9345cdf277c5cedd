"""Start a run: its folders, its log and its seed."""

import argparse
import json
import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from utils.files.atomic import atomic_path
from utils.files.lock import owned
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


def start_run(args: argparse.Namespace, out_dir: Path) -> None:
    """Seed the run and log to stderr; rank 0 also writes args.json and run.log to ``out_dir``.

    Args:
        args: flags of the script, with ``seed``.
        out_dir: folder of the run; made if missing.

    Raises:
        WriteError: the folder cannot be written to.
    """
    seed_everything(args.seed)
    files: list[logging.Handler] = []
    if rank() == 0:
        values = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
        with atomic_path(out_dir / "args.json") as temporary:
            temporary.write_text(json.dumps(values, indent=1, default=str))
        files.append(logging.FileHandler(out_dir / "run.log", encoding="utf-8"))
    level = logging.INFO if rank() == 0 else logging.WARNING
    start_log(level=level, format="%(asctime)s %(message)s", more=files)
