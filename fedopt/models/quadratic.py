"""A quadratic function whose parameters are its variables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt.registry import declare


class Quadratic(nn.Module):
    """w ↦ wᵀ A w / 2 - bᵀ w for samples [A | b]."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[..., :-1], x[..., -1]
        curved = (a @ self.w) @ self.w
        return (0.5 * curved - b @ self.w)[..., None]


@declare(reference="Nesterov 2004, Introductory Lectures on Convex Optimization, section 2.1.4, for their use as tests")
def quadratic(*, inputs: tuple[int, ...], classes: int) -> nn.Module:
    """f(w) = wᵀ A w / 2 - bᵀ w, started at w = 0; a sample is [A | b], `[d, d + 1]`, and the output is the loss itself.

    With `model.loss = "value"`, for data such as `quadratics`, on which optimisation methods are compared.

    Raises ValueError for samples of another shape.
    """
    if len(inputs) != 2 or inputs[1] != inputs[0] + 1 or classes != 1:
        raise ValueError(f"samples of shape [d, d + 1] and no classes are needed, {list(inputs)} and {classes} given")
    return Quadratic(inputs[0])
