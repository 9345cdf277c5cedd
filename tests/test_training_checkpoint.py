"""Training checkpoints appear whole or not at all."""

import resource
import signal

import pytest
import torch

from utils.files.atomic import WriteError, atomic_path
from utils.run.network import save_payload


@pytest.fixture
def one_megabyte(monkeypatch):
    """Let no file grow beyond 1 MiB: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path, one_megabyte):
    path = tmp_path / "last.pt"
    save_payload(path, {"step": 1})
    with pytest.raises(WriteError, match=r"(?s)last\.pt: cannot be written.*MiB are free"):
        save_payload(path, {"step": 2, "weights": torch.zeros(10**6)})
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with atomic_path(tmp_path / "a" / "b.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list((tmp_path / "a").iterdir())
