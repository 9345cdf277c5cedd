"""Shards: the parts of the cases that several runs of one step work on at the same time."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from zlib import crc32

from utils.errors import InputError
from utils.files.lock import owned

LOCKS = ".shards"


def in_shard(case_id: str, shard: str) -> bool:
    """Tell whether a case is in shard "I/N"; a case is in the same one in every step."""
    number, count = _parsed(shard)
    return crc32(case_id.rsplit("/")[-1].encode()) % count == number - 1


@contextmanager
def owned_shard(records: Path, shard: str) -> Iterator[None]:
    """Own one shard of a step during the block; other shards of the same number may run.

    Args:
        records: folder of the step's records.

    Raises:
        FolderInUseError: another run works on this shard, or on shards of another number, which
            hold cases of this one.
    """
    number, count = _parsed(shard)
    ending = f"-of-{count}"
    with ExitStack() as stack:
        stack.enter_context(owned(records / LOCKS / f"{number}{ending}"))
        for other in sorted((records / LOCKS).iterdir()):
            if not other.name.endswith(ending):
                with owned(other):
                    pass
        yield


def _parsed(shard: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--shard is {shard!r}. Expected I/N with I from 1 to N, such as 2/8.")
    return number, count
