"""The released attention as it was written: pad to the window, attend among all tokens, crop.

This is the slow and obvious form of `segment_anything.modeling.attention3D.Attention3D` with the
released relative terms. It serves as reference in tests and as rival in benchmarks/training.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from segment_anything.modeling.attention3D import Attention3D


def literal_attention(attn: Attention3D, x: Tensor) -> Tensor:
    """Attend over (B, g, g, g, C) through every padded token, with a bias of full size."""
    grid, size = x.shape[1], attn.table_size
    x = F.pad(x, (0, 0) + (0, size - grid) * 3)
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = qkv.permute(4, 0, 5, 1, 2, 3, 6)  # (B, n, d, h, w, c) each

    logits = attn.scale * torch.einsum("bndhwc,bnxyjc->bndhwxyj", q, k)
    a = torch.einsum("bndhwc,djc->bndhwj", q, _by_offset(attn.rel_pos_d))
    b = torch.einsum("bndhwc,hjc->bndhwj", q, _by_offset(attn.rel_pos_h))
    c = torch.einsum("bndhwc,wjc->bndhwj", q, _by_offset(attn.rel_pos_w))
    # The released slip: key axis j indexes all three tables. The query axis w of b is added along
    # key axis x, and that of c along key axis y.
    logits = logits + a[:, :, :, :, :, None, None, :]
    logits = logits + b[:, :, :, :, None, :, None, :]
    logits = logits + c[:, :, :, :, None, None, :, :]

    weights = logits.flatten(5).softmax(-1).unflatten(-1, (size, size, size))
    out = torch.einsum("bndhwxyj,bnxyjc->bdhwnc", weights, v).flatten(4)
    return attn.proj(out)[:, :grid, :grid, :grid]


def _by_offset(table: Tensor) -> Tensor:
    """Return R[i, j] = table[i - j + S - 1] for a table of 2 S - 1 rows."""
    size = (len(table) + 1) // 2
    rows = [table[size - 1 + i - size + 1 : size + i].flip(0) for i in range(size)]
    return torch.stack(rows)


@contextmanager
def literal_windows() -> Iterator[None]:
    """Use the literal form for every padded window attention of all networks within the block."""
    ours = Attention3D.forward

    def forward(attn: Attention3D, x: Tensor) -> Tensor:
        return literal_attention(attn, x) if attn.padded else ours(attn, x)

    Attention3D.forward = forward
    try:
        yield
    finally:
        Attention3D.forward = ours
