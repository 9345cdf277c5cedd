"""A checkpoint is data: a file with a program in it is refused, and the program does not run.

The files here are good but for the program: without it they load.
"""

import os

import pytest
import torch
from small_networks import small_sam

from segment_anything import (
    CheckpointError,
    build_from_checkpoint,
    checkpoint_payload,
    load_checkpoint,
    open_checkpoint,
    read_checkpoint,
)


class Program:
    """Touches a file when it is unpickled by a careless reader."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


READERS = {
    "read": read_checkpoint,
    "open": open_checkpoint,
    "load": lambda path: load_checkpoint(small_sam(1), path),
    "build": build_from_checkpoint,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_good_file_with_a_program_in_it_is_refused_and_the_program_does_not_run(
    tmp_path, reader, zipped
):
    path, marker = tmp_path / "file.pth", tmp_path / "marker"
    good = checkpoint_payload(small_sam(), step=7)
    torch.save(good, path, _use_new_zipfile_serialization=zipped)
    reader(path)

    torch.save(good | {"args": Program(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"file\.pth: not readable"):
        reader(path)
    assert not marker.exists()

    torch.load(path, weights_only=False)  # the test can fail: a careless reader runs it
    assert marker.exists()
