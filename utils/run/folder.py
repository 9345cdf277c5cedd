"""The folder of a run: no file in it is replaced unless a run of the same script wrote to it."""

import argparse
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files.atomic import atomic_path
from utils.files.hub import address_of
from utils.files.strict_json import read_json

FLAGS = "args.json"
LOG = "run.log"
#: Flags of every script that has such a folder; earlier versions did not save the script's name.
EARLIER = {"out_dir", "checkpoint", "network", "seed", "device", "precision", "workers"}


def require_own_folder(folder: Path, script: str, writes: Iterable[str]) -> None:
    """Refuse a folder in which a run would replace files of another origin.

    A run of ours leaves its flags in ``args.json``, with the name of the script. A folder without
    this file is free if it has none of the names that the script writes.

    Args:
        script: name of the script; scripts of one name may replace each other's files.
        writes: the names of the files and folders that the script writes to ``folder``.

    Raises:
        InputError: the folder belongs to another script, or holds such a name and no flags.
    """
    flags = folder / FLAGS
    if os.path.lexists(flags):
        with suppress(InputError):
            found = read_json(flags, "the flags of a run", dict[str, Any])
            if found.get("script", script) == script and found.keys() >= EARLIER:
                return
        what = f"{flags}: is not from a run of {script}"
    else:
        taken = [name for name in (*writes, LOG) if os.path.lexists(folder / name)]
        if not taken:
            return
        what = f"{folder}: holds {', '.join(taken[:5])}, and no {FLAGS} of a run of {script}"
    raise InputError(
        f"{what}. Expected a new folder, or that of an earlier run, since files would be replaced: "
        "choose another --out-dir."
    )


def write_flags(args: argparse.Namespace, folder: Path, script: str) -> None:
    """Write the flags of a run to ``args.json``; a file of the hub as its address with commit."""
    values: dict[str, Any] = {"script": script}
    for key, value in vars(args).items():
        values[key] = address_of(value) or str(value) if isinstance(value, Path) else value
    with atomic_path(folder / FLAGS) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=str))
