"""A small CNN over signals."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedopt.models._options import Count, sizes
from fedopt.registry import declare


@declare(reference="Kiranyaz et al. 2016, Real-Time Patient-Specific ECG Classification by 1-D CNNs (its layout)")
class cnn1d(nn.Module):
    """Three convolutions of kernel 7 along time, each normalised and pooled by 2, and the mean over time.

    (conv → group norm → relu → maxpool 2) x 3 → mean → linear, with width, 2 width and 4 width channels

    inputs: [leads, length], from a length of 8 on. groups: of each group normalisation; has to divide width.

    *Differences from the paper*: group normalisation, ReLU, and a mean over time in place of a hidden layer.
    """

    def __init__(self, *, inputs: tuple[int, ...], classes: int, width: Count = 16, groups: Count = 4) -> None:
        super().__init__()
        leads, _ = sizes(inputs, "leads", "length", least=8)
        if width % groups:
            raise ValueError(f"a width that groups = {groups} divides is needed; width = {width} was given")
        channels = (leads, width, 2 * width, 4 * width)
        pairs = list(pairwise(channels))
        # without bias: the norm takes a constant away again, and its gradient would be rounding alone
        self.convs = nn.ModuleList(nn.Conv1d(inward, outward, 7, padding=3, bias=False) for inward, outward in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, outward) for _, outward in pairs)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool1d(torch.relu(norm(conv(x))), 2)
        logits: Tensor = self.head(x.mean(dim=-1))
        return logits
