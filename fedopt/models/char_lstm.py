"""A recurrent network that predicts the next character."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedopt.models._options import Count, sizes
from fedopt.registry import declare


class LSTM(nn.Module):
    """One layer of `torch.nn.LSTM` (same parameters, batch first) as a scan that stacks under vmap.

    x [B, L, inward] -> h [B, L, hidden]
    """

    def __init__(self, inward: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inward))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        # the inputs of all positions in one product; only the recurrent half has to wait for the position before
        inputs = F.linear(x, self.weight_ih, self.bias_ih + self.bias_hh)
        h = c = torch.zeros_like(inputs[:, 0, : self.weight_hh.shape[1]])
        outputs = []
        for position in inputs.unbind(dim=1):
            i, f, g, o = (position + h @ self.weight_hh.T).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


@declare(reference="McMahan et al. 2017, Communication-Efficient Learning, section 3 (the Shakespeare LSTM)")
class char_lstm(nn.Module):
    """Embedding, LSTM layers and a linear head: logits for the character after each position.

    tokens [B, L] -> logits [B, L, classes], or [B, classes] with `last`

    inputs: [length]. embedding: size of a character's vector. hidden: units of each of the `layers` LSTM layers.
    last: only the character after the last position is predicted.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        classes: int,
        vocabulary: int,
        embedding: Count = 8,
        hidden: Count = 256,
        layers: Count = 2,
        last: bool = False,
    ) -> None:
        super().__init__()
        sizes(inputs, "length")
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(LSTM(embedding if layer == 0 else hidden, hidden) for layer in range(layers))
        self.head = nn.Linear(hidden, classes)
        self.last = last

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x[:, -1] if self.last else x)
        return logits
