"""The residual block of ResNet-18, over signals and over images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt.models._options import Norm

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def convolution(axes: int, inward: int, outward: int, kernel: int, stride: int = 1) -> nn.Module:
    """A convolution without bias over 1 or 2 axes, padded so that stride 1 keeps the size; He et al. 2015 start."""
    made = _CONVOLUTIONS[axes](inward, outward, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def normalisation(axes: int, channels: int, norm: Norm, groups: int) -> nn.Module:
    """Group or batch normalisation of `channels` channels."""
    if norm == "batch":
        return _BATCH_NORMS[axes](channels)
    if channels % groups:
        raise ValueError(f"a width that groups = {groups} divides is needed; a layer of {channels} channels was given")
    return nn.GroupNorm(groups, channels)


class BasicBlock(nn.Module):
    """Two 3-wide convolutions with a shortcut: relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, axes: int, inward: int, outward: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        self.conv1 = convolution(axes, inward, outward, 3, stride)
        self.norm1 = normalisation(axes, outward, norm, groups)
        self.conv2 = convolution(axes, outward, outward, 3)
        self.norm2 = normalisation(axes, outward, norm, groups)
        self.shortcut = nn.Sequential()
        if stride != 1 or inward != outward:
            self.shortcut = nn.Sequential(
                convolution(axes, inward, outward, 1, stride), normalisation(axes, outward, norm, groups)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def stages(axes: int, width: int, norm: Norm, groups: int, count: int = 4, blocks_each: int = 2) -> nn.Sequential:
    """Stages of some blocks each, twice as many channels in each, halving from the second on; as in ResNet-18."""
    blocks = []
    inward = width
    for stage in range(count):
        outward = width * 2**stage
        for stride in (1 if stage == 0 else 2, *[1] * (blocks_each - 1)):
            blocks.append(BasicBlock(axes, inward, outward, stride, norm, groups))
            inward = outward
    return nn.Sequential(*blocks)
