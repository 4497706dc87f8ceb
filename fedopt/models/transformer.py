"""A small transformer that classifies texts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedopt.models._options import Count, Probability, sizes
from fedopt.registry import declare


class Attention(nn.Module):
    """Multi-head self-attention softmax(Q Kᵀ / √k) V in plain products, so that it stacks under vmap.

    x [B, L, dim], heard [B or 1, 1 or L, L] (whether a position attends to another) -> [B, L, dim]
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a dim that heads = {heads} divides is needed; dim = {dim} was given")
        self.heads = heads
        # without bias: softmax takes that of the keys away again, and its gradient would be rounding alone
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, heard: Tensor) -> Tensor:
        b, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(b, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) / math.sqrt(dim // self.heads)
        # a finite lowest value: a sample of nothing but padding must not give NaN
        scores = scores.masked_fill(~heard[:, None], torch.finfo(scores.dtype).min)
        mixed = torch.softmax(scores, dim=-1) @ v
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(b, length, dim))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.dropout1 = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor, heard: Tensor) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x), heard))
        y: Tensor = x + self.dropout2(self.mlp(self.norm2(x)))
        return y


@declare(reference="Vaswani et al. 2017, Attention Is All You Need; Xiong et al. 2020, figure 1b (pre-norm)")
class transformer(nn.Module):
    """Token and position embeddings, pre-norm blocks, mean over the positions that are not padding, linear head.

    tokens [B, L] -> logits [B, classes]; token 0 is padding

    inputs: [length]; shorter samples may be given later. dim: width, a multiple of `heads`. depth: number of blocks.
    dropout: after the embeddings and on every residual branch.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        classes: int,
        vocabulary: int,
        dim: Count = 64,
        depth: Count = 2,
        heads: Count = 4,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        (length,) = sizes(inputs, "length")
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.empty(length, dim))
        for weight in (self.tokens.weight, self.positions):
            nn.init.normal_(weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        x = self.dropout(self.tokens(tokens) + self.positions[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, real[:, None, :])
        share = real.to(x.dtype) / real.sum(dim=1, keepdim=True).clamp(min=1)
        logits: Tensor = self.head((self.norm(x) * share[:, :, None]).sum(dim=1))
        return logits
