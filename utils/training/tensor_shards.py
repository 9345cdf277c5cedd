"""Tensors of many samples on disk: safetensors files (shards) with an index beside them.

    shard-<rank>-<random>.safetensors   tensors named "<sample id>/<name>"
    index.jsonl                         first line: facts shared by all samples; then a line
                                        (row) for each sample: its shard, checksums, further facts
    rows-<rank>-<random>.jsonl          rows of a run that is not finished

A complete shard is written first, then the rows of its samples. A killed rank therefore loses only
the samples of its unwritten shard. Shards are memory-mapped: reading one sample does not read the
others. Checksums are compared on reading.
"""

import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import InputError
from utils.files.atomic import atomic_path, remove_abandoned
from utils.files.safe_read import UNREADABLE
from utils.training.json_lines import read_rows

INDEX = "index.jsonl"
SHARD_NAME = re.compile(r"shard-[0-9]+-[0-9a-f]+\.safetensors")
ROWS_NAME = re.compile(r"rows-[0-9]+-[0-9a-f]+\.jsonl")


class _Row(msgspec.Struct):
    """What every row has; further facts are the writer's own."""

    sample_id: str
    shard: str
    tensors: dict[str, str]  # the checksum of each tensor, by name


class _Head(msgspec.Struct):
    """The first line of an index."""

    common: dict[str, Any]
    samples: int


@dataclass(frozen=True)
class Shards:
    """Finished samples, opened by `open_shards`.

    Attributes:
        common: facts shared by all samples.
        rows: the row of each sample, by its id.
    """

    folder: Path
    common: dict
    rows: dict[str, dict]

    def read(
        self, sample_id: str, wanted: Callable[[str], bool] = lambda name: True
    ) -> dict[str, Tensor]:
        """Return the tensors of one sample whose names are ``wanted``.

        Raises:
            InputError: the shard is missing or damaged, or a checksum differs.
        """
        row = self.rows[sample_id]
        path = self.folder / row["shard"]
        expected = {key: value for key, value in row["tensors"].items() if wanted(key)}
        try:
            shard = _opened(path, path.stat().st_mtime_ns)
            tensors = {key: shard.get_tensor(f"{sample_id}/{key}") for key in expected}
        except (*UNREADABLE, SafetensorError) as error:
            raise _damaged(path, sample_id, str(error)) from error
        for key, tensor in tensors.items():
            if checksum(tensor) != expected[key]:
                found = f"{key} has checksum {checksum(tensor)}, expected {expected[key]}"
                raise _damaged(path, sample_id, found)
        return tensors


class ShardWriter:
    """Collects the samples of one rank and writes them as shards.

    Args:
        folder: of the shards.
        rank: of this process; part of the files' names.
        shard_bytes: a shard is written as soon as its tensors have this size.
    """

    def __init__(self, folder: Path, rank: int, shard_bytes: int) -> None:
        self._folder, self._rank, self._shard_bytes = folder, rank, shard_bytes
        # Each writer has its own file: the last line of a killed writer may be incomplete.
        self._lines = folder / f"rows-{rank}-{uuid.uuid4().hex[:12]}.jsonl"
        self._tensors: dict[str, Tensor] = {}
        self._rows: list[dict] = []

    def add(self, sample_id: str, tensors: dict[str, Tensor], row: dict) -> None:
        """Add a sample.

        Args:
            tensors: on the CPU, by name.
            row: facts for its row; JSON values only.
        """
        self._tensors |= {f"{sample_id}/{key}": t.contiguous() for key, t in tensors.items()}
        checksums = {key: checksum(tensor) for key, tensor in tensors.items()}
        self._rows.append({"sample_id": sample_id, "tensors": checksums} | row)
        if sum(t.nbytes for t in self._tensors.values()) >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the samples added since the last shard."""
        if not self._rows:
            return
        # The name is random, so that no row of an earlier index refers to this file.
        path = self._folder / f"shard-{self._rank}-{uuid.uuid4().hex[:12]}.safetensors"
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(self._tensors))
        lines = "".join(json.dumps(row | {"shard": path.name}) + "\n" for row in self._rows)
        before = self._lines.read_text() if self._lines.exists() else ""
        with atomic_path(self._lines) as temporary:
            temporary.write_text(before + lines)
        self._tensors, self._rows = {}, []


def checksum(tensor: Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes."""
    return f"{zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy()):08x}"


def open_shards(folder: Path) -> Shards:
    """Open a folder that `finish` completed.

    Raises:
        InputError: there is no index, or it is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        raise InputError(
            f"{path}: not found, expected the index of stored outputs.\n"
            "Run preparelabel.py to its end first."
        )
    first, *rows = read_rows(path) or [{}]
    head = _converted(first, _Head)
    rows = {row["sample_id"]: row for row in rows if is_row(row)}
    if head is None or len(rows) != head.samples:
        of = head.samples if head else "an unknown number"
        raise InputError(
            f"{path}: found {len(rows)} samples of {of}; "
            "expected a complete index.\nRun preparelabel.py again: it stores what is missing."
        )
    return Shards(folder, head.common, rows)


def is_row(row: object) -> bool:
    """Tell whether a line of an index is the row of a sample, which names a shard in the folder."""
    typed = _converted(row, _Row)
    return typed is not None and bool(typed.tensors) and bool(SHARD_NAME.fullmatch(typed.shard))


def _converted(content: object, kind: type) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError:
        return None


def written_rows(folder: Path, wanted: Callable[[dict], bool]) -> dict[str, dict]:
    """Return the rows, of finished and unfinished runs, that are ``wanted`` and have a shard."""
    rows = {}
    for path in (folder / INDEX, *_named(folder, ROWS_NAME)):
        for row in read_rows(path):
            if is_row(row) and wanted(row) and (folder / row["shard"]).is_file():
                rows[row["sample_id"]] = row
    return rows


def finish(folder: Path, common: dict, rows: Iterable[dict]) -> None:
    """Write the index of ``rows``, and remove shards that no row refers to."""
    rows = list(rows)
    lines = [{"common": common, "samples": len(rows)}, *rows]
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    needed = {row["shard"] for row in rows}
    unneeded = [path for path in _named(folder, SHARD_NAME) if path.name not in needed]
    for path in (*unneeded, *_named(folder, ROWS_NAME)):
        path.unlink()
    remove_abandoned(folder)


def require_own_index(folder: Path) -> None:
    """Raise an `InputError` if ``folder`` has an index of another origin, which `finish` replaces.

    An index that cannot be read is ours if there are shards beside it.
    """
    path = folder / INDEX
    if not os.path.lexists(path) or _named(folder, SHARD_NAME):
        return
    if not any(is_row(row) or _converted(row, _Head) for row in read_rows(path)):
        raise InputError(
            f"{path}: is no index of stored outputs, which would replace it. Expected a new "
            "folder, or that of an earlier run: choose another --teacher-dir."
        )


def _named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if names.fullmatch(path.name))


@lru_cache(maxsize=256)
def _opened(path: Path, _changed: int) -> safe_open:
    return safe_open(path, framework="pt")


def _damaged(path: Path, sample_id: str, found: str) -> InputError:
    return InputError(
        f"{path}: the outputs of {sample_id} are not readable ({found}), expected an intact file."
        "\nDelete the file and run preparelabel.py again, which computes these samples anew."
    )
