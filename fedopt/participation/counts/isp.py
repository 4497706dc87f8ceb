"""ISP: the smallest number of clients that is still expected to lower the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor

from fedopt import keys
from fedopt.registry import ConfigError, declare
from fedopt.types import Ask, Info, Replies, Survey

Number = Annotated[int, pydantic.Field(ge=1)]


class Searching(NamedTuple):
    """State."""

    round: int
    population: int
    """How many clients there are."""
    number: int
    """m, the head-count between searches."""
    found: int
    """How many searches have ended; before the first, m is the initial one."""
    average: float | None
    """Moving average of the losses so far; None before the first."""
    low: float | None
    """Lowest loss since the last search, that of its own round included; None before the first."""
    pending: Pending | None
    """A search whose candidates clients are evaluating; None: there is none."""


class Pending(NamedTuple):
    """A search in progress, candidate by candidate; the first one is the model before the search round."""

    base: Tensor
    """x_b `[d]`."""
    rows: Tensor
    """Δ_i `[n, d]`."""
    clients: Tensor
    """Ids `[n]`."""
    shares: Tensor
    """Of the rows in each candidate `[candidates, n]`."""
    heads: Tensor
    """Head-count of each candidate `[candidates]`, non-decreasing."""
    losses: Tensor
    """Of the model before and the candidates so far, float64."""


class Rule(NamedTuple):
    """What forms differ in; see the options of these names."""

    reference: str
    least: int
    most: int | None
    begin: int
    warmup_clients: int | None
    """None: B."""
    smoothing: float
    first: str
    unmet: str


@declare(
    reference="Skorik, Dorofeev, Molodtsov, Avetisyan, Bylinkin, Medyakov, Beznosikov 2025, 'Communication-Efficient"
    " Federated Learning with Adaptive Number of Participants', arXiv 2508.13803, and the authors' program",
    examples=(
        {"start": 6, "warmup": 1, "period": 2},
        {"start": 6, "warmup": 1, "period": 2, "form": "paper", "pool_factor": None},
        {"start": 8, "warmup": 0, "period": 2, "validation": "clients", "subsets": 3, "step": 2},
        {"start": 5, "warmup": 1, "period": 3, "search_pool": "all", "rounding": "half_up", "pool": 12},
    ),
)
@dataclass(frozen=True)
class isp:
    """min m such that E_{C, |C| = m} [F(x + Σ_{i in C} w_i Δ_i) - F(x)] < 0, looked for every `period` rounds.

    In a search round a pool I of B clients trains. Before the next round, with x_b the model that the pool was sent,

        for k = least, least + step, ... <= min(|I|, most):
            l_s = F(x_b + Σ_{i in A_s} w_i Δ_i),    A_1 ... A_S drawn by the selector, k clients of I
            stop with k* = k where l_ref - mean_s l_s > 0
        m <- ⌊(1 - smoothing) m + smoothing k*⌋

    with w_i the strategy's weights of the clients in A_s, divided by their sum. F is the mean loss on the server's
    trial samples or on the clients' own. Three forms differ in what surrounds this:

                         "paper"                 "guarded"               "steady"
        reference        "ema"                   "min"                   "best"
        least            1                       ⌈start / 4⌉             ⌈start / 2⌉
        most             none                    none                    ⌈5 start / 4⌉
        begin            start                   start                   least
        warmup_clients   B                       B                       begin
        smoothing        1 / 2                   1 / 2                   1 / 4
        first            "taken"                 "taken"                 "smoothed"
        unmet            "stay"                  "stay"                  "largest"

    form: which of them stands for the options that are not given.
    start: m_0, how many clients one would take without a search.
    begin: m until the first search.
    warmup, warmup_epochs: rounds at the beginning, and their local epochs; None: the strategy's.
    warmup_clients: how many take part in these rounds.
    period: rounds between two searches, at least 2.
    subsets: S. A selector that always gives the same clients is evaluated once.
    step: of the grid over k.
    smoothing: share of the new k* in m.
    first: whether the first k* is "taken" as it is, or "smoothed" like the others.
    unmet: what is done where no k will do. "stay": m stays as it is; "largest": k* is the last k that was tried.
    fallback: m where the very first search finds nothing and m would stay; None: as it is.
    span: of the moving average of F, e <- a F(x_t) + (1 - a) e with a = 2 / (span + 1); None: period.
    pool_factor, pool: B = min(p, ⌈pool_factor m⌉, most), or `pool` if that is given; all p clients without either.
    reference: l_ref. "ema": the moving average, F(x_b) included; "last": F(x_b); "min": the lower of the two; "best":
        the lowest of the average and of all F(x_t) since the last search.
    least, most: lowest and highest k of the grid, and m.
    rounding: of the smoothed m, "floor" or "half_up".
    search_pool: whom candidates are drawn from, "pool" or "all" clients, whose update is 0 if they are not in the pool.
    validation: whose samples F is of. "server": the trial samples, and no client does anything for a search.
        "clients": of the pool, weighted by their number of samples; each candidate is sent to them and its loss comes
        back, one exchange after another, until k* is found.

    Raises ValueError where `least` is above `start` or `begin`, or `most` below `begin`.

    Differences from the paper: it divides by |A| whatever the weights of clients are; that is `strategy.weighting =
    "uniform"`. Its moving average lags while the loss falls fast, and then k = 1 passes at once: m = 1 in every search.
    Hence the guarded form, which is ours, as is the steady one. Losses of single rounds are noisy where clients differ:
    after an unlucky round few clients are an improvement, so a search has to reach the best of the last rounds, and m
    follows slowly. More clients pay in late rounds, where their mean has to be precise, and less in early ones, so m
    begins low. `form = "paper"` is the authors'. Their program draws candidates from all clients with updates that are
    stale or missing (`search_pool = "all"` takes missing ones), and pools the clients' validation parts at the server.
    With `validation = "clients"` F is known in search rounds alone: the average is one over searches, the best F(x_b).
    """

    start: Number = 20
    warmup: Annotated[int, pydantic.Field(ge=0)] = 12
    warmup_epochs: Number | None = 3
    warmup_clients: Number | None = None
    period: Annotated[int, pydantic.Field(ge=2)] = 20
    subsets: Number = 10
    step: Number = 1
    smoothing: Annotated[float | None, pydantic.Field(gt=0.0, le=1.0)] = None
    span: Annotated[float | None, pydantic.Field(ge=1.0)] = None
    pool_factor: Annotated[float | None, pydantic.Field(ge=1.0)] = 2.0
    pool: Number | None = None
    form: Literal["steady", "guarded", "paper"] = "steady"
    reference: Literal["best", "min", "ema", "last"] | None = None
    least: Number | None = None
    most: Number | None = None
    begin: Number | None = None
    first: Literal["taken", "smoothed"] | None = None
    unmet: Literal["stay", "largest"] | None = None
    fallback: Number | None = None
    rounding: Literal["floor", "half_up"] = "floor"
    search_pool: Literal["pool", "all"] = "pool"
    validation: Literal["server", "clients"] = "server"

    def __post_init__(self) -> None:
        """Refuse a head-count that begins outside its bounds."""
        rule = self.rule
        if rule.least > self.start:
            raise ValueError(f"least = {rule.least} is above start = {self.start}; lower least or raise start")
        if not rule.least <= rule.begin <= (rule.most or rule.begin):
            raise ValueError(
                f"begin = {rule.begin} is not between least = {rule.least} and most = {rule.most}; change one of them"
            )

    @property
    def rule(self) -> Rule:
        """The form, with what was given in place of its own."""
        quarter, half, more = -(-self.start // 4), -(-self.start // 2), -(-5 * self.start // 4)
        form = {
            "paper": Rule("ema", 1, None, self.start, None, 0.5, "taken", "stay"),
            "guarded": Rule("min", quarter, None, self.start, None, 0.5, "taken", "stay"),
            "steady": Rule("best", half, more, self.least or half, None, 0.25, "smoothed", "largest"),
        }[self.form]
        given = {name: getattr(self, name) for name in Rule._fields}
        rule = form._replace(**{name: value for name, value in given.items() if value is not None})
        if self.form == "steady" and self.warmup_clients is None:
            return rule._replace(warmup_clients=rule.begin)
        return rule

    @property
    def surveys(self) -> frozenset[str]:
        return frozenset({"loss"} if self.validation == "clients" else ())

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"draw", "key", "loss"} if self.validation == "server" else {"draw", "key"})

    def init(self, problem: Any) -> Searching:
        """Everybody's number, and nothing seen."""
        if self.start > problem.clients:
            raise ConfigError(
                "participation.count.start", f"{self.start} clients are asked for, and there are {problem.clients}"
            )
        return Searching(0, problem.clients, self.rule.begin, 0, None, None, None)

    def ask(self, state: Searching, p: int) -> Ask:
        """Pools in the first rounds and in search rounds, m clients in the others."""
        if self.pool is not None:
            many = self.pool
        else:
            many = p if self.pool_factor is None else math.ceil(self.pool_factor * state.number)
            if self.pool_factor is not None and self.rule.most is not None:
                many = min(many, self.rule.most)
        if state.round < self.warmup:
            return Ask(min(p, self.rule.warmup_clients or many), epochs=self.warmup_epochs)
        if self._searches(state.round):
            return Ask(min(p, many), rows=True)
        return Ask(min(p, state.number))

    def observe(self, state: Searching, replies: Replies, *, draw: Any, key: Tensor, loss: Any = None) -> Any:
        """The losses so far; after a search round its result, or the candidates to send."""
        searching = self._searches(state.round) and replies.clients.numel() > 0
        state = state._replace(round=state.round + 1)
        if self.validation == "clients":
            return state._replace(
                pending=self._pending(state.population, replies, draw, key) if searching else None
            ), {}
        rows = replies.vectors["delta"]
        here = float(loss(rows.new_zeros(1, rows.shape[1]))[0])
        average = self._averaged(state.average, here)
        low = here if state.low is None else min(state.low, here)
        state = state._replace(average=average, low=low)
        if not searching:
            return state, {"search": {"loss": here}}
        reference, tried = self._reference(average, here, low), []
        for k in self._grid(replies.clients.numel()):
            shares = self._candidates(k, state.population, replies, draw, key)
            tried.append((k, float(loss(shares.to(rows.dtype) @ rows).to(torch.float64).mean())))
            if tried[-1][1] < reference:
                break
        return self._ended(state, reference, tried, here, replies.clients.numel())

    def survey(self, state: Searching, pool: Tensor, key: Tensor) -> Survey | None:
        """The next candidate of a search, to the clients of its pool."""
        p = state.pending
        if p is None:
            return None
        number = p.losses.numel()
        candidate = p.base if number == 0 else p.base + p.shares[number - 1].to(p.rows.dtype) @ p.rows
        return Survey("loss", p.clients, candidate)

    def heard(self, state: Searching, replies: Replies) -> tuple[Searching, Info]:
        """The loss of a candidate; with the last one of a head-count, whether it will do."""
        p = state.pending
        assert p is not None
        losses, weights = replies.metrics["loss"].to(torch.float64), replies.weights.to(torch.float64)
        told = (losses * weights).sum() / weights.sum() if bool(weights.sum() > 0) else losses.new_tensor(math.nan)
        p = p._replace(losses=torch.cat([p.losses, told[None]]))
        here, done = float(p.losses[0]), p.losses.numel() - 1
        if done == 0:
            return state._replace(average=self._averaged(state.average, here), pending=p), {}
        average = here if state.average is None else state.average
        heads = p.heads[:done]
        if done < p.heads.numel() and int(p.heads[done]) == int(heads[-1]):
            return state._replace(pending=p), {}
        tried = [(int(k), float(p.losses[1:][heads == k].mean())) for k in heads.unique()]
        reference = self._reference(average, here, here)
        if done < p.heads.numel() and not tried[-1][1] < reference:
            return state._replace(pending=p), {}
        return self._ended(state._replace(pending=None), reference, tried, here, p.clients.numel())

    def _searches(self, round_: int) -> bool:
        return round_ >= self.warmup and (round_ - self.warmup) % self.period == 0

    def _grid(self, n: int) -> range:
        rule = self.rule
        return range(min(rule.least, n), min(n, rule.most or n) + 1, self.step)

    def _averaged(self, average: float | None, here: float) -> float:
        a = 2.0 / ((self.period if self.span is None else self.span) + 1.0)
        return here if average is None else a * here + (1.0 - a) * average

    def _reference(self, average: float, here: float, low: float) -> float:
        values = {"ema": average, "last": here, "min": min(average, here), "best": min(average, low)}
        return values[self.rule.reference]

    def _candidates(self, k: int, population: int, replies: Replies, draw: Any, key: Tensor) -> Tensor:
        """Shares of the pool's updates in the candidates of k clients `[candidates, n]`."""
        ids, weights = replies.clients, replies.weights.to(torch.float64)
        everybody = ids if self.search_pool == "pool" else torch.arange(population)
        words = keys.fold(key, "search", k, torch.arange(self.subsets))
        drawn = [draw(k, everybody, word) for word in words.unbind()]
        if all(torch.equal(one, drawn[0]) for one in drawn):
            drawn = drawn[:1]
        inside = torch.stack([torch.isin(ids, one) for one in drawn]).to(torch.float64)
        if self.search_pool == "all":  # who is not in the pool adds nothing, and counts
            return inside / k
        shares = inside * weights
        return shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)

    def _pending(self, population: int, replies: Replies, draw: Any, key: Tensor) -> Pending:
        grid = list(self._grid(replies.clients.numel()))
        shares = [self._candidates(k, population, replies, draw, key) for k in grid]
        heads = torch.cat([torch.full((len(one),), k) for k, one in zip(grid, shares, strict=True)])
        base, rows = replies.exchange.down["params"], replies.vectors["delta"]
        return Pending(base, rows, replies.clients, torch.cat(shares), heads, torch.zeros(0, dtype=torch.float64))

    def _ended(
        self, state: Searching, reference: float, tried: list[tuple[int, float]], here: float, pool: int
    ) -> tuple[Searching, Info]:
        rule, number = self.rule, state.number
        found = tried[-1][0] if tried[-1][1] < reference else None
        wanted = tried[-1][0] if found is None and rule.unmet == "largest" else found
        if wanted is None:
            number = number if state.found else self.fallback or number
        elif state.found or rule.first == "smoothed":
            mixed = (1.0 - rule.smoothing) * number + rule.smoothing * wanted
            number = math.floor(mixed + (0.5 if self.rounding == "half_up" else 0.0))
        else:
            number = wanted
        number = min(max(number, rule.least), rule.most or number)
        info = {
            "loss": here,
            "reference": reference,
            "pool": pool,
            "tried": [{"clients": k, "loss": value} for k, value in tried],
            "found": found,
            "clients": number,
        }
        return state._replace(number=number, found=state.found + 1, low=None), {"search": info}
