"""The label owner's loss as a function of all outputs at once, in the scale of the saddle problem."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.vfl.losses import LOSSES, Loss, targets


class Owner(NamedTuple):
    """l(z) = k² Σ_j l(z_j / k; t_j) for flat `z [m c]`; k = 1/√m makes it a mean, k = 1 a sum over people.

    With z = k A x the smoothness of l is that of the loss of one person, whatever m is.
    """

    loss: Loss
    targets: Tensor
    """`[m, c]`"""
    k: float

    def value(self, z: Tensor) -> Tensor:
        """l(z), a scalar."""
        return self.k**2 * self.loss.each(self._people(z), self.targets).sum()

    def gradient(self, z: Tensor) -> Tensor:
        """∇l(z) `[m c]`."""
        return self.k * self.loss.gradient(self._people(z), self.targets).flatten()

    def prox(self, v: Tensor, gamma: float) -> Tensor:
        """argmin_z γ l(z) + ‖z - v‖² / 2. Raises ConfigError for a loss without one."""
        if self.loss.prox is None:
            raise ConfigError("strategy.form", f"'dual' needs a loss of single outputs; '{self.loss.name}' is none")
        return self.k * self.loss.prox(self._people(v), self.targets, gamma).flatten()

    def dual_prox(self, v: Tensor, gamma: float) -> Tensor:
        """argmin_y γ l*(y) + ‖y - v‖² / 2, by Moreau's identity v = prox_{γ l*}(v) + γ prox_{l/γ}(v/γ)."""
        return v - gamma * self.prox(v / gamma, 1.0 / gamma)

    def _people(self, z: Tensor) -> Tensor:
        return z.reshape(self.targets.shape) / self.k


_targets = lru_cache(maxsize=8)(targets)
"""Made once for the same tensor of labels, since an owner is asked for in every exchange."""


def owner(problem: Problem, loss: str, normalise: bool) -> Owner:
    """The owner of the labels in `problem.data.server["train"]`.

    Raises ConfigError where the server holds no labels.
    """
    data = problem.data
    if "train" not in data.server:
        raise ConfigError("data", "the label owner is without labels; a vertical federation has them at the server")
    t = _targets(loss, data.server["train"].y, data.classes, data.task, problem.dtype)
    return Owner(LOSSES[loss], t, 1.0 / math.sqrt(t.shape[0]) if normalise else 1.0)
