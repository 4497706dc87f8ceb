"""Binary columns in the span of messages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from torch import Tensor

from fedopt import keys
from fedopt.strategies.egvfl import egvfl
from fedopt.types import FedoptError
from fedopt.vfl.inference.binary import Found, binary
from fedopt.vfl.inference.success import matched
from fedopt.vfl.noisy import Noisy
from tests.vfl.recorded import DOUBLE, record, table


def normal(seed: int, *shape: int) -> Tensor:
    return keys.normal(keys.root(seed), *shape, dtype=DOUBLE)


def columns(seed: int, people: int, d: int) -> Tensor:
    return (keys.uniform(keys.root(seed), people, d, dtype=DOUBLE) < 0.45).to(DOUBLE)


def rows(found: Found) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in column) for column in found.columns.T.tolist()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("centred", [False, True])
def test_all_columns_of_the_span_against_all_binary_vectors_there_are(seed: int, centred: bool) -> None:
    a = columns(seed, 11, 3)
    a = a - a.mean(dim=0) if centred else a
    sent = a @ normal(seed + 10, 3, 4)
    basis = np.concatenate([a.numpy(), np.ones((11, 1))], axis=1) if centred else a.numpy()
    wanted = set()
    for bits in itertools.product((0, 1), repeat=11):
        v = np.array(bits, dtype=float)
        outside = v - basis @ np.linalg.lstsq(basis, v, rcond=None)[0]
        if outside @ outside < 1e-16 and 0 < v.sum() < 11:
            wanted.add(tuple(1 - b for b in bits) if centred and bits[0] else bits)
    found = binary(sent, 3, 20, centred=centred)
    inside = rows(Found(found.columns[:, found.outside < 1e-12], found.outside))
    assert len(wanted) >= 3 and inside == wanted
    assert found.outside.tolist() == sorted(found.outside.tolist())


def test_how_far_outside_by_hand() -> None:
    sent = columns(0, 30, 3) @ normal(1, 3, 5) + 0.2 * normal(2, 30, 5)
    found = binary(sent, 3, 4)
    u = np.linalg.svd(sent.numpy())[0][:, :3]
    for v, outside in zip(found.columns.T.numpy(), found.outside.tolist(), strict=True):
        rest = v - u @ (u.T @ v)
        assert outside == pytest.approx(float(rest @ rest / ((v - v.mean()) ** 2).sum()))


def test_rounding_takes_noise_away() -> None:
    a = columns(0, 300, 6)
    clear = a @ normal(1, 6, 60)
    noise = normal(2, 300, 60)
    shares = [matched(binary(clear + s * noise, 6, 6).columns, a).attack for s in (0.0, 0.3, 0.6, 4.0)]
    assert shares[:3] == [1.0, 1.0, 1.0] and shares[3] < 0.75
    shifted = clear + 0.3 * noise
    shifted = shifted - shifted.mean(dim=0)
    assert matched(binary(shifted, 6, 6, centred=True).columns, a, complements=True).attack == 1.0


def test_columns_are_found_in_a_run_and_with_noise_or_sums_they_are_not() -> None:
    here = table()
    strategy, truth = egvfl(loss="logistic", step=0.3), here.columns[0]
    plain = record(here.problem, strategy, 30)
    found = binary(plain.sent(0), 6, 6)
    attack, baseline = matched(found.columns, truth)
    assert attack == 1.0 and baseline < 0.7 and float(found.outside.max()) < 1e-9
    summed = binary(plain.summed(), 12, 18)
    assert matched(summed.columns, truth).attack < 0.8 and float(summed.outside.min()) > 1e-3
    for z in (0.1, 1.0):
        noisy = binary(record(here.problem, Noisy(strategy, 0.6, z), 30).sent(0), 6, 6)
        assert matched(noisy.columns, truth).attack < baseline + 0.1
        assert float(noisy.outside.min()) > 0.05


def test_a_sum_whose_rank_can_be_searched_protects_nobody() -> None:
    a = columns(0, 120, 8)  # four features at each of two parties
    sums = a[:, :4] @ normal(1, 4, 10) + a[:, 4:] @ normal(2, 4, 10)
    assert matched(binary(sums, 8, 8).columns, a).attack == 1.0


def test_what_cannot_be_searched() -> None:
    sent = normal(0, 40, 30)
    with pytest.raises(FedoptError, match=r"messages `\[people, K\]` of rank 31 at least are needed; \[40, 30\]"):
        binary(sent, 31, 1)
    with pytest.raises(FedoptError, match="up to rank 18; 19 was given"):
        binary(sent, 19, 1)
