"""Every attention kernel of this machine gives the literal form's result.

The list grows with the machine: on a GPU PyTorch's CUDA kernels, and flash_attn where it is
installed, are held to the same numbers as what a CPU has.
"""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.literal_attention import literal_attention
from segment_anything.modeling import attention3D
from segment_anything.modeling.attention3D import Attention3D, attend_dense, attend_extended

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
#: PyTorch's kernels that take a bias, or values narrower than keys; its flash kernels do not, but
#: for the CPU's, which takes a bias.
KERNELS = {
    ("cpu", attend_dense): [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION],
    ("cpu", attend_extended): [SDPBackend.MATH],
    ("cuda", attend_dense): [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION],
    ("cuda", attend_extended): [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION],
}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
GRIDS = {
    "padded": {"grid_size": 4, "window_size": 7},
    "global": {"grid_size": 4},
    "textbook": {"grid_size": 4, "textbook": True},
}


def backends() -> Iterator[tuple]:
    """Yield (device, precision, way to attend, kernel) for all that can run here."""
    for (device, way), kernels in KERNELS.items():
        for kernel in kernels if device in DEVICES else ():
            for precision in TOLERANCES:
                yield device, precision, way, kernel


def attention(grid: str) -> tuple[Attention3D, torch.Tensor]:
    torch.manual_seed(0)
    attn = Attention3D(48, num_heads=2, **GRIDS[grid]).eval()
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.normal_(std=0.2)
    return attn, torch.randn(2, 4, 4, 4, 48)


def expected_of(attn: Attention3D, x: torch.Tensor) -> torch.Tensor:
    """Return the literal form's output in float64; the textbook's by a bias of full size."""
    attn, x = attn.double(), x.double()
    with torch.no_grad():
        return attn(x) if attn.textbook else literal_attention(attn, x)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


@torch.no_grad()
def attended(attn, x, device, precision, way, monkeypatch) -> torch.Tensor:
    monkeypatch.setattr(attention3D, "attend", way)
    with torch.autocast(device, precision, enabled=precision != torch.float32):
        return attn.float().to(device)(x.float().to(device))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("device", "precision", "way", "kernel"), list(backends()), ids=str)
def test_every_backend_gives_the_same(grid, device, precision, way, kernel, monkeypatch):
    attn, x = attention(grid)
    expected = expected_of(attn, x)
    monkeypatch.setattr(attention3D, "flash_attn_func", None)
    with sdpa_kernel(kernel):
        found = attended(attn, x, device, precision, way, monkeypatch)
    assert relative_error(found, expected) < TOLERANCES[precision]


def plain_flash(query, key, value, softmax_scale):
    """flash_attn_func's contract, spelled out: (B, tokens, heads, width), all of one width."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] <= attention3D.FLASH_MAX_WIDTH
    assert query.shape[-1] % 8 == 0
    assert {query.dtype, key.dtype, value.dtype} <= {torch.float16, torch.bfloat16}
    query, key, value = (tensor.float().transpose(1, 2) for tensor in (query, key, value))
    weights = (softmax_scale * query @ key.mT).softmax(-1)
    return (weights @ value).transpose(1, 2).bfloat16()


# Where flash_attn itself is installed, on CUDA, it is held to the same as its stand-in.
FLASH = [("cpu", plain_flash)]
if torch.cuda.is_available() and attention3D.flash_attn_func is not None:
    FLASH.append(("cuda", attention3D.flash_attn_func))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("device", "flash"), FLASH)
def test_flash_attn_gives_the_same(grid, device, flash, monkeypatch):
    attn, x = attention(grid)
    expected = expected_of(attn, x)
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return flash(*args, **kwargs)

    monkeypatch.setattr(attention3D, "flash_attn_func", counted)
    found = attended(attn, x, device, torch.bfloat16, attend_extended, monkeypatch)
    assert len(calls) == 1
    assert relative_error(found, expected) < TOLERANCES[torch.bfloat16]


def test_flash_attn_is_left_alone_in_float32_and_beyond_its_width(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("flash_attn does not take these")

    monkeypatch.setattr(attention3D, "flash_attn_func", never)
    attn, x = attention("padded")
    expected = expected_of(attn, x)
    found = attended(attn, x, "cpu", torch.float32, attend_extended, monkeypatch)
    assert relative_error(found, expected) < TOLERANCES[torch.float32]
    monkeypatch.setattr(attention3D, "FLASH_MAX_WIDTH", 32)
    found = attended(attn, x, "cpu", torch.bfloat16, attend_extended, monkeypatch)
    assert relative_error(found, expected) < TOLERANCES[torch.bfloat16]


def test_a_gpu_attends_inside_the_dot_product_and_a_cpu_with_a_bias(monkeypatch):
    chosen = []
    for way in ("attend_dense", "attend_extended"):
        monkeypatch.setattr(attention3D, way, lambda *_, way=way: chosen.append(way))

    class Query:
        is_cuda = False

    attention3D.attend(Query, None, None, None, None)
    Query.is_cuda = True
    attention3D.attend(Query, None, None, None, None)
    assert chosen == ["attend_dense", "attend_extended"]
