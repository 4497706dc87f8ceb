"""Factors of layers: what they are, and K-FAC by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedopt import keys, models, optimizers
from fedopt.capture import Capture, layered
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.optimizers import as_torch, build
from fedopt.problem import Problem
from fedopt.programs import layers_of
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import Batches, Client, FedoptError

KFAC = {"lr": 0.5, "statistics": "layers", "beta1": 0.0, "beta": 0.9, "eps": 1e-3, "every": 1}
VECTORS = {"name": "sgd", "lr": 0.5}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def problem() -> Problem:
    return small_problem(small_federation((6, 9, 7)), network())


def test_the_factors_make_up_the_gradient() -> None:
    """With a row of padding that says nothing."""
    of = problem()
    optimizer = build("kfac", {**KFAC, "vectors": VECTORS})
    step = layers_of(of, optimizer)
    assert step is not None and layers_of(of, build("sgd", {"lr": 0.1})) is None
    shards = of.data.splits["train"]
    x, y = shards.x[shards.index[:6]], shards.y[:6]
    mask = torch.tensor([True, True, True, True, True, False])
    params, buffers = of.unpack(of.initial)
    client = Client({}, {}, {}, keys.root(1), torch.tensor(6))
    batch = {"x": x, "y": y, "mask": mask}
    grads, loss, _, factors = step(client, params, buffers, batch, torch.tensor(0))
    wanted, _ = torch.func.grad(of.objective, has_aux=True)(params, buffers, batch, keys.root(1))
    assert set(factors) == {"0.weight", "2.weight"} and float(loss) > 0
    for name, each in factors.items():
        assert float(each.rows) == 5.0
        torch.testing.assert_close(grads[name], wanted[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(each.slopes.T @ each.inputs, wanted[name], rtol=0, atol=1e-12)
    torch.testing.assert_close(factors["0.weight"].inputs[:5], x[:5], rtol=0, atol=0)


def test_positions_are_rows() -> None:
    module = nn.Linear(3, 2).double()
    capture = Capture(module)
    x = torch.randn(4, 6, 3, dtype=torch.float64)

    def objective(module: nn.Module, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(module, params, (x,)).square().mean(), x

    params = {name: t.detach() for name, t in module.named_parameters()}
    grads, _, _, factors = layered(capture, objective, params, torch.ones(4), {"": (6, 2)})
    assert factors == {} and set(grads) == {"weight", "bias"}  # a bare layer has no name of its own
    whole = nn.Sequential(module)
    params = {f"0.{name}": t for name, t in params.items()}
    _, _, _, factors = layered(Capture(whole), objective, params, torch.ones(4), {"0": (6, 2)})
    assert factors["0.weight"].inputs.shape == (24, 3) and float(factors["0.weight"].rows) == 24


def test_a_layer_that_is_used_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.layer(self.layer(x)))
            return y

    of = small_problem(small_federation((6,)), Twice().double())
    with pytest.raises(FedoptError, match="layer 'layer' is used more than once"):
        layers_of(of, build("kfac", KFAC))


def root(a: np.ndarray, eps: float) -> np.ndarray:
    return np.linalg.inv(a + eps * np.linalg.eigvalsh(a)[-1] * np.eye(len(a)))


def by_hand(x: np.ndarray, y: np.ndarray, steps: int) -> list[np.ndarray]:
    """K-FAC of the two layers with tanh between, all in numpy."""
    first = network()
    w1, b1, w2, b2 = (t.detach().numpy().copy() for t in first.parameters())
    n, sides = len(y), {}
    for t in range(1, steps + 1):
        hidden = np.tanh(x @ w1.T + b1)
        z = hidden @ w2.T + b2
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(n), y] -= 1.0
        s2 = p / n
        s1 = (s2 @ w2) * (1 - hidden**2)
        new = []
        for layer, (s, inputs) in enumerate(((s1, x), (s2, hidden))):
            a, b = sides.get(layer, (0.0, 0.0))
            a, b = 0.9 * a + 0.1 * n * s.T @ s, 0.9 * b + 0.1 * inputs.T @ inputs / n
            sides[layer] = (a, b)
            whole = 1 - 0.9**t
            new.append(root(a / whole, 1e-3) @ (s.T @ inputs) @ root(b / whole, 1e-3))
        w1, b1 = w1 - 0.5 * new[0], b1 - 0.5 * s1.sum(0)
        w2, b2 = w2 - 0.5 * new[1], b2 - 0.5 * s2.sum(0)
    return [w1, b1, w2, b2]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (20,), generator=generator)


def test_the_facade_is_the_one_by_hand() -> None:
    x, y = data()
    module = network()
    optimizer = as_torch(module.parameters(), build("kfac", {**KFAC, "lr": 0.5, "vectors": VECTORS}), module)
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    for got, wanted in zip(module.parameters(), by_hand(x.numpy(), y.numpy(), 6), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=0, atol=1e-8)


def test_the_facade_needs_the_module() -> None:
    module = network()
    with pytest.raises(FedoptError, match=r"as_torch\(params, optimizer, module\) is needed"):
        as_torch(module.parameters(), build("kfac", KFAC))


@pytest.mark.parametrize("name", ["mlp", "causal_transformer"])
def test_clients_alone_and_stacked(name: str) -> None:
    given: Any = {"optimizer": optimizers.build("kfac", {**KFAC, "lr": 0.1, "vectors": VECTORS})}
    if name == "mlp":
        of = problem()
    else:
        data = small_federation((6, 9, 7), inputs=(5,), vocabulary=6)
        options = {"dim": 4, "heads": 2, "depth": 1, "last": True}
        module = models.build(
            name, options, inputs=(5,), classes=3, vocabulary=6, key=keys.root(0), dtype=torch.float64
        )
        of = small_problem(data, module)
    made = compose("fedavg", batches=Batches(size=4), **given)
    executor = Stacked()
    stacked, serial = play(of, made, 3, executor=executor), play(of, made, 3, executor=Serial())
    assert not executor.refused and stacked.params is not None and serial.params is not None
    torch.testing.assert_close(stacked.params, serial.params, rtol=1e-7, atol=1e-8)
    assert float((serial.params - of.initial["params"]).norm()) > 1e-2
