"""Rules that byzfl has too, on the same rows: where they agree, and where they cannot.

Left out: CAF and SMEA, for which byzfl takes one power iteration from a random vector in place of the largest
eigenvalue (they have an oracle by exact eigenvectors), and Bulyan and norm clipping, which it does not have.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.aggregators import build, pre

byzfl = pytest.importorskip("byzfl")

Rows = np.ndarray[Any, Any]


def draws(least: Callable[[int], int], seed: int, most: int = 4) -> Iterator[tuple[Tensor, int]]:
    """Rows in float64, of which f stand farther out, and f; n is `least(f)` or some more."""
    draw = random.Random(seed)
    for number in range(40):
        f = draw.randint(1, most)
        n, d = draw.randint(least(f), least(f) + 6), draw.randint(1, 12)
        updates = keys.normal(keys.fold(keys.root(seed), number), n, d, dtype=torch.float64)
        updates[:f] = 4.0 * updates[:f] + 1.0
        yield updates, f


def ours(name: str, updates: Tensor, **options: Any) -> Tensor:
    n, d = updates.shape
    offers = {"weights": torch.ones(n), "clients": torch.arange(n), "previous": torch.zeros(d, dtype=updates.dtype)}
    rule = build(name, options)
    return rule.apply(updates, rule.init(n), **offers)[0]


def mixed(name: str, updates: Tensor, key: Tensor | None = None, **options: Any) -> Tensor:
    n = updates.shape[0]
    return pre.build(name, options).apply(updates, weights=torch.ones(n), clients=torch.arange(n), key=key)


def agree(got: Tensor, theirs: Rows, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        got, torch.from_numpy(np.asarray(theirs, dtype=np.float64)), rtol=tolerance, atol=tolerance
    )


def enough(f: int) -> int:
    return 2 * f + 1


def test_mean() -> None:
    """Theirs knows no weights."""
    for updates, _ in draws(enough, 1):
        agree(ours("mean", updates), byzfl.Average()(updates.numpy()))


def test_median() -> None:
    for updates, _ in draws(enough, 2):
        agree(ours("median", updates), byzfl.Median()(updates.numpy()))


def test_trimmed_mean() -> None:
    for updates, f in draws(enough, 3):
        agree(ours("trimmed_mean", updates, f=f), byzfl.TrMean(f)(updates.numpy()))


def test_meamed() -> None:
    """Theirs leaves it to a partial sort which of two values equally far from the median is taken; none are here."""
    for updates, f in draws(enough, 4):
        agree(ours("meamed", updates, f=f), byzfl.Meamed(f)(updates.numpy()))


def test_krum() -> None:
    """Theirs scores by n - f - 1 neighbours, one more than the paper: it is the paper's Krum for f - 1 attackers."""
    for updates, f in draws(lambda f: 2 * f + 2, 5):
        agree(ours("krum", updates, f=f - 1), byzfl.Krum(f)(updates.numpy()))


def test_multi_krum() -> None:
    """The same neighbours as in `test_krum`; it keeps n - f rows, where ours takes any m."""
    for updates, f in draws(lambda f: 2 * f + 2, 6):
        n = updates.shape[0]
        agree(ours("krum", updates, f=f - 1, m=n - f), byzfl.MultiKrum(f)(updates.numpy()))


def test_geometric_median() -> None:
    """Theirs starts at 0 and takes 3 iterations smoothed by 0.1; both are compared where they have come to rest.

    In one dimension every point between two rows may be a median, and which one is reached depends on the start.
    """
    for updates, _ in draws(lambda f: 2 * f + 3, 7):
        if updates.shape[1] < 3:
            continue
        theirs = byzfl.GeometricMedian(nu=0.01, T=3000)(updates.numpy())
        agree(ours("geometric_median", updates, smoothing=0.01, tolerance=1e-12, iterations=10_000), theirs)


def test_centered_clipping() -> None:
    """Theirs remembers the last result by itself and starts at 0, with τ = 100 unless told otherwise."""
    for number, (updates, _) in enumerate(draws(enough, 8)):
        tau, iterations = (0.1, 1.0, 5.0)[number % 3], number % 4 + 1
        theirs = byzfl.CenteredClipping(L=iterations, tau=tau)
        rule = build("centered_clipping", {"tau": tau, "iterations": iterations})
        previous = torch.zeros(updates.shape[1], dtype=torch.float64)
        for _ in range(3):
            previous = rule.apply(updates, (), previous=previous)[0]
            agree(previous, theirs(updates.numpy()))


def test_mda() -> None:
    """Of several subsets of smallest diameter theirs takes the first, ours the one that spreads least."""
    unique = 0
    for updates, f in draws(enough, 9, most=3):
        n = updates.shape[0]
        sq = torch.cdist(updates, updates)
        diameters = sorted(float(sq[list(s)][:, list(s)].max()) for s in itertools.combinations(range(n), n - f))
        theirs = byzfl.MDA(f)(updates.numpy())
        if len(diameters) == 1 or diameters[1] > diameters[0]:
            unique += 1
            agree(ours("mda", updates, f=f), theirs)
        rule = build("mda", {"f": f})
        taken = torch.nonzero(rule.apply(updates, ())[2]["trust"]).flatten()
        assert float(sq[taken][:, taken].max()) == pytest.approx(diameters[0])
    assert unique >= 10


def test_monna() -> None:
    """Their pivot is the number of a row, ours the id of a client or the server."""
    for updates, f in draws(enough, 10):
        at = updates.shape[0] - 1
        agree(ours("monna", updates, f=f, pivot=at), byzfl.MoNNA(f, at)(updates.numpy()))


def test_nnm() -> None:
    for updates, f in draws(enough, 11):
        agree(mixed("nnm", updates, f=f), byzfl.NNM(f)(updates.numpy()))


def test_bucketing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs draws from NumPy's global generator, which is given our order here; buckets may stand in another order."""
    for number, (updates, f) in enumerate(draws(enough, 12)):
        key = keys.root(number)
        order = keys.permutation(key, updates.shape[0]).numpy()
        monkeypatch.setattr(np.random, "permutation", lambda rows, order=order: rows[order])
        theirs = byzfl.Bucketing(s=f)(updates.numpy())
        got = mixed("bucketing", updates, key, s=f)
        agree(got[got[:, 0].argsort()], theirs[theirs[:, 0].argsort()])


def test_clipping() -> None:
    """Theirs writes into its argument."""
    for updates, _ in draws(enough, 13):
        agree(mixed("clipping", updates, bound=2.0), byzfl.Clipping(2.0)(updates.numpy().copy()))


def test_arc() -> None:
    """Theirs writes into its argument, and computes 2 (f/n)(n - f) in floating point, which may fall one short."""
    for updates, f in draws(enough, 14):
        n = updates.shape[0]
        got, theirs = mixed("arc", updates, f=f), byzfl.ARC(f)(updates.numpy().copy())
        if int((2 * f / n) * (n - f)) == 2 * f * (n - f) // n:
            agree(got, theirs)
        else:
            assert int((2 * f / n) * (n - f)) == 2 * f * (n - f) // n - 1
