"""ResNet-18 for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt.models._options import Count, Norm, sizes
from fedopt.models._residual import convolution, normalisation, stages
from fedopt.registry import declare


@declare(reference="He et al. 2016, Deep Residual Learning, table 1; Hsieh et al. 2020 (group normalisation)")
class resnet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no pooling before the stages, as is usual for images of 32 x 32.

    11,173,962 parameters for 3 channels, 10 classes and the width 64.

    inputs: [channels, height, width]. norm: `group`, or `batch`, which shares statistics between samples, has buffers
    and cannot be stacked over clients. groups: of each group normalisation; has to divide width. width: channels of
    the first stage.
    """

    def __init__(
        self, *, inputs: tuple[int, ...], classes: int, norm: Norm = "group", groups: Count = 2, width: Count = 64
    ) -> None:
        super().__init__()
        channels, _, _ = sizes(inputs, "channels", "height", "width")
        self.stem = convolution(2, channels, width, 3)
        self.norm = normalisation(2, width, norm, groups)
        self.stages = stages(2, width, norm, groups)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(-2, -1)))
        return logits
