"""Flags that name a checkpoint: a path, or a file of the Hugging Face hub."""

import argparse
import logging
import os
from pathlib import Path

from utils.errors import InputError
from utils.files.hub import HubFile, fetch, is_address
from utils.run.log import start_log

FROM_HUB = "or hf://OWNER/REPO/FILE[@REVISION], which is downloaded once"


def checkpoint_file(text: str) -> Path | HubFile:
    """Parse the value of a flag: the path of a checkpoint, or the address of one on the hub."""
    if not is_address(text):
        return Path(text)
    try:
        return HubFile.parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def with_local_files(args: argparse.Namespace) -> argparse.Namespace:
    """Return the flags with the local copy in place of each file of the hub; see `fetch`.

    Without such files ``args`` itself is returned.

    Raises:
        InputError: a file cannot be had.
    """
    remote = {flag: value for flag, value in vars(args).items() if isinstance(value, HubFile)}
    if not remote:
        return args
    if not logging.getLogger().handlers:  # a run starts its own log later
        start_log(level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    return argparse.Namespace(**vars(args) | {flag: fetch(file) for flag, file in remote.items()})
