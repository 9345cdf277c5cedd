"""The released encoder's self-attention with relative positions: the same numbers, far less work.

Shapes: B batch, n heads, c head width, g tokens along a grid axis, N = g^3 tokens, S = extent of a
relative table (the window size in window blocks, g in global ones). A query is addressed (d, h, w),
a key (x, y, j) along the same three axes.

**The relative terms are not the textbook's decomposed form** (MViTv2, arXiv:2112.01526). With
R_d[d, j] = rel_pos_d[d - j + S - 1], and R_h, R_w alike, the logit of query (d, h, w) on key
(x, y, j) is

    scale q.k  +  q(d,h,w).R_d[d, j]  +  q(d,h,x).R_h[h, j]  +  q(d,h,y).R_w[y, j]

A broadcasting error in the original code makes every term index the *last* key axis; the second and
third terms use the query vector at another position of the query's own row. SAM-Med3D and FastSAM3D
were trained with this error, so their weights need it. Do not repair it here.

Networks trained from scratch may have the textbook form instead (``textbook``), where every term
indexes its own key axis and uses the query itself:

    scale q.k  +  q(d,h,w).R_d[d, x]  +  q(d,h,w).R_h[h, y]  +  q(d,h,w).R_w[w, j]

**Padding.** Window blocks pad the grid with zeros from g to S tokens along each axis, and nothing
masks the padded tokens. They all have the qkv bias as their q, k and v, so their logits differ only
in the relative terms. These separate from the rest: the whole padding is *one virtual key*, with
the bias as key and value and log(sum(exp(relative terms))) as its extra logit (`_padding_logit`).
For g = 8 and S = 14, attention among 2,744 tokens becomes 512 queries on 513 keys, with the same
result.

**Low precision.** Relative logits are computed in float32 and cast where they enter the kernel.
Under autocast on the CPU the embedding then differs from float32's by 0.9% (bfloat16) or 0.1%
(float16), with the bias dense or in the dot product, for teacher and student (with the weights of
tests/fixed_weights.py).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from flash_attn import flash_attn_func
except ImportError:  # optional; scaled_dot_product_attention serves everywhere
    flash_attn_func = None

FLASH_MAX_WIDTH = 256  # the widest head that flash_attn takes


class RelativeLogits(NamedTuple):
    """The relative terms of the logits as summands of fewer axes, in float32 or wider.

    The bias of query (d, h, w) on key (x, y, j) is a[d,h,w,j] + b[d,h,x,j] + c[d,h,y,j]; on the
    virtual padding key it is ``padding``.
    """

    a: Tensor  # (B, n, g, g, g, g): d, h, w, j
    b: Tensor  # (B, n, g, g, g, g): d, h, x, j
    c: Tensor  # (B, n, g, g, g, g): d, h, y, j
    padding: Tensor | None  # (B, n, g, g, g), or None when nothing is padded


class RelativeTables(NamedTuple):
    """The share of the relative terms that depends on the weights alone, gathered by offset."""

    d: Tensor  # (g, S, c): d, j
    h: Tensor  # (g, S, c): h, j
    w: Tensor  # (g, S, c): y, j
    b_pad: Tensor | None  # (n, g, S): log of b's sum over the padded x, for each h and j
    c_pad: Tensor | None  # (n, S): log of c's sum over the padded y, for each j


class Attention3D(nn.Module):
    """Multi-head self-attention over a whole cubic token grid.

    Args:
        dim: Token width.
        num_heads: Heads; ``dim`` is a multiple.
        grid_size: Tokens along each axis (g).
        window_size: Edge of the cube that the grid counts as padded to (S >= g), in tokens; 0 = no
            padding.
        textbook: The textbook's relative terms instead of the released ones; without padding.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        grid_size: int,
        window_size: int = 0,
        textbook: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.textbook = textbook
        self.grid_size = grid_size
        self.table_size = window_size or grid_size
        head_dim = dim // num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        for axis in "dhw":
            table = nn.Parameter(torch.zeros(2 * self.table_size - 1, head_dim))
            self.register_parameter(f"rel_pos_{axis}", table)

        position = torch.arange(self.table_size)
        offsets = position[:, None] - position[None, :] + self.table_size - 1
        self.register_buffer("offsets", offsets, persistent=False)
        if textbook:
            columns = textbook_key_columns(grid_size)
        else:
            columns = key_columns(grid_size, padded=self.padded)
        self.register_buffer("columns", columns, persistent=False)
        self._frozen: RelativeTables | None = None

    @torch.no_grad()
    def freeze(self) -> None:
        """Gather the relative tables once. After this neither weights nor device may change."""
        self._frozen = self._tables(torch.float32)

    @property
    def padded(self) -> bool:
        """Whether padded tokens take part, as the virtual key."""
        return self.table_size > self.grid_size

    def forward(self, x: Tensor) -> Tensor:
        """Let every token attend to all tokens, and to the padding where there is some.

        Args:
            x: (B, g, g, g, dim) normalised tokens.

        Returns:
            (B, g, g, g, dim).
        """
        batch, heads, grid = x.shape[0], self.num_heads, self.grid_size
        qkv = self.qkv(x).reshape(batch, grid**3, 3, heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, n, N, c)
        relative = self._textbook_logits(query) if self.textbook else self._relative_logits(query)
        if self.padded:
            _, key_bias, value_bias = self._bias_of_heads(batch).to(key.dtype)
            key = torch.cat([key, key_bias], dim=2)
            value = torch.cat([value, value_bias], dim=2)
        out = attend(query * self.scale, key, value, relative, self.columns)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def _bias_of_heads(self, batch: int) -> Tensor:
        """Return q, k and v of a padded token: (3, B, n, 1, c)."""
        bias = self.qkv.bias.view(3, 1, self.num_heads, 1, -1)
        return bias.expand(-1, batch, -1, -1, -1)

    def _relative_logits(self, query: Tensor) -> RelativeLogits:
        """Compute the relative terms of unscaled queries (B, n, N, c), in float32 or wider."""
        grid = self.grid_size
        with torch.autocast(query.device.type, enabled=False):
            query = self._wide_grid(query)
            tables = self._frozen or self._tables(query.dtype)
            a = torch.einsum("bndhwc,djc->bndhwj", query, tables.d)
            b = torch.einsum("bndhxc,hjc->bndhxj", query, tables.h)
            c = torch.einsum("bndhyc,yjc->bndhyj", query, tables.w)
            padding = _padding_logit(a, b, c, tables.b_pad, tables.c_pad) if self.padded else None
            return RelativeLogits(a[..., :grid], b[..., :grid], c[..., :grid], padding)

    def _textbook_logits(self, query: Tensor) -> Tensor:
        """Compute the textbook's terms of unscaled queries (B, n, N, c), in float32 or wider.

        Returns:
            (B, n, N, 3 g): what each query adds for every x, every y and every j of a key.
        """
        with torch.autocast(query.device.type, enabled=False):
            query = self._wide_grid(query)
            tables = self._frozen or self._tables(query.dtype)
            terms = [
                torch.einsum(f"bndhwc,{axis}kc->bndhwk", query, table)
                for axis, table in zip("dhw", tables[:3], strict=True)
            ]
            return torch.cat(terms, dim=-1).flatten(2, 4)

    def _wide_grid(self, query: Tensor) -> Tensor:
        """Return queries as (B, n, g, g, g, c), in float32 or wider."""
        dtype = torch.promote_types(query.dtype, torch.float32)
        return query.to(dtype).unflatten(2, (self.grid_size,) * 3)

    def _tables(self, dtype: torch.dtype) -> RelativeTables:
        grid = self.grid_size
        # (S, S, c) each; real queries need the first g rows, padded ones the rest of w
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        d, h, w = (table.to(dtype)[self.offsets] for table in tables)
        b_pad = c_pad = None
        if self.padded:
            bias = self.qkv.bias.to(dtype).view(3, self.num_heads, -1)[0]
            # The query at a padded position is the bias. So b is equal for every padded x; c uses
            # another row of the table w for each padded y.
            b_pad = torch.einsum("nc,hjc->nhj", bias, h[:grid]) + math.log(self.table_size - grid)
            c_pad = torch.logsumexp(torch.einsum("nc,yjc->nyj", bias, w[grid:]), dim=1)
        return RelativeTables(d[:grid], h[:grid], w[:grid], b_pad, c_pad)


