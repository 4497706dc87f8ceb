"""Quadratic functions of given similarity, one a client."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from fedopt.data._values import Federation, Shards, Split
from fedopt.keys import fold, normal, root
from fedopt.registry import declare

Positive = Annotated[float, pydantic.Field(gt=0)]
Count = Annotated[int, pydantic.Field(ge=1)]


@declare(
    reference="Bylinkin et al. 2026, 'Accelerated Methods with Complexity Separation Under Data Similarity for"
    " Federated Learning Problems', arXiv 2601.08614, for the two groups; Khaled, Jin 2023, arXiv 2209.02257,"
    " section 6, for quadratics of given similarity"
)
def quadratics(
    *,
    kind: Literal["nodes", "groups"] = "nodes",
    d: Count = 30,
    nodes: Count = 20,
    mu: Positive = 0.1,
    smooth: Positive = 100.0,
    delta: Positive = 2.0,
    delta_f: Positive = 0.5,
    delta_g: Positive = 8.0,
    seed: int = 0,
) -> Federation:
    """f_m(w) = wᵀ A_m w / 2 - b_mᵀ w; a client holds the one sample [A_m | b_m]. For the model `quadratic`.

    H has eigenvalues spaced evenly in the logarithm, in a random basis.

    kind: `nodes`: A_m = H + P_m, P_m random symmetric of norm `delta`, then centred, b_m ~ 5 N(0, I); the server holds
        the sample of client 0. `groups`: two clients, f with Hessian H/2 and g with H/2 and linear terms of their own;
        the server holds f_1 and g_1, the same plus random symmetric matrices of norms `delta_f` and `delta_g`.
    mu, smooth, delta, delta_f, delta_g: the least and the largest eigenvalue of H, and norms of what is added to it.
    d, nodes: dimension, and how many clients there are of `nodes`.
    seed: which of the instances.

    A client may be no convex function; their sum is.
    """
    key = fold(root(seed), "quadratics")
    basis = torch.linalg.qr(normal(fold(key, "basis"), d, d, dtype=torch.float64))[0]
    values = torch.logspace(_log10(mu), _log10(smooth), d, dtype=torch.float64) if d > 1 else torch.tensor([mu])
    hessian = (basis * values) @ basis.T
    if kind == "nodes":
        noise = torch.stack([delta * _symmetric(fold(key, "P", m), d) for m in range(nodes)])
        a = hessian + noise - noise.mean(dim=0)
        b = 5.0 * normal(fold(key, "b"), nodes, d, dtype=torch.float64)
        samples = torch.cat([a, b[:, :, None]], dim=2)
        server = {"trial": _split(samples[:1])}
    else:
        b = 5.0 * normal(fold(key, "b"), 2, d, dtype=torch.float64)
        samples = torch.cat([torch.stack([hessian, hessian]) / 2.0, b[:, :, None]], dim=2)
        own = samples.clone()
        for i, size in enumerate((delta_f, delta_g)):
            own[i, :, :d] += size * _symmetric(fold(key, "server", i), d)
        server = {"trial": _split(own[:1]), "rare": _split(own[1:])}
    count = samples.shape[0]
    shards = Shards(samples, torch.arange(count), torch.zeros(count, dtype=torch.float64), torch.arange(count + 1))
    names = tuple(f"node {m}" for m in range(count)) if kind == "nodes" else ("f", "g")
    return Federation({"train": shards}, server, ("value",), names, "regression")


def _log10(value: float) -> float:
    return float(torch.log10(torch.tensor(value, dtype=torch.float64)))


def _symmetric(key: Tensor, d: int) -> Tensor:
    """A random symmetric matrix of norm 1."""
    drawn = normal(key, d, d, dtype=torch.float64)
    drawn = drawn + drawn.T
    unit: Tensor = drawn / torch.linalg.matrix_norm(drawn, 2)
    return unit


def _split(samples: Tensor) -> Split:
    return Split(samples, torch.zeros(samples.shape[0], dtype=torch.float64))
