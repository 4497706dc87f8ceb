"""Laws of participation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedopt import keys
from fedopt.participation import registry
from fedopt.registry import Component, validate
from fedopt.testing._laws import found, require, run, same, untouched
from fedopt.types import Exchange, FedoptError, Participation, Replies

_CLIENTS = 30


def check_participation(component: Component | str, /, problem: Any = None, **options: Any) -> None:
    """Measure the laws of a selector, with these options.

    problem: handed to `init`; by default something with 30 `clients` and no more.

    shape         head_count is a whole number of 1 ... p; choose gives that many ids out of the pool, int64,
                  increasing, each once; also from a pool with gaps
    purity        pool and state are not changed in place, by `observe` neither
    determinism   the same state, pool and key give the same clients
    precondition  more clients than the pool has are refused with FedoptError

    Raises AssertionError for the first law that does not hold.
    """
    component = found(registry, component)
    selector: Participation = component(**validate(component, options, "participation"))
    problem = SimpleNamespace(clients=_CLIENTS) if problem is None else problem
    run(
        component,
        {
            "shape": lambda: _shape(selector, problem),
            "purity": lambda: _purity(selector, problem),
            "determinism": lambda: _determinism(selector, problem),
            "precondition": lambda: _precondition(selector, problem),
        },
    )


def _pools(problem: Any) -> list[Tensor]:
    everybody = torch.arange(int(problem.clients))
    return [everybody, everybody[2::3], everybody[1:]]


def _chosen(selector: Participation, state: Any, pool: Tensor, draw: int) -> Tensor:
    return selector.choose(state, selector.head_count(state, pool), pool, keys.root(draw))


def _shape(selector: Participation, problem: Any) -> None:
    state = selector.init(problem)
    for pool in _pools(problem):
        p = pool.numel()
        count = selector.head_count(state, pool)
        require(isinstance(count, int) and 1 <= count <= p, f"head_count is {count!r} for a pool of {p}")
        for draw, wanted in ((0, count), (1, count), (2, 1), (3, p), (4, max(p // 2, 1))):
            ids = selector.choose(state, wanted, pool, keys.root(draw))
            require(ids.dtype == torch.int64, f"ids are {ids.dtype} in place of torch.int64")
            require(tuple(ids.shape) == (wanted,), f"{list(ids.shape)} ids in place of {wanted}")
            require(bool((ids[1:] > ids[:-1]).all()), f"ids are not increasing, each once: {ids.tolist()}")
            require(bool(torch.isin(ids, pool).all()), f"ids are not from the pool: {ids.tolist()}")


def _purity(selector: Participation, problem: Any) -> None:
    state = selector.init(problem)
    pool = _pools(problem)[0]
    ids = untouched(lambda: _chosen(selector, state, pool, 0), (state, pool))
    m = ids.numel()
    replies = Replies(
        exchange=Exchange("training", ids, {}),
        clients=ids,
        vectors={"delta": keys.normal(keys.root(1), m, 5)},
        weights=torch.ones(m),
        metrics={"loss": keys.uniform(keys.root(2), m)},
        memory={},
    )
    untouched(lambda: selector.observe(state, replies), (state, ids, replies.vectors, replies.metrics))


def _determinism(selector: Participation, problem: Any) -> None:
    for pool in _pools(problem):
        for draw in range(5):
            once, twice = (_chosen(selector, selector.init(problem), pool, draw) for _ in range(2))
            same(once, twice, "two equal calls")


def _precondition(selector: Participation, problem: Any) -> None:
    state = selector.init(problem)
    for pool in _pools(problem):
        try:
            selector.choose(state, pool.numel() + 1, pool, keys.root(0))
        except FedoptError:
            continue
        raise AssertionError(f"{pool.numel() + 1} clients are chosen from a pool of {pool.numel()}")
