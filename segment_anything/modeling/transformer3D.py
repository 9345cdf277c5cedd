"""The two-way transformer of SAM (arXiv:2304.02643): prompts and image attend to each other.

Tokens are (B, T, C) here, T = g^3 for the image. Names follow SAM: queries are the prompt and
output tokens, keys the image tokens, and ``*_pe`` their positions.
"""

import math

import torch
from torch import Tensor, nn

from segment_anything.modeling.common import MLPBlock


class Attention(nn.Module):
    """Multi-head attention that may run at a fraction of the token width."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner_dim = dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(dim, inner_dim)
        self.v_proj = nn.Linear(dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from (B, Q, C) to (B, K, C); return (B, Q, C)."""
        projected = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = (tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for tokens in projected)
        query, key, value = heads
        # Written out in the released order of operations. With few tokens that costs nothing, and
        # with logits of several hundred a fused kernel's rounding errors grow a thousandfold.
        logits = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        out = torch.softmax(logits, dim=-1) @ value
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TwoWayAttentionBlock3D(nn.Module):
    """Self-attention of the queries, queries to image, MLP, image to queries."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)
        self.first = first

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the updated queries (B, T, C) and keys (B, g^3, C)."""
        if self.first:  # the first queries equal their positions: add neither these nor a residual
            queries = self.self_attn(queries, queries, queries)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries)
        queries = self.norm1(queries)

        k = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(k, queries + query_pe, queries))
        return queries, keys


class TwoWayTransformer3D(nn.Module):
    """``depth`` two-way blocks, then a last attention of the queries to the image."""

    def __init__(self, depth: int, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock3D(dim, num_heads, mlp_dim, first=index == 0)
            for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Let prompts and image attend to each other.

        Args:
            image_embedding: (B, C, D, H, W).
            image_pe: (1 or B, C, D, H, W).
            point_embedding: (B, T, C), the queries and their positions at once.

        Returns:
            Queries (B, T, C) and image tokens (B, D H W, C).
        """
        keys, key_pe = (grid.flatten(2).transpose(1, 2) for grid in (image_embedding, image_pe))
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries, keys, query_pe=point_embedding, key_pe=key_pe)
        attended = self.final_attn_token_to_image(queries + point_embedding, keys + key_pe, keys)
        return self.norm_final_attn(queries + attended), keys
