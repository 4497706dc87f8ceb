"""Count sketches against a loop over cells, their linearity and their error."""

from __future__ import annotations

import random
import statistics
import struct

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError

KEY = keys.root(0)


def places(key: Tensor, rows: int, columns: int, d: int) -> tuple[list[list[int]], list[list[float]]]:
    """Cell and sign of each entry in each row: the lowest bit of a word is the sign, the 62 above it are the cell."""
    words = keys.bits(key, rows, d).tolist()
    cells = [[(word % 2**64 // 2) % 2**62 % columns for word in row] for row in words]
    return cells, [[-1.0 if word % 2 else 1.0 for word in row] for row in words]


def loop(x: list[float], key: Tensor, rows: int, columns: int, estimate: str) -> list[float]:
    cells, signs = places(key, rows, columns, len(x))
    table = [[0.0] * columns for _ in range(rows)]
    for r in range(rows):
        for i, value in enumerate(x):
            table[r][cells[r][i]] += signs[r][i] * value
    result = []
    for i in range(len(x)):
        found = [signs[r][i] * table[r][cells[r][i]] for r in range(rows)]
        result.append(sum(found) / rows if estimate == "mean" else statistics.median(found))
    return result


def test_equals_the_loop_on_random_draws() -> None:
    draw = random.Random(0)
    for seed in range(100):
        d, key = draw.randint(1, 15), keys.root(seed)
        estimate = draw.choice(["mean", "median"])
        rows = draw.choice([1, 3, 5]) if estimate == "median" else draw.randint(1, 5)
        columns = draw.randint(1, 12)
        x = torch.tensor([draw.gauss(0, 1) for _ in range(d)])
        codec = build("sketch", {"columns": columns, "rows": rows, "estimate": estimate})
        wanted = torch.tensor(loop(x.tolist(), key, rows, columns, estimate))
        torch.testing.assert_close(codec.decode(codec.encode(x, key), d), wanted, rtol=1e-5, atol=1e-6)


def test_the_median_of_an_even_number_of_rows_lies_between_the_middle_ones() -> None:
    codec = build("sketch", {"columns": 5, "rows": 4, "estimate": "median"})
    x = keys.normal(KEY, 30)
    wanted = torch.tensor(loop(x.tolist(), KEY, 4, 5, "median"))
    torch.testing.assert_close(codec.decode(codec.encode(x, KEY), 30), wanted, rtol=1e-5, atol=1e-6)


def test_the_payload_byte_by_byte() -> None:
    x = [3.0, -0.5]
    cells, signs = places(KEY, 2, 3, 2)
    table = [0.0] * 6
    for r in range(2):
        for i in range(2):
            table[3 * r + cells[r][i]] += signs[r][i] * x[i]
    payload = build("sketch", {"columns": 3, "rows": 2}).encode(torch.tensor(x), KEY)
    assert payload == struct.pack("<q6f", int(KEY), *table)


def test_the_size_is_that_of_the_table_whatever_the_vector_is() -> None:
    for d in (1, 100, 10000):
        assert len(build("sketch", {"columns": 7, "rows": 3}).encode(torch.ones(d), KEY)) == 8 + 4 * 21


def test_it_is_linear() -> None:
    codec = build("sketch", {"columns": 11})
    x, y = keys.normal(keys.root(1), 100), keys.normal(keys.root(2), 100)
    one, other = codec.compress(x, KEY), codec.compress(y, KEY)
    both = codec.compress(2.0 * x - 3.0 * y, KEY)
    torch.testing.assert_close(both["table"], 2.0 * one["table"] - 3.0 * other["table"], rtol=1e-5, atol=1e-5)
    added = {"seed": one["seed"], "table": one["table"] + other["table"]}
    wanted = codec.restore(one, 100) + codec.restore(other, 100)
    torch.testing.assert_close(codec.restore(added, 100), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (3, 8)])
def test_the_mean_is_right_and_the_error_as_stated(rows: int, columns: int) -> None:
    d, draws = 20, 10000
    x = keys.normal(KEY, d)
    codec = build("sketch", {"columns": columns, "rows": rows})
    found = vmap(lambda key: codec.restore(codec.compress(x, key), d))(keys.fold(KEY, torch.arange(draws)))
    spread = found.std(dim=0) / draws**0.5
    assert bool(((found.mean(dim=0) - x).abs() <= 6.0 * spread).all())
    sq_error = float((found - x).square().sum(dim=1).mean() / x.square().sum())
    # every other entry falls into the cell of an entry with the probability 1 / columns
    assert sq_error == pytest.approx((d - 1) / columns / rows, rel=0.03)
    assert sq_error < d / columns / rows
    assert codec.error(d) == pytest.approx((d - 1) / columns / rows)


def test_with_the_median_large_entries_come_out_nearly_whole() -> None:
    x = 0.01 * keys.normal(KEY, 1000)
    x[[3, 500, 998]] = torch.tensor([100.0, -50.0, 20.0])
    codec = build("sketch", {"columns": 100, "rows": 7, "estimate": "median"})
    got = codec.decode(codec.encode(x, KEY), 1000)
    assert got.abs().topk(3).indices.sort().values.tolist() == [3, 500, 998]
    assert float((got - x)[[3, 500, 998]].abs().max()) < 0.2
    assert (codec.kind, build("sketch", {"columns": 100}).kind) == ("biased", "unbiased")


def test_as_many_columns_as_one_likes_leave_no_error() -> None:
    x = keys.normal(KEY, 20)
    codec = build("sketch", {"columns": 1 << 20, "rows": 1})
    assert torch.equal(codec.decode(codec.encode(x, KEY), 20), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"compression\.columns: missing"),
        ({"columns": 0}, r"compression\.columns: should be greater than or equal to 1"),
        ({"columns": 5, "rows": 0}, r"compression\.rows: should be greater than or equal to 1"),
        ({"columns": 5, "estimate": "mode"}, r"compression\.estimate: .*'mean' or 'median'; 'mode' was given"),
        ({"column": 5}, r"compression\.column: unknown option\. Did you mean 'columns'\?"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("sketch", options)