def _padding_logit(a: Tensor, b: Tensor, c: Tensor, b_pad: Tensor, c_pad: Tensor) -> Tensor:
    """Return log(sum over padded keys of exp(relative terms)) for every query, (B, n, g, g, g).

    The padded keys are three disjoint sets: j padded; j real and x padded; j and x real and y
    padded. These sets are added. Subtracting the real keys from all keys would lose digits.

    Args:
        a, b, c: The terms of real queries with j over all S places, (B, n, g, g, g, S).
        b_pad: (n, g, S), log of b's sum over the padded x, for each h and j.
        c_pad: (n, S), log of c's sum over the padded y, for each j.
    """
    grid = a.shape[-2]
    b_real, c_real = torch.logsumexp(b, dim=-2), torch.logsumexp(c, dim=-2)  # (B, n, d, h, j)
    b_pad, c_pad = b_pad[None, :, None], c_pad[None, :, None, None]
    b_all, c_all = torch.logaddexp(b_real, b_pad), torch.logaddexp(c_real, c_pad)
    over_real_j = torch.logaddexp(b_pad + c_all, b_real + c_pad)[..., :grid]
    over_padded_j = (b_all + c_all)[..., grid:]
    of_row = torch.cat([over_real_j, over_padded_j], dim=-1)
    return torch.logsumexp(a + of_row[..., None, :], dim=-1)


