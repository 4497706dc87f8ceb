"""Model replacement: an update so long that the mean becomes the attacker's model."""

from __future__ import annotations

import torch
from torch import Tensor

from fedopt.attacks.ipm import Positive
from fedopt.registry import declare


def consistent(scale: float | None, server_lr: float) -> None:
    """Raises ValueError for a server step size beside a scale that does not use it."""
    if scale is not None and server_lr != 1.0:
        raise ValueError(f"server_lr has no effect beside a scale; {scale = }, {server_lr = } were given")


def stretched(rows: Tensor, factor: float, bound: float | None) -> Tensor:
    """Each of `rows [b, d]` times `factor`, or times less where it would become longer than `bound`."""
    if bound is None:
        return factor * rows
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return (bound / lengths).clamp(max=factor).to(rows.dtype) * rows


@declare(
    reference="Bagdasaryan, Veit, Hua, Estrin, Shmatikov 2020, 'How To Backdoor Federated Learning', equation 3",
    knowledge="own",
    check=consistent,
    examples=({}, {"scale": 3.0}, {"server_lr": 0.5, "bound": 1.0}),
)
def model_replacement(
    own: Tensor,
    *,
    b: int,
    n: int,
    scale: Positive | None = None,
    server_lr: Positive = 1.0,
    bound: Positive | None = None,
) -> Tensor:
    """What each attacker would honestly send, boosted until the attackers alone decide the mean.

        sent_i = min(γ, bound / ‖own_i‖) · own_i,    γ = n / (b · server_lr)

    With the plain mean of n updates that add up to little without the attackers, and a server step of `server_lr`, the
    new model is the mean of the attackers' models. It is meant for attackers who train on other data than the rest,
    such as a backdoor's.

    own: the attackers' honest updates `[b, d]`.
    scale: γ in place of the formula.
    server_lr: step size of the server on the mean.
    bound: largest length of a row that is sent, against rules that look at norms.
    Returns `[b, d]`.

    Differences from the paper: one attacker there, b here who share the boost. There the server adds η / n times each
    update, with n the number of all clients, and γ = n / η; here it adds server_lr / n times each of the n updates of
    this exchange.
    """
    return stretched(own, n / (b * server_lr) if scale is None else scale, bound)
