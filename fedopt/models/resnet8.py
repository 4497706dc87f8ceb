"""ResNet-8 for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt.models._options import Count, Norm, sizes
from fedopt.models._residual import convolution, normalisation, stages
from fedopt.registry import declare


@declare(reference="He et al. 2016, Deep Residual Learning, section 4.2, n = 1; Hsieh et al. 2020 (group norm)")
class resnet8(nn.Module):
    """A 3x3 stem, three stages of one block with `width`, 2 `width` and 4 `width` channels, and a linear layer.

    78,042 parameters for 3 channels, 10 classes and the width 16.

    inputs: [channels, height, width]. norm, groups, width: as for `resnet18`.

    *Differences from the paper:* shortcuts that change the number of channels are 1x1 convolutions.
    """

    def __init__(
        self, *, inputs: tuple[int, ...], classes: int, norm: Norm = "group", groups: Count = 2, width: Count = 16
    ) -> None:
        super().__init__()
        channels, _, _ = sizes(inputs, "channels", "height", "width")
        self.stem = convolution(2, channels, width, 3)
        self.norm = normalisation(2, width, norm, groups)
        self.stages = stages(2, width, norm, groups, count=3, blocks_each=1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(-2, -1)))
        return logits
