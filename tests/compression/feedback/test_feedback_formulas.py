"""Each memory against its formulas in loops, and what is sent and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression import build as codec_of
from fedopt.compression import feedback
from fedopt.registry import ConfigError
from fedopt.types import FedoptError, Named

D, ROUNDS = 9, 6
Row = list[float]
Code = Callable[[Row], Row]


def top(k: int) -> Code:
    """The k largest magnitudes; the first of equal ones."""

    def code(v: Row) -> Row:
        kept = sorted(range(len(v)), key=lambda i: (-abs(v[i]), i))[:k]
        return [value if i in kept else 0.0 for i, value in enumerate(v)]

    return code


def add(a: Row, b: Row, factor: float = 1.0) -> Row:
    return [p + factor * q for p, q in zip(a, b, strict=True)]


def ef14(xs: list[Row], code: Code, coins: list[bool]) -> list[Row]:
    error, rows = [0.0] * D, []
    for x in xs:
        wanted = add(error, x)
        rows.append(code(wanted))
        error = add(wanted, rows[-1], -1.0)
    return rows


def ef21(xs: list[Row], code: Code, coins: list[bool]) -> list[Row]:
    g, rows = [0.0] * D, []
    for x in xs:
        g = add(g, code(add(x, g, -1.0)))
        rows.append(g)
    return rows


def ef21_momentum(xs: list[Row], code: Code, coins: list[bool], eta: float = 0.3) -> list[Row]:
    g, v, rows = [0.0] * D, xs[0], []
    for number, x in enumerate(xs):
        if number:
            v = [(1 - eta) * a + eta * b for a, b in zip(v, x, strict=True)]
        g = add(g, code(add(v, g, -1.0)))
        rows.append(g)
    return rows


def diana(xs: list[Row], code: Code, coins: list[bool], alpha: float = 0.4) -> list[Row]:
    h, rows = [0.0] * D, []
    for x in xs:
        said = code(add(x, h, -1.0))
        rows.append(add(h, said))
        h = add(h, said, alpha)
    return rows


def marina(xs: list[Row], code: Code, coins: list[bool]) -> list[Row]:
    g, last, rows = [0.0] * D, [0.0] * D, []
    for number, (x, coin) in enumerate(zip(xs, coins, strict=True)):
        g = x if coin or number == 0 else add(g, code(add(x, last, -1.0)))
        last = x
        rows.append(g)
    return rows


def dasha(xs: list[Row], code: Code, coins: list[bool], a: float = 0.2) -> list[Row]:
    g, last, rows = xs[0], xs[0], [xs[0]]
    for x in xs[1:]:
        g = add(g, code([p - q - a * (r - q) for p, q, r in zip(x, last, g, strict=True)]))
        last = x
        rows.append(g)
    return rows


def dgc(xs: list[Row], code: Code, coins: list[bool], momentum: float = 0.7) -> list[Row]:
    u, v, rows = [0.0] * D, [0.0] * D, []
    for x in xs:
        u = [momentum * p + q for p, q in zip(u, x, strict=True)]
        v = add(v, u)
        rows.append(code(v))
        u = [0.0 if sent else p for p, sent in zip(u, rows[-1], strict=True)]
        v = add(v, rows[-1], -1.0)
    return rows


FORMULAS: dict[str, tuple[Callable[..., list[Row]], dict[str, Any]]] = {
    "ef14": (ef14, {}),
    "ef21": (ef21, {}),
    "ef21_momentum": (ef21_momentum, {"eta": 0.3}),
    "diana": (diana, {"alpha": 0.4}),
    "marina": (marina, {"whole": 0.4}),
    "dasha": (dasha, {"a": 0.2}),
    "dgc": (dgc, {"momentum": 0.7}),
}


def begin(memory: feedback.Feedback) -> Named:
    return {name: value.to(torch.float64) for name, value in memory.start(D).items()}


def plain(v: Tensor) -> Tensor:
    """Top-3 in float64."""
    return torch.tensor(top(3)(v.tolist()), dtype=torch.float64)


@pytest.mark.parametrize("name", FORMULAS)
def test_oracle(name: str) -> None:
    looped, options = FORMULAS[name]
    memory = feedback.build(name, options)
    seen = set()
    for draw in range(100):
        xs = [keys.normal(keys.fold(keys.root(draw), t), D, dtype=torch.float64) for t in range(ROUNDS)]
        shared = [keys.fold(keys.root(draw), "shared", t) for t in range(ROUNDS)]
        coins = [bool(keys.uniform(keys.fold(key, "marina"), 1)[0] < 0.4) for key in shared]
        seen |= set(coins)
        wanted, kept = looped([x.tolist() for x in xs], top(3), coins), begin(memory)
        for t, x in enumerate(xs):
            sent = memory.step(x, kept, plain, shared=shared[t], error=2.0)
            torch.testing.assert_close(sent.row, torch.tensor(wanted[t], dtype=torch.float64), rtol=0, atol=1e-12)
            if name == "marina":
                assert bool(sent.whole) == (coins[t] or t == 0)
            elif name == "dasha":
                assert bool(sent.whole) == (t == 0)
            else:
                assert sent.whole is None
            kept = sent.kept
    assert seen == {True, False}


@pytest.mark.parametrize(("name", "momentum"), [("ef14", 0.0), ("dgc", 0.0), ("dgc", 0.6)])
def test_sent_and_kept_are_what_was_wanted(name: str, momentum: float) -> None:
    memory = feedback.build(name, {"momentum": momentum} if name == "dgc" else {})
    for codec in (codec_of("topk", {"share": 0.2}), codec_of("sign", {}), codec_of("blocks", {"bits": 4})):
        kept = begin(memory)
        for t in range(20):
            x = keys.normal(keys.root(t), D, dtype=torch.float64)
            wanted = kept["error"] + x + (momentum * kept["momentum"] if name == "dgc" else 0.0)

            def code(v: Tensor, codec: Any = codec, t: int = t) -> Tensor:
                return codec.restore(codec.compress(v, keys.root(t)), D).to(v.dtype)  # type: ignore[no-any-return]

            sent = memory.step(x, kept, code)
            torch.testing.assert_close(sent.row + sent.kept["error"], wanted, rtol=0, atol=1e-12)
            kept = sent.kept


@pytest.mark.parametrize(
    ("name", "key", "wanted"), [("diana", "alpha", 0.25), ("marina", "whole", 0.25), ("dasha", "a", 1 / 7)]
)
def test_defaults_follow_from_what_the_codec_promises(name: str, key: str, wanted: float) -> None:
    xs = [keys.normal(keys.root(t), D, dtype=torch.float64) for t in range(5)]
    rows = []
    for options in ({}, {key: wanted}):
        memory = feedback.build(name, options)
        kept = begin(memory)
        for t, x in enumerate(xs):
            sent = memory.step(x, kept, plain, shared=keys.root(t), error=3.0)
            kept = sent.kept
        rows.append(sent.row)
    assert torch.equal(rows[0], rows[1])
    memory = feedback.build(name, {})
    with pytest.raises(FedoptError, match=rf"promises no error; give compression\.feedback\.{key}"):
        memory.step(xs[0], begin(memory), plain, shared=keys.root(0), error=None)


def test_wrong_options() -> None:
    with pytest.raises(ConfigError, match=r"compression\.feedback\.name.*Did you mean 'ef21'"):
        feedback.build("ef22", {})
    with pytest.raises(ConfigError, match=r"compression\.feedback\.eta"):
        feedback.build("ef21_momentum", {"eta": 0.0})
    with pytest.raises(ConfigError, match=r"compression\.feedback\.alpha: unknown option"):
        feedback.build("ef21", {"alpha": 0.5})


def test_three_functions_on_which_greedy_descent_goes_away_and_error_feedback_does_not() -> None:
    """Beznosikov, Horvath, Richtarik, Safaryan 2020, 'On Biased Compression for Distributed Learning', example 1.

    f_i(x) = <a_i, x>² + ‖x‖² / 4 with a = (-3, 2, 2), (2, -3, 2), (2, 2, -3), from (1, 1, 1): every client's largest
    entry is that of its -3, which points away from the solution 0.
    """
    a = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]], dtype=torch.float64)
    codec = codec_of("topk", {"count": 1})

    def code(v: Tensor) -> Tensor:
        return codec.restore(codec.compress(v, keys.root(0)), 3).to(v.dtype)

    norms = {}
    for name, step in (("none", 0.01), ("ef14", 0.01), ("ef21", 0.01)):
        memory = feedback.build(name, {})
        kept = [{n: v.to(torch.float64) for n, v in memory.start(3).items()} for _ in range(3)]
        x = torch.ones(3, dtype=torch.float64)
        for _ in range(2000 if name != "none" else 100):
            gradients = 2.0 * (a @ x)[:, None] * a + 0.5 * x
            # error feedback keeps what it could not send of a step, EF21 sends gradients
            scale = step if name == "ef14" else 1.0
            sent = [memory.step(scale * g, k, code) for g, k in zip(gradients, kept, strict=True)]
            kept = [s.kept for s in sent]
            x = x - step / scale * torch.stack([s.row for s in sent]).mean(dim=0)
        norms[name] = float(x.norm())
    assert norms["none"] > 10.0 and norms["ef14"] < 1e-2 and norms["ef21"] < 1e-6
