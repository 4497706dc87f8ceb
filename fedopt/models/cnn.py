"""The small CNN that federated frameworks are compared on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedopt.models._options import Probability, sizes
from fedopt.registry import declare


@declare(reference="Reddi et al. 2021, Adaptive Federated Optimization, the model for EMNIST character recognition")
class cnn(nn.Module):
    """Two unpadded 3x3 convolutions of 32 and 64 channels, 2x2 max pooling, 128 hidden units.

    conv 32 → relu → conv 64 → relu → maxpool 2 → dropout → linear 128 → relu → dropout → linear

    1,626,442 parameters for samples of 3 x 32 x 32 and 10 classes.

    inputs: [channels, height, width], from 6 x 6 on. dropout: probabilities of the two dropouts, off at first.
    """

    def __init__(
        self, *, inputs: tuple[int, ...], classes: int, dropout: tuple[Probability, Probability] = (0.0, 0.0)
    ) -> None:
        super().__init__()
        channels, height, width = sizes(inputs, "channels", "height", "width", least=6)
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(dropout[0])
        self.hidden = nn.Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.dropout2 = nn.Dropout(dropout[1])
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        logits: Tensor = self.head(self.dropout2(torch.relu(self.hidden(x))))
        return logits
