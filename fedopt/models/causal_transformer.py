"""A small transformer that predicts the next token at every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt.models._options import Count, Probability, sizes
from fedopt.models.transformer import Block
from fedopt.registry import declare


@declare(
    reference="Radford et al. 2019, Language Models are Unsupervised Multitask Learners (GPT-2: pre-norm blocks, each"
    " position attends to itself and to those before)"
)
class causal_transformer(nn.Module):
    """Token and position embeddings, pre-norm blocks whose positions attend to those before, linear head.

    tokens [B, L] -> logits [B, L, classes], or [B, classes] after the last position

    inputs: [length]; shorter samples may be given later. dim: width, a multiple of `heads`. depth: number of blocks.
    dropout: after the embeddings and on every residual branch. last: only the last position is answered for.

    Differences from the paper: embeddings and head are not tied, and all residual branches start alike.
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
        last: bool = False,
    ) -> None:
        super().__init__()
        (length,) = sizes(inputs, "length")
        self.last = last
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.empty(length, dim))
        for weight in (self.tokens.weight, self.positions):
            nn.init.normal_(weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        before = torch.ones(1, length, length, dtype=torch.bool, device=tokens.device).tril()
        x = self.dropout(self.tokens(tokens) + self.positions[:length])
        for block in self.blocks:
            x = block(x, before)
        x = self.norm(x)
        logits: Tensor = self.head(x[:, -1] if self.last else x)
        return logits
