"""The synthetic federation of the FedProx paper."""

from __future__ import annotations

from typing import Annotated

import pydantic
import torch

from fedopt.data._values import Dataset
from fedopt.keys import fold, normal, root
from fedopt.registry import ConfigError, declare

Positive = Annotated[int, pydantic.Field(ge=1)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]


@declare(reference="Li et al. 2020, Federated optimization in heterogeneous networks (FedProx), section 5.1")
def synthetic(
    *,
    alpha: NonNegative = 0.0,
    beta: NonNegative = 0.0,
    iid: bool = False,
    devices: Positive = 30,
    features: Positive = 60,
    classes: Positive = 10,
    min_samples: Positive = 50,
    log_mean: float = 4.0,
    log_deviation: NonNegative = 2.0,
    seed: int = 0,
) -> Dataset:
    """Synthetic(α, β): every device has its own linear model and its own inputs; x `[S, features]`, y `[S]`.

    Device k: y = argmax(W_k x + b_k), W_k ~ N(u_k, 1), b_k ~ N(u_k, 1), u_k ~ N(0, α);
    x ~ N(v_k, Σ), Σ_jj = j^-1.2, v_k ~ N(B_k, 1), B_k ~ N(0, β). Devices are the natural groups.

    alpha: variance of u_k. It is one number for all classes and cancels in the argmax, so that α does not change the
        labels; the models differ by their own draws of W_k and b_k.
    beta: how much their inputs differ, a variance.
    iid: one W, b ~ N(0, 1) for all and x ~ N(0, Σ); alpha and beta have no meaning then.
    devices, features, classes: 30, 60 and 10 in the paper.
    min_samples, log_mean, log_deviation: device k has min_samples + exp(N(log_mean, log_deviation²)) samples.
    seed: which of the data sets of this kind.

    Raises ConfigError if iid is asked for together with alpha or beta.

    *Differences from the paper:* the paper gives no formula for the samples per device ("a power law"); the defaults
    are those of the authors' program. That program takes α and β as standard deviations, here they are variances, as in
    the text: the same for 0 and 1.
    """
    if iid and (alpha or beta):
        given = "alpha" if alpha else "beta"
        raise ConfigError(
            f"data.{given}", f"{alpha or beta} was given with data.iid = true, which has neither; drop one"
        )
    key = fold(root(seed), "synthetic")
    spread = torch.arange(1, features + 1, dtype=torch.float32) ** -0.6  # root of the variance j^-1.2
    drawn = torch.exp(log_mean + log_deviation * normal(fold(key, "sizes"), devices, dtype=torch.float64))
    sizes = min_samples + drawn.to(torch.int64)
    xs, ys = [], []
    for k, size in enumerate(sizes.tolist()):
        own = fold(key, k)
        model = fold(key, "model") if iid else fold(own, "model")
        u = torch.zeros(()) if iid else alpha**0.5 * normal(fold(own, "u"))
        weight = u + normal(fold(model, "W"), classes, features)
        bias = u + normal(fold(model, "b"), classes)
        centre = torch.zeros(features)
        if not iid:
            centre = beta**0.5 * normal(fold(own, "B")) + normal(fold(own, "v"), features)
        x = centre + spread * normal(fold(own, "x"), size, features)
        xs.append(x)
        ys.append((x @ weight.T + bias).argmax(1))
    return Dataset(
        torch.cat(xs),
        torch.cat(ys),
        tuple(str(c) for c in range(classes)),
        torch.repeat_interleave(sizes),
        tuple(f"device {k}" for k in range(devices)),
    )
