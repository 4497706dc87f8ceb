"""Labels from the sign of what a party is told."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedopt.types import FedoptError


class Signs(NamedTuple):
    """What an attack says of everybody."""

    label: Tensor
    """Class `[m]`, int64."""
    score: Tensor
    """How sure, by class `[m, c]`; of two classes with one output, of class 1 `[m]`."""


def sign(told: Tensor) -> Signs:
    """Direct label inference: the class whose entry is pushed up.

    told: gradients, multipliers or their changes `[K, m, c]`, in the order of the people, of K exchanges, the first K
    in which anything but zeros was told, say. What is told points along ∇l(z_j; t_j):

        one output     t = ±1, ∇l = -t σ(-t z) (logistic) or z - t (squares, early, while |z| < 1):  label by -sign
        c outputs      ∇l = softmax(z) - t has one negative entry, that of the class:                 argmin

    so that the gradient of a cross entropy gives every label in any one exchange. A multiplier follows the gradient
    of the loss, and its first value that is not 0 has the same sign. Exchanges are added up, by which noise is averaged
    out.

    Reference: Fu, Zhang, Ji, Chen, Wu, Guo, Zhou, Liu, Wang 2022, 'Label Inference Attacks Against Vertical Federated
    Learning', USENIX Security, the direct attack; Li, Sun, Yang, Gao, Zhang, Xie, Wang 2022, 'Label Leakage and
    Protection in Two-party Split Learning', ICLR, for two classes.

    Differences from the papers: multipliers of a saddle form, and sums over exchanges, are ours. Li et al. use norms
    and cosines of gradients by a cut layer that is wider than one output; here outputs are added and then the
    prediction, so a sign is enough.

    Raises FedoptError for messages of another shape.
    """
    if told.dim() != 3 or 0 in told.shape:
        raise FedoptError(f"messages `[exchanges, people, outputs]` are needed; {list(told.shape)} was given")
    score = -told.sum(dim=0)
    if told.shape[2] == 1:
        return Signs((score[:, 0] > 0).to(torch.int64), score[:, 0])
    return Signs(score.argmax(dim=1), score)