def key_columns(grid: int, *, padded: bool) -> Tensor:
    """Return the columns that select each key's relative logits in a dot product.

    (N, 2 g^2), with a one at (x, j) and a one at (y, j). ``padded`` adds a last row for the virtual
    key, and a last column for its logit.
    """
    x, y, j = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(grid)] * 3, indexing="ij"))
    columns = torch.cat([F.one_hot(x * grid + j, grid**2), F.one_hot(y * grid + j, grid**2)], dim=1)
    if padded:
        columns = F.pad(columns, (0, 1, 0, 1))
        columns[-1, -1] = 1
    return columns.float()


def textbook_key_columns(grid: int) -> Tensor:
    """Return the columns that select each key's textbook terms: (N, 3 g), ones at x, y and j."""
    places = torch.meshgrid(*[torch.arange(grid)] * 3, indexing="ij")
    return torch.cat([F.one_hot(axis.flatten(), grid) for axis in places], dim=1).float()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: RelativeLogits | Tensor,
    columns: Tensor,
) -> Tensor:
    """Return softmax(query key^T + relative) value: the one place that chooses a backend.

    On CUDA the relative logits are part of the dot product, so that kernels without a bias can be
    used. On the CPU a dense bias is faster.

    Args:
        query: (B, n, N, c), scaled.
        key: (B, n, N or N + 1, c); the last may be the virtual padding key.
        value: As ``key``.
        relative: The relative logits of the same queries, released or textbook.
        columns: `key_columns` or `textbook_key_columns` of the same keys.
    """
    chosen = attend_extended if query.is_cuda else attend_dense
    return chosen(query, key, value, relative, columns)


def attend_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: RelativeLogits | Tensor,
    columns: Tensor,
) -> Tensor:
    """Attend with the relative logits as a bias of full size; see `attend`."""
    if isinstance(relative, Tensor):
        bias = relative @ columns.to(relative.dtype).T
    else:
        bias = dense_bias(relative)
    bias = bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)


def attend_extended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    relative: RelativeLogits | Tensor,
    columns: Tensor,
) -> Tensor:
    """Attend with the relative logits inside the dot product; see `attend`.

    flash_attn computes it where it is installed and supports dtype and width, PyTorch's fused
    kernels elsewhere.
    """
    width = value.shape[-1]
    query, key = extend(query, key, relative, columns)
    half = query.dtype in (torch.float16, torch.bfloat16)
    if flash_attn_func is not None and half and query.shape[-1] <= FLASH_MAX_WIDTH:
        value = F.pad(value, (0, query.shape[-1] - width))
        tokens_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return flash_attn_func(*tokens_first, softmax_scale=1.0).transpose(1, 2)[..., :width]
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def dense_bias(relative: RelativeLogits) -> Tensor:
    """Return the relative logits of every query on every key: (B, n, N, N or N + 1)."""
    # The summands are small. If they are contiguous, so is their large sum, without a copy.
    a, b, c = (factor.contiguous() for factor in relative[:3])
    of_row = b[..., :, None, :] + c[..., None, :, :]  # (B, n, d, h, x, y, j)
    bias = of_row[:, :, :, :, None] + a[..., None, None, :]
    bias = bias.flatten(5).flatten(2, 4)
    if relative.padding is None:
        return bias
    return torch.cat([bias, relative.padding.flatten(2)[..., None]], dim=-1)


def extend(
    query: Tensor, key: Tensor, relative: RelativeLogits | Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Widen query and key so that their dot product includes the relative logits.

    Kernels need a multiple of 8, so zeros pad the width of c + 2 g^2 (+ 1), or c + 3 g.
    """
    parts = [relative] if isinstance(relative, Tensor) else _factors(relative)
    query = torch.cat([query, *(part.to(query.dtype) for part in parts)], dim=-1)
    columns = columns.to(key.dtype).expand(*key.shape[:2], -1, -1)
    key = torch.cat([key, columns], dim=-1)
    missing = -query.shape[-1] % 8
    return F.pad(query, (0, missing)), F.pad(key, (0, missing))


def _factors(relative: RelativeLogits) -> list[Tensor]:
    """Return what each query adds for every (x, j), for every (y, j), and for the virtual key."""
    a, b, c, padding = relative
    grid = a.shape[-1]
    for_xj = (a[..., None, :] + b[..., None, :, :]).flatten(-2)  # (B, n, d, h, w, x j)
    for_yj = c[..., None, :, :].expand(-1, -1, -1, -1, grid, -1, -1).flatten(-2)
    parts = [for_xj.flatten(2, 4), for_yj.flatten(2, 4)]
    return parts if padding is None else [*parts, padding.flatten(2)[..., None]]
