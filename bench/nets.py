"""The networks of the tasks, in torch alone, so that every arm trains the very same class without fedopt at hand.

The parameters are those of the networks of the same name in `fedopt.models`; a test compares names, shapes, outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(inputs: tuple[int, ...], classes: int, hidden: int = 64) -> nn.Module:
    """One hidden layer on the flattened sample."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(inputs), hidden), nn.ReLU(), nn.Linear(hidden, classes))


class cnn(nn.Module):
    """conv 32, conv 64, maxpool, 128 hidden units: 1,626,442 parameters on samples of 3 x 32 x 32."""

    def __init__(self, inputs: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = inputs
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.hidden = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        logits: Tensor = self.head(torch.relu(self.hidden(F.max_pool2d(x, 2).flatten(1))))
        return logits


class _Block(nn.Module):
    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inward, outward, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(2, outward)
        self.conv2 = nn.Conv1d(outward, outward, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(2, outward)
        self.shortcut = nn.Sequential()
        if stride != 1 or inward != outward:
            self.shortcut = nn.Sequential(nn.Conv1d(inward, outward, 1, stride, bias=False), nn.GroupNorm(2, outward))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class resnet1d(nn.Module):
    """ResNet-18 over signals with group normalisation, mean and maximum over time before the head."""

    def __init__(self, inputs: tuple[int, ...], classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv1d(inputs[0], width, 7, 2, padding=3, bias=False)
        self.norm = nn.GroupNorm(2, width)
        blocks, inward = [], width
        for stage in range(4):
            outward = width * 2**stage
            for stride in (1 if stage == 0 else 2, 1):
                blocks.append(_Block(inward, outward, stride))
                inward = outward
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * inward, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.max_pool1d(torch.relu(self.norm(self.stem(x))), 3, stride=2, padding=1))
        logits: Tensor = self.head(torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=-1))
        return logits


class _Scan(nn.Module):
    """A layer of `nn.LSTM` (same parameters, batch first) as a scan over positions, which vmap can stack."""

    def __init__(self, inward: int, hidden: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inward))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        inputs = F.linear(x, self.weight_ih, self.bias_ih + self.bias_hh)
        h = c = torch.zeros_like(inputs[:, 0, : self.weight_hh.shape[1]])
        outputs = []
        for position in inputs.unbind(dim=1):
            i, f, g, o = (position + h @ self.weight_hh.T).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class char_lstm(nn.Module):
    """Embedding, one LSTM layer, logits for the character after each position.

    `fused` takes torch.nn.LSTM in place of the scan: the same function, which vmap cannot stack.
    """

    def __init__(
        self, inputs: tuple[int, ...], classes: int, hidden: int = 128, embedding: int = 8, fused: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embedding)
        layer = nn.LSTM(embedding, hidden, batch_first=True) if fused else _Scan(embedding, hidden)
        self.layers = nn.ModuleList([layer])
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers[0](self.embedding(tokens))
        logits: Tensor = self.head(x[0] if isinstance(x, tuple) else x)
        return logits


NETS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet1d": resnet1d, "char_lstm": char_lstm}


def fused_names(names: list[str]) -> list[str]:
    """The parameter names of the scan under which `torch.nn.LSTM` keeps the same values."""
    return [name + "_l0" if name.startswith("layers.") else name for name in names]


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy over the last dimension, mean over everything else."""
    return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1))
