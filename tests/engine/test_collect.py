"""The boundary: what is rejected, and sums that do not depend on how the work was cut."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from fedopt.engine.collect import GROUP, LANE, LANES, Part, fold, gather, lanes, merge, to_mean
from fedopt.types import Exchange, Replies, Uplink


def uplinks(n: int, d: int = 5) -> Uplink:
    torch.manual_seed(n)
    return Uplink(
        {"delta": torch.randn(n, d), "steps": torch.rand(n, 1)},
        {"loss": torch.rand(n)},
        {"count": torch.arange(n, dtype=torch.int64)},
        torch.rand(n) + 0.5,
    )


def take(all_: Uplink, rows: Tensor) -> tuple[Tensor, Uplink]:
    def part(named: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[rows] for name, value in named.items()}

    return rows, Uplink(part(all_.vectors), part(all_.metrics), part(all_.memory), all_.weight[rows])


def collect(exchange: Exchange, blocks: list[tuple[Tensor, Uplink]]) -> Replies:
    return merge(exchange, [gather(exchange, ((lane, *block) for lane, block in enumerate(blocks)))] if blocks else [])


def exchange(n: int, reduce: str) -> Exchange:
    return Exchange("train", torch.arange(n) * 3, {}, reduce=reduce)  # type: ignore[arg-type]


def test_rows_come_back_in_client_order_however_they_were_cut() -> None:
    all_ = uplinks(10)
    blocks = [take(all_, torch.tensor(rows)) for rows in ([7, 2, 9], [0], [1, 8, 3, 4, 6, 5])]
    replies = collect(exchange(10, "rows"), blocks)
    assert replies.clients.tolist() == [3 * i for i in range(10)]
    assert torch.equal(replies.vectors["delta"], all_.vectors["delta"])
    assert torch.equal(replies.metrics["loss"], all_.metrics["loss"])
    assert torch.equal(replies.memory["count"], all_.memory["count"])
    assert replies.rejected == ()


def test_the_mean_is_the_weighted_mean() -> None:
    all_ = uplinks(6)
    replies = collect(exchange(6, "mean"), [take(all_, torch.arange(6))])
    wanted = sum(float(all_.weight[i]) * all_.vectors["delta"][i] for i in range(6)) / float(all_.weight.sum())
    torch.testing.assert_close(replies.vectors["delta"], wanted[None])
    torch.testing.assert_close(replies.weights, all_.weight.sum()[None])
    assert replies.metrics["loss"].shape == (6,)


def test_lanes_have_everybody_once_in_sizes_that_differ_by_one_at_most() -> None:
    for n in (1, 2, 31, 32, 33, 50, 100, LANE * LANES, LANE * LANES + 1, 10_000):
        rows = [row for lane in lanes(n) for row in lane]
        sizes = [len(lane) for lane in lanes(n)]
        assert rows == list(range(n))
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= LANE
    assert len(lanes(7)) == 7 and len(lanes(50)) == LANES and lanes(0) == []


@pytest.mark.parametrize("n", [5, 50, 3 * LANES + 5])
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_parts_that_come_in_any_order_give_the_same_bits(n: int, order: str) -> None:
    all_ = uplinks(n)
    asked = exchange(n, "mean")
    parts = [
        gather(asked, ((number, *take(all_, torch.tensor([row]))) for row in lane))
        for number, lane in enumerate(lanes(n))
    ]
    wanted = merge(asked, copy.deepcopy(parts))
    places = list(range(len(parts)))
    if order == "backward":
        places.reverse()
    if order == "shuffled":
        places = torch.randperm(len(parts), generator=torch.Generator().manual_seed(0)).tolist()
    got = merge(asked, [parts[place] for place in places])
    assert torch.equal(got.vectors["delta"], wanted.vectors["delta"]) and torch.equal(got.weights, wanted.weights)
    assert torch.equal(got.clients, wanted.clients) and torch.equal(got.metrics["loss"], wanted.metrics["loss"])


def test_a_mean_formed_afterwards_is_the_same_to_rounding() -> None:
    n = 2 * LANES + 5
    all_ = uplinks(n)
    blocks = [take(all_, torch.tensor([i])) for i in range(n)]
    early = collect(exchange(n, "mean"), blocks)
    late = to_mean(collect(exchange(n, "rows"), blocks))
    torch.testing.assert_close(early.vectors["delta"], late.vectors["delta"])
    torch.testing.assert_close(early.weights, late.weights)


def test_finite_rows_whose_sum_overflows_are_accepted() -> None:
    all_ = uplinks(4)
    all_.vectors["delta"][2] = 3e38
    replies = collect(exchange(4, "rows"), [take(all_, torch.arange(4))])
    assert replies.clients.numel() == 4 and replies.rejected == ()


@pytest.mark.parametrize("reduce", ["rows", "mean"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_rejected_by_name_and_never_averaged(reduce: str, poison: float) -> None:
    all_ = uplinks(5)
    all_.vectors["delta"][1, 2:4] = poison
    all_.weight[3] = poison
    replies = collect(exchange(5, reduce), [take(all_, torch.arange(5))])
    assert replies.clients.tolist() == [0, 6, 12]
    assert [r.client for r in replies.rejected] == [3, 9]
    assert replies.rejected[0].reason == "2 of 5 entries of its delta are NaN or Inf"
    assert "its weight" in replies.rejected[1].reason
    assert bool(torch.isfinite(replies.vectors["delta"]).all())
    assert replies.memory["count"].tolist() == [0, 2, 4]
    keep = [0, 2, 4]
    if reduce == "mean":
        wanted = (all_.weight[keep, None] * all_.vectors["delta"][keep]).sum(0) / all_.weight[keep].sum()
        torch.testing.assert_close(replies.vectors["delta"][0], wanted)


def test_a_negative_weight_is_no_weight() -> None:
    all_ = uplinks(3)
    all_.weight[0] = -1.0
    replies = collect(exchange(3, "mean"), [take(all_, torch.arange(3))])
    assert [r.client for r in replies.rejected] == [0] and "is not a finite number >= 0" in replies.rejected[0].reason


@pytest.mark.parametrize("reduce", ["rows", "mean"])
def test_everybody_rejected(reduce: str) -> None:
    all_ = uplinks(3)
    all_.vectors["delta"][:] = math.nan
    replies = collect(exchange(3, reduce), [take(all_, torch.arange(3))])
    assert replies.clients.numel() == 0 and len(replies.rejected) == 3
    assert bool(torch.isfinite(replies.vectors["delta"]).all())


def test_nobody_has_any_weight() -> None:
    all_ = uplinks(3)._replace(weight=torch.zeros(3))
    replies = collect(exchange(3, "mean"), [take(all_, torch.arange(3))])
    assert torch.equal(replies.vectors["delta"], torch.zeros(1, 5)) and replies.clients.numel() == 3


@pytest.mark.parametrize("reduce", ["rows", "mean"])
def test_nobody_was_asked(reduce: str) -> None:
    replies = collect(exchange(0, reduce), [])
    assert replies.clients.numel() == 0 and replies.rejected == () and replies.vectors == {}


def test_a_small_piece_of_a_large_tensor_does_not_hold_the_rest() -> None:
    large = torch.zeros(3, 10_000)
    uplink = uplinks(3)._replace(vectors={"delta": large[:, :5]})
    part = gather(exchange(3, "rows"), [(0, torch.arange(3), uplink)])
    assert part.vectors["delta"].untyped_storage().nbytes() <= 3 * 5 * 4


def _parts(all_: Uplink, asked: Exchange, n: int) -> list[Part]:
    rows = (torch.tensor(list(lane)) for lane in lanes(n))
    return [gather(asked, [(number, *take(all_, where))]) for number, where in enumerate(rows)]


def test_groups_that_workers_added_up_give_the_same_bits_in_any_order() -> None:
    n = LANES + 2 - LANES % GROUP  # the last group is not whole
    all_, asked = uplinks(n), exchange(n, "mean")
    wanted = merge(asked, _parts(all_, asked, n))
    alone = _parts(all_, asked, n)
    answers = []
    for first, after in ((2 * GROUP, 4 * GROUP), (4 * GROUP + 1, len(alone)), (0, 2 * GROUP - 1)):
        some = [copy.deepcopy(part) for part in alone[first:after]]
        sums = fold({span: one for part in some for span, one in part.sums.items()})
        answers += [part._replace(sums={}) for part in some[1:]] + [some[0]._replace(sums=sums)]
    answers += [alone[2 * GROUP - 1], alone[4 * GROUP]]
    assert (2 * GROUP, 3 * GROUP) in answers[2 * GROUP - 1].sums and (0, GROUP) in answers[-3].sums
    got = merge(asked, answers)
    assert torch.equal(got.vectors["delta"], wanted.vectors["delta"]) and torch.equal(got.weights, wanted.weights)
    assert torch.equal(got.clients, wanted.clients)


def test_a_sum_that_never_came_is_missed() -> None:
    all_, asked = uplinks(6), exchange(6, "mean")
    parts = _parts(all_, asked, 6)
    with pytest.raises(RuntimeError, match=r"none of lane 2"):
        merge(asked, [*parts[:2], *parts[3:]])
