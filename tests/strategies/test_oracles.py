"""Every strategy against the paper's algorithm in plain NumPy loops with gradients derived by hand.

Six ragged clients, three of them per round, batches smaller than their data. Only the federation's data, the ids of a
round's clients, and the order in which a client walks over its data are taken from fedopt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedopt import keys
from fedopt.data import draw, pool
from fedopt.engine.loop import Executor
from fedopt.engine.serial import Serial
from fedopt.engine.stacked import Stacked
from fedopt.models import build
from fedopt.optimizers.adagrad import adagrad
from fedopt.optimizers.adam import adam
from fedopt.optimizers.sgd import sgd
from fedopt.optimizers.yogi import yogi
from fedopt.participation import selection
from fedopt.testing.strategies import Played, compose, play, small_federation, small_problem
from fedopt.types import Batches

Array = npt.NDArray[np.float64]
Sample = tuple[Array, npt.NDArray[np.int64]]

SIZES = (7, 12, 5, 9, 11, 4)
LR = 0.15
SEED = 4
ROUNDS = 3
BATCHES = Batches(size=4, epochs=2)
THREE = selection(count=3)


@pytest.fixture(params=[Serial, Stacked], ids=["serial", "stacked"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made: Executor = request.param()
    yield made
    assert not made.plan().get("refused"), "it ran serially"


@pytest.fixture
def playing(executor: Executor) -> Callable[..., Played]:
    def run(name: str, *, pooled: bool = False, rounds: int = ROUNDS, **given: Any) -> Played:
        data = small_federation(SIZES)
        given = {"participation": THREE, "batches": BATCHES, "lr": LR, **given}
        strategy = compose(name, **given)
        return play(small_problem(pool(data) if pooled else data), strategy, rounds, executor=executor, seed=SEED)

    return run


def samples(played: Played, client: int) -> Sample:
    shards = played.problem.data.splits["train"]
    own = slice(int(shards.offsets[client]), int(shards.offsets[client + 1]))
    return shards.x[shards.index[own]].numpy(), shards.y[own].numpy()


def batches(played: Played, exchange: int, client: int, walk: Batches = BATCHES) -> list[Sample]:
    """What the client sees in this exchange, batch by batch."""
    x, y = samples(played, client)
    own = keys.fold(keys.root(SEED), "exchange", exchange, "client", client, "batches")
    size = torch.tensor([len(y)])
    at, real = draw(size, own[None], walk.size, walk.epochs, walk.steps, walk.shuffle)
    return [(x[i[m]], y[i[m]]) for i, m in zip(at[0].numpy(), real[0].numpy(), strict=True)]


def cohorts(played: Played) -> Iterator[tuple[int, list[int]]]:
    for step in played.steps:
        clients = step.replies.clients.tolist()
        assert len(clients) == 3
        yield step.number, clients


def gradient(w: Array, x: Array, y: npt.NDArray[np.int64]) -> Array:
    """Of the mean cross entropy of softmax(W x + b), w = (W row by row, b)."""
    classes = 3
    weight, bias = w[:-classes].reshape(classes, -1), w[-classes:]
    total = np.zeros_like(w)
    for sample, label in zip(x, y, strict=True):
        z = weight @ sample + bias
        p = np.exp(z - z.max())
        p /= p.sum()
        p[label] -= 1.0
        total += np.concatenate([np.outer(p, sample).ravel(), p])
    return total / len(y)


def cross_entropy(w: Array, x: Array, y: npt.NDArray[np.int64]) -> float:
    weight, bias = w[:-3].reshape(3, -1), w[-3:]
    z = [weight @ sample + bias for sample in x]
    return float(np.mean([np.log(np.exp(one).sum()) - one[label] for one, label in zip(z, y, strict=True)]))


def start(played: Played) -> Array:
    first: Array = played.problem.initial["params"].numpy().copy()
    return first


def agree(got: torch.Tensor | None, wanted: Array) -> None:
    assert got is not None
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-10)


def moved(wanted: Array, first: Array) -> None:
    """The oracle went somewhere: agreement of two runs that stand still says nothing."""
    assert np.linalg.norm(wanted - first) > 0.05


def descend(
    w: Array, walk: Sequence[Sample], velocity: Array, rho: float = 0.0, mu: float = 0.0
) -> tuple[Array, Array]:
    """SGD with momentum rho and a pull mu towards the start; velocity is changed by value."""
    centre = w.copy()
    w = w.copy()
    for x, y in walk:
        velocity = rho * velocity + gradient(w, x, y) + mu * (w - centre)
        w = w - LR * velocity
    return w, velocity


def averaged(deltas: Sequence[Array], weights: Sequence[float]) -> Array:
    total = np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total += weight / math.fsum(weights) * delta
    return total


def test_fedavg_with_momentum_that_travels(playing: Callable[..., Played]) -> None:
    played = playing("fedavg", optimizer=sgd(LR, momentum=0.9), optimizer_state="averaged")
    w = start(played)
    velocity = np.zeros_like(w)
    for exchange, clients in cohorts(played):
        answers = [descend(w, batches(played, exchange, i), velocity, 0.9) for i in clients]
        w = w + averaged([end - w for end, _ in answers], [SIZES[i] for i in clients])
        velocity = averaged([v for _, v in answers], [SIZES[i] for i in clients])
    moved(w, start(played))
    agree(played.params, w)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_fedavg(playing: Callable[..., Played], weighting: str, rho: float) -> None:
    played = playing("fedavg", optimizer=sgd(LR, momentum=rho), weighting=weighting)
    w = start(played)
    for exchange, clients in cohorts(played):
        deltas = [descend(w, batches(played, exchange, i), np.zeros_like(w), rho)[0] - w for i in clients]
        w = w + averaged(deltas, [SIZES[i] if weighting == "samples" else 1 for i in clients])
    moved(w, start(played))
    agree(played.params, w)


def test_fedavg_keeps_the_momentum_with_its_client(playing: Callable[..., Played]) -> None:
    played = playing("fedavg", optimizer=sgd(LR, momentum=0.9), optimizer_state="kept", rounds=5)
    w = start(played)
    velocity = {i: np.zeros_like(w) for i in range(len(SIZES))}
    seen: list[int] = []
    for exchange, clients in cohorts(played):
        deltas = []
        for i in clients:
            y, velocity[i] = descend(w, batches(played, exchange, i), velocity[i], 0.9)
            deltas.append(y - w)
        w = w + averaged(deltas, [SIZES[i] for i in clients])
        seen += clients
    assert len(set(seen)) < len(seen), "no client came twice, so nothing was kept"
    agree(played.params, w)


def test_fedavg_steps_exactly_so_many_batches(playing: Callable[..., Played]) -> None:
    walk = Batches(size=3, steps=7)
    played = playing("fedavg", batches=walk)
    w = start(played)
    for exchange, clients in cohorts(played):
        deltas = []
        for i in clients:
            seen = batches(played, exchange, i, walk)
            assert len(seen) == 7
            deltas.append(descend(w, seen, np.zeros_like(w))[0] - w)
        w = w + averaged(deltas, [SIZES[i] for i in clients])
    agree(played.params, w)


def test_fedavg_with_adam(playing: Callable[..., Played]) -> None:
    played = playing("fedavg", optimizer=adam(lr=0.02, beta1=0.8, beta2=0.95, eps=1e-6))
    w = start(played)
    for exchange, clients in cohorts(played):
        deltas = []
        for i in clients:
            y, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
            for t, (x, labels) in enumerate(batches(played, exchange, i), 1):
                g = gradient(y, x, labels)
                m = 0.8 * m + 0.2 * g
                v = 0.95 * v + 0.05 * g**2
                y = y - 0.02 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
            deltas.append(y - w)
        w = w + averaged(deltas, [SIZES[i] for i in clients])
    moved(w, start(played))
    agree(played.params, w)


@pytest.mark.parametrize(("rho", "kept"), [(0.0, False), (0.9, False), (0.9, True)])
def test_fedavg_of_a_network_with_torch_itself_at_the_clients(executor: Executor, rho: float, kept: bool) -> None:
    data = small_federation(SIZES)
    module = build(
        "mlp",
        {"hidden": [4], "activation": "tanh"},
        inputs=(5,),
        classes=3,
        vocabulary=None,
        key=keys.root(2),
        dtype=torch.float64,
    )
    state = "kept" if kept else "reset"
    strategy = compose(
        "fedavg", participation=THREE, batches=BATCHES, optimizer=sgd(LR, momentum=rho), optimizer_state=state
    )
    played = play(small_problem(data, module), strategy, ROUNDS, executor=executor, seed=SEED)
    params = list(module.parameters())
    server = [p.detach().clone() for p in params]
    optimizers: dict[int, torch.optim.SGD] = {}
    for exchange, clients in cohorts(played):
        deltas = []
        for i in clients:
            with torch.no_grad():
                for p, value in zip(params, server, strict=True):
                    p.copy_(value)
            if i not in optimizers or not kept:
                optimizers[i] = torch.optim.SGD(params, LR, momentum=rho)
            for x, y in batches(played, exchange, i):
                optimizers[i].zero_grad()
                torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
                optimizers[i].step()
            deltas.append([p.detach() - value for p, value in zip(params, server, strict=True)])
        n = sum(SIZES[i] for i in clients)
        for j, value in enumerate(server):
            for delta, i in zip(deltas, clients, strict=True):
                value += SIZES[i] / n * delta[j]
    agree(played.params, torch.cat([value.flatten() for value in server]).numpy())


def test_fedsgd(playing: Callable[..., Played]) -> None:
    # batches of 4 only bound the memory: the gradient is that of all of a client's data
    played = playing("fedsgd", server=sgd(0.5), batches=Batches(size=4))
    w = start(played)
    for _, clients in cohorts(played):
        n = sum(SIZES[i] for i in clients)
        direction = np.zeros_like(w)
        for i in clients:
            direction += SIZES[i] / n * gradient(w, *samples(played, i))
        w = w - 0.5 * direction
    moved(w, start(played))
    agree(played.params, w)


@pytest.mark.parametrize("mu", [0.0, 0.8])
def test_fedprox(playing: Callable[..., Played], mu: float) -> None:
    played = playing("fedprox", mu=mu)
    w = start(played)
    for exchange, clients in cohorts(played):
        deltas = [descend(w, batches(played, exchange, i), np.zeros_like(w), mu=mu)[0] - w for i in clients]
        w = w + averaged(deltas, [SIZES[i] for i in clients])
    agree(played.params, w)


@pytest.mark.parametrize("server_lr", [1.0, 0.6])
def test_scaffold(playing: Callable[..., Played], server_lr: float) -> None:
    """Algorithm 1 with option II, line by line."""
    played = playing("scaffold", server=sgd(server_lr), rounds=5)
    x = start(played)
    n, c = len(SIZES), np.zeros_like(x)
    c_of = {i: np.zeros_like(x) for i in range(n)}
    seen: list[int] = []
    for exchange, clients in cohorts(played):
        dx, dc = np.zeros_like(x), np.zeros_like(x)
        for i in clients:
            y = x.copy()
            walk = batches(played, exchange, i)
            for batch in walk:
                y = y - LR * (gradient(y, *batch) - c_of[i] + c)
            plus = c_of[i] - c + (x - y) / (len(walk) * LR)
            dx += (y - x) / len(clients)
            dc += (plus - c_of[i]) / len(clients)
            c_of[i] = plus
        x = x + server_lr * dx
        c = c + len(clients) / n * dc
        seen += clients
    assert len(set(seen)) < len(seen), "no client came twice, so no control variate was used again"
    moved(x, start(played))
    agree(played.params, x)
    agree(played.state.own["control"], c)
    everybody = played.memory.of(torch.arange(n))["control"]
    for i in range(n):
        agree(everybody[i], c_of[i])


@pytest.mark.parametrize(
    ("rho", "damp", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.0, 0.3, False), (0.5, 0.0, True)],
)
def test_fednova(playing: Callable[..., Played], rho: float, damp: float, nesterov: bool) -> None:
    """d_i = G_i a_i / ||a_i||_1 of section 4, from the gradients of the path and their coefficients one by one."""
    played = playing("fednova", optimizer=sgd(LR, momentum=rho, dampening=damp, nesterov=nesterov))
    w = start(played)
    unequal = set()
    for exchange, clients in cohorts(played):
        n = sum(SIZES[i] for i in clients)
        direction, tau_eff = np.zeros_like(w), 0.0
        for i in clients:
            walk = batches(played, exchange, i)
            y, gradients, tau = w.copy(), [], len(walk)
            a = np.zeros(tau)  # how often each gradient has been subtracted so far
            share = np.zeros(tau)  # how much of each is in the velocity
            for k, batch in enumerate(walk):
                gradients.append(gradient(y, *batch))
                share = rho * share
                share[k] += 1.0 if k == 0 or rho == 0.0 else 1.0 - damp
                step = share.copy()
                if nesterov:
                    step = rho * share
                    step[k] += 1.0
                a += step
                y = y - LR * sum(s * g for s, g in zip(step, gradients, strict=False))
            d = np.zeros_like(w)
            for coefficient, g in zip(a, gradients, strict=True):
                d += coefficient * g / a.sum()
            direction += SIZES[i] / n * d
            tau_eff += SIZES[i] / n * a.sum()
            unequal.add(tau)
        w = w - tau_eff * LR * direction
    assert len(unequal) > 1, "all clients took as many steps"
    moved(w, start(played))
    agree(played.params, w)
    assert played.steps[-1].info["effective_steps"] == pytest.approx(tau_eff, abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_ditto(playing: Callable[..., Played], lam: float) -> None:
    played = playing("ditto", lam=lam, rounds=5)
    w = start(played)
    personal = {i: w.copy() for i in range(len(SIZES))}
    for exchange, clients in cohorts(played):
        deltas = []
        for i in clients:
            walk = batches(played, exchange, i)
            deltas.append(descend(w, walk, np.zeros_like(w))[0] - w)
            for x, y in walk:
                v = personal[i]
                personal[i] = v - LR * (gradient(v, x, y) + lam * (v - w))
        w = w + averaged(deltas, [SIZES[i] for i in clients])
    agree(played.params, w)
    everybody = played.memory.of(torch.arange(len(SIZES)))["personal"]
    for i, v in personal.items():
        agree(everybody[i], v)
    # a client judges its personal model
    agree(played.losses(), np.array([cross_entropy(personal[i], *samples(played, i)) for i in personal]))


@pytest.mark.parametrize("optimizer_state", ["kept", "reset"])
def test_local_only(playing: Callable[..., Played], optimizer_state: str) -> None:
    played = playing("local_only", optimizer=sgd(LR, momentum=0.9), optimizer_state=optimizer_state, rounds=5)
    models = {i: start(played) for i in range(len(SIZES))}
    velocity = {i: np.zeros_like(models[0]) for i in models}
    for exchange, clients in cohorts(played):
        for i in clients:
            first = velocity[i] if optimizer_state == "kept" else np.zeros_like(velocity[i])
            models[i], velocity[i] = descend(models[i], batches(played, exchange, i), first, 0.9)
    assert played.params is None
    everybody = played.memory.of(torch.arange(len(SIZES)))["model.params"]
    for i, w in models.items():
        agree(everybody[i], w)
    assert all(not step.replies.vectors for step in played.steps), "a model left its client"


@pytest.mark.parametrize("optimizer_state", ["kept", "reset"])
def test_centralised(playing: Callable[..., Played], optimizer_state: str) -> None:
    played = playing("centralised", pooled=True, optimizer=sgd(LR, momentum=0.5), optimizer_state=optimizer_state)
    assert len(samples(played, 0)[1]) == sum(SIZES)
    w = start(played)
    velocity = np.zeros_like(w)
    for step in played.steps:
        first = velocity if optimizer_state == "kept" else np.zeros_like(w)
        w, velocity = descend(w, batches(played, step.number, 0), first, 0.5)
    moved(w, start(played))
    agree(played.params, w)


ETA, BETA1, BETA2, TAU = 0.3, 0.9, 0.95, 1e-2


@pytest.mark.parametrize(
    ("method", "server"),
    [
        ("FedAvgM", sgd(lr=ETA, momentum=BETA1)),
        ("FedAdagrad", adagrad(lr=ETA, eps=TAU, initial_accumulator=TAU**2)),
        ("FedAdagrad with momentum", adagrad(lr=ETA, eps=TAU, initial_accumulator=TAU**2, beta1=BETA1)),
        (
            "FedAdam",
            adam(lr=ETA, beta1=BETA1, beta2=BETA2, eps=TAU, initial_accumulator=TAU**2, bias_correction=False),
        ),
        ("FedYogi", yogi(lr=ETA, beta1=BETA1, beta2=BETA2, eps=TAU, initial_accumulator=TAU**2)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_server_optimizers(playing: Callable[..., Played], method: str, server: Any) -> None:
    """Reddi et al. 2021, Algorithm 2 with v_{-1} = tau^2, and FedAvgM of Hsu et al. 2019."""
    played = playing("fedavg", server=server, weighting="uniform", rounds=4)
    x = start(played)
    m, v = np.zeros_like(x), np.full_like(x, TAU**2)
    for exchange, clients in cohorts(played):
        delta = np.zeros_like(x)
        for i in clients:
            delta += (descend(x, batches(played, exchange, i), np.zeros_like(x))[0] - x) / len(clients)
        if method == "FedAvgM":
            m = BETA1 * m + delta
            x = x + ETA * m
            continue
        beta1 = 0.0 if method == "FedAdagrad" else BETA1
        m = beta1 * m + (1 - beta1) * delta
        if method.startswith("FedAdagrad"):
            v = v + delta**2
        elif method == "FedYogi":
            v = v - (1 - BETA2) * delta**2 * np.sign(v - delta**2)
        else:
            v = BETA2 * v + (1 - BETA2) * delta**2
        x = x + ETA * m / (np.sqrt(v) + TAU)
    moved(x, start(played))
    agree(played.params, x)


@pytest.mark.parametrize("accumulate", [True, False])
def test_recess(playing: Callable[..., Played], accumulate: bool) -> None:
    played = playing("recess", accumulate=accumulate, decrease=0.5)
    assert len(played.steps) == 2 * ROUNDS
    w = start(played)
    trust = dict.fromkeys(range(len(SIZES)), 1.0)
    directions: dict[int, Array] = {}
    for exchange, clients in cohorts(played):
        if exchange % 2 == 0:
            for i in clients:
                delta = descend(w, batches(played, exchange, i), np.zeros_like(w))[0] - w
                directions[i] = delta / math.sqrt(sum(v * v for v in delta))
            continue
        deltas, weights = [], []
        if not accumulate:
            trust = dict.fromkeys(range(len(SIZES)), 1.0)
        for i in clients:
            ahead = w + directions[i]
            delta = descend(ahead, batches(played, exchange, i), np.zeros_like(w))[0] - ahead
            length = math.sqrt(sum(v * v for v in delta))
            cosine = sum(a * b for a, b in zip(directions[i], delta, strict=True)) / length
            trust[i] -= 0.5 * (-cosine / length)
            deltas.append(delta)
            weights.append(math.exp(trust[i]))
        w = w + averaged(deltas, weights)
    moved(w, start(played))
    agree(played.params, w)


def test_byz_vr_marina(playing: Callable[..., Played]) -> None:
    walk = Batches(size=4, steps=1)
    played = playing("byz_vr_marina", p=0.4, batches=walk, rounds=10)
    w = start(played)
    before, g, coins = w, np.zeros_like(w), []
    for step, (exchange, clients) in zip(played.steps, cohorts(played), strict=True):
        coins.append(step.info["full_gradient"])
        messages = []
        for i in clients:
            if coins[-1]:
                messages.append(-gradient(w, *samples(played, i)))
            else:
                batch = batches(played, exchange, i, walk)[0]
                messages.append(g - (gradient(w, *batch) - gradient(before, *batch)))
        before, g = w, averaged(messages, [1.0] * len(clients))
        w = w + LR * g
    assert coins[0] and set(coins) == {True, False}
    moved(w, start(played))
    agree(played.params, w)


def test_byz_vr_marina_with_full_gradients_alone_is_descent_under_the_rule(playing: Callable[..., Played]) -> None:
    one = playing("byz_vr_marina", p=1.0, batches=Batches(size=None), rounds=4)
    w = start(one)
    for _, clients in cohorts(one):
        w = w + LR * averaged([-gradient(w, *samples(one, i)) for i in clients], [1.0] * len(clients))
    agree(one.params, w)
