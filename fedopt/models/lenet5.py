"""LeNet-5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedopt.models._options import sizes
from fedopt.registry import declare


@declare(reference="LeCun et al. 1998, Gradient-based learning applied to document recognition, section II.B")
class lenet5(nn.Module):
    """Two 5x5 convolutions of 6 and 16 channels with pooling, then 120 and 84 hidden units.

    61,706 parameters for one channel of 28 x 28 or 32 x 32 and 10 classes.

    inputs: [channels, height, width] from 12 x 12 on; below 32 x 32 the first convolution is padded by 2.

    *Differences from the paper*: ReLU and max pooling in place of tanh and weighted averages, every map of the second
    convolution sees all maps of the first, and the output is linear.
    """

    def __init__(self, *, inputs: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, *extent = sizes(inputs, "channels", "height", "width", least=12)
        padding = 2 if min(extent) < 32 else 0
        height, width = (((size + 2 * padding - 4) // 2 - 4) // 2 for size in extent)
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.hidden1 = nn.Linear(16 * height * width, 120)
        self.hidden2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
        logits: Tensor = self.head(torch.relu(self.hidden2(torch.relu(self.hidden1(x)))))
        return logits
