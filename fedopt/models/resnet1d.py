"""ResNet-18 over signals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedopt.models._options import Count, Norm, sizes
from fedopt.models._residual import convolution, normalisation, stages
from fedopt.registry import declare


@declare(reference="Strodthoff et al. 2021, Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL")
class resnet1d(nn.Module):
    """ResNet1d-18 for electrocardiograms: ResNet-18 along time, mean and maximum over time joined before the head.

    inputs: [leads, length]. norm: `group`, or `batch`, which shares statistics between samples, has buffers and
    cannot be stacked over clients. groups: of each group normalisation; has to divide width. width: channels of the
    first stage.

    *Differences from the paper*: basic blocks of kernel 3 and a stem of kernel 7, as in ResNet-18 for images; group
    normalisation at first.
    """

    def __init__(
        self, *, inputs: tuple[int, ...], classes: int, norm: Norm = "group", groups: Count = 2, width: Count = 64
    ) -> None:
        super().__init__()
        leads, _ = sizes(inputs, "leads", "length")
        self.stem = convolution(1, leads, width, 7, 2)
        self.norm = normalisation(1, width, norm, groups)
        self.stages = stages(1, width, norm, groups)
        self.head = nn.Linear(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(torch.relu(self.norm(self.stem(x))), 3, stride=2, padding=1)
        x = self.stages(x)
        logits: Tensor = self.head(torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=-1))
        return logits
