"""PermK: who sends what, and what the clients of an exchange have together."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

KEY, SHARED = keys.root(0), keys.root(7)


def loop(x: list[float], shared: Tensor, rank: int, n: int) -> list[float]:
    d = len(x)
    size = -(-d // n)
    order = keys.permutation(shared, n * size).tolist()
    result = [0.0] * d
    for place in range(rank % n * size, (rank % n + 1) * size):
        if order[place] < d:
            result[order[place]] = n * x[order[place]]
    return result


def back(x: Tensor, n: int, rank: int, shared: Tensor = SHARED) -> Tensor:
    codec = build("permk", {"n": n})
    return codec.decode(codec.encode(x, KEY, shared=shared, rank=torch.tensor(rank)), x.numel())


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, n = draw.randint(1, 15), draw.randint(1, 6)
        rank, shared = draw.randint(0, 2 * n), keys.root(seed)
        x = torch.tensor([draw.gauss(0, 1) for _ in range(d)])
        wanted = torch.tensor(loop(x.tolist(), shared, rank, n))
        torch.testing.assert_close(back(x, n, rank, shared), wanted, rtol=1e-6, atol=0.0)


def test_the_payload_byte_by_byte() -> None:
    x = torch.tensor([1.0, 2.0, 4.0])
    order = keys.permutation(SHARED, 4).tolist()
    values = [*x.tolist(), 0.0]  # the place beyond d is nobody's
    codec = build("permk", {"n": 2})
    first = codec.encode(x, KEY, shared=SHARED, rank=torch.tensor(0))
    assert first == struct.pack("<qIff", int(SHARED), 0, values[order[0]], values[order[1]])
    last = codec.encode(x, KEY, shared=SHARED, rank=torch.tensor(5))  # places repeat
    assert last == struct.pack("<qIff", int(SHARED), 1, values[order[2]], values[order[3]])


@pytest.mark.parametrize(("d", "n"), [(1, 1), (12, 3), (13, 5), (64, 64), (3, 7)])
def test_parts_do_not_overlap_and_the_mean_of_equal_vectors_is_exact(d: int, n: int) -> None:
    x = torch.arange(1.0, d + 1.0)
    parts = torch.stack([back(x, n, rank) for rank in range(n)])
    assert torch.equal((parts != 0).sum(dim=0), torch.ones(d, dtype=torch.int64))
    assert int((parts != 0).sum(dim=1).max()) == -(-d // n)
    assert torch.equal(parts.sum(dim=0), n * x)


def test_the_error_of_the_mean_is_that_of_the_differences() -> None:
    n, d = 4, 20
    rows = 100.0 + keys.normal(KEY, n, d)
    mean = torch.stack([back(rows[i], n, i) for i in range(n)]).mean(dim=0)
    spread = (rows - rows.mean(dim=0)).square().sum(dim=0).mean().sqrt()
    assert 0.0 < float((mean - rows.mean(dim=0)).abs().max()) < 4.0 * float(spread)


def test_the_order_is_that_of_the_exchange_and_not_of_the_client() -> None:
    x = torch.arange(1.0, 31.0)
    codec = build("permk", {"n": 3})
    rank = torch.tensor(1)
    assert codec.encode(x, keys.root(1), shared=SHARED, rank=rank) == codec.encode(x, KEY, shared=SHARED, rank=rank)
    assert not torch.equal(back(x, 3, 1, keys.root(8)), back(x, 3, 1, keys.root(9)))


def drawn(x: Tensor, n: int, rank: int, draws: int) -> Tensor:
    codec = build("permk", {"n": n})

    def one(shared: Tensor) -> Tensor:
        return codec.restore(codec.compress(x, KEY, shared=shared, rank=torch.tensor(rank)), x.numel())

    found: Tensor = vmap(one)(keys.fold(KEY, torch.arange(draws)))
    return found


@pytest.mark.parametrize("d", [6, 7])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_client_is_unbiased_within_the_stated_error(d: int, rank: int) -> None:
    x, draws = torch.arange(1.0, d + 1.0), 10000
    found = drawn(x, 3, rank, draws)
    error = found.std(dim=0) / draws**0.5
    assert bool(((found.mean(dim=0) - x).abs() < 6.0 * error).all()), f"{found.mean(dim=0)} in place of {x}"
    promised = build("permk", {"n": 3}).error(d)
    assert promised == 2.0
    sq_errors = (found - x).square().sum(dim=1) / x.square().sum()
    assert float(sq_errors.mean()) <= promised + 6.0 * float(sq_errors.std()) / draws**0.5


def test_what_it_asks_for_has_to_be_on_offer() -> None:
    codec = build("permk", {"n": 3})
    assert codec.asks == {"shared", "rank"}
    with pytest.raises(FedoptError, match="permk needs rank, shared, which is not on offer here"):
        codec.encode(torch.ones(6), KEY)
    with pytest.raises(FedoptError, match="permk needs shared, which is not on offer here"):
        codec.encode(torch.ones(6), KEY, rank=torch.tensor(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"compression\.n: missing; give it a value of type n: int"),
        ({"n": 0}, r"compression\.n: should be greater than or equal to 1; 0 was given"),
        ({"m": 3}, r"compression\.m: unknown option\..* Options: n: int"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("permk", options)
