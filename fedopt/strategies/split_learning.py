"""Split learning: bottom networks at the parties, labels and a top network at the server, trained by mini-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from fedopt import keys
from fedopt.problem import Problem
from fedopt.registry import ConfigError, declare
from fedopt.strategies import _parties
from fedopt.strategies._parties import Absent, Below, Count, NotNegative, Positive, Presence
from fedopt.types import Batches, Client, Exchange, Info, Named, Programs, Replies
from fedopt.vfl.blocks import block
from fedopt.vfl.losses import LOSSES, targets
from fedopt.vfl.owner import owner
from fedopt.vfl.penalties import Penalty


class Split(NamedTuple):
    """State: the server's top network, its momentum, and what the parties have to be told of the last batch."""

    round: int
    top: Named
    velocity: Named
    batch: Tensor
    """Key of the batch whose outputs come next."""
    gradient: Tensor
    """Of the loss by the sum of the outputs of the batch before `[B w]`; zeros at first."""
    before: Tensor
    """Key of that batch."""
    presence: Presence


@declare(
    reference="Vepakomma, Gupta, Swedish, Raskar 2018, arXiv 1812.00564 (vertically partitioned configuration); Liu et"
    " al. 2022, 'FedBCD', IEEE Transactions on Signal Processing 70, algorithm 1, for several local steps",
    vertical=True,
)
@dataclass(frozen=True)
class split_learning:
    """Stochastic descent on mean_j l(top(Σ_i g_i(x_i; A_ij)); t_j) + r(x).

        parties  tell g_i(x_i; rows of the batch)                                          up, [B w]
        server   q = ∂l/∂(sum), and a step of its top network                              down, [B w]
        parties  x_i <- x_i - γ v_i,  v_i = momentum v_i + (∂g_i/∂x_i)ᵀ q + l2 x_i,  `steps` times

    One exchange per batch: a party that is told q of one batch answers with its outputs for the next. Batches are drawn
    anew each time from a key that all know.

    loss, l2: as for `egvfl`; the loss is a mean over the batch. lr: γ. width: outputs of the bottom networks with a top
    network of one hidden layer of `hidden` units behind their sum; None: the sum is the prediction, without a top.
    batches: `size` people in a batch; more than one of `steps` is FedBCD's way to save exchanges: q stays as it is
    meanwhile.

    *Differences from the papers:* outputs are added, not joined. FedBCD's parties correct q for their own part's change
    where they know the loss; here nobody but the server has labels, so q is stale altogether.
    """

    batches: Batches = Batches(size=100)
    loss: Literal["squares", "logistic", "softmax", "huber"] = "softmax"
    l2: NotNegative = 0.0
    lr: Positive = 0.1
    momentum: Below = 0.9
    width: Count | None = None
    hidden: Count = 64
    absent: Absent = "wait"
    patience: Count = 5

    def programs(self, problem: Problem) -> Programs:
        mine, people, size = block(problem), self._people(problem), self._size(problem)

        def train(client: Client, x: Tensor) -> tuple[Named, Named, Named]:
            down, memory = client.down, client.memory
            weights, velocity = memory[_parties.STARTED], memory["velocity"]
            last = x[_batch(down["before"], people, size)]
            for _ in range(self.batches.steps or 1):
                velocity = self.momentum * velocity + mine.pull(weights, last, down["gradient"]) + self.l2 * weights
                weights = weights - down["lr"] * velocity
            outputs = mine.forward(weights, x[_batch(down["batch"], people, size)])
            return {"outputs": outputs}, {_parties.STARTED: weights, "velocity": velocity}, {}

        kept = (_parties.STARTED, "velocity")
        work = {
            "train": _parties.answering(train, {"outputs": size * self._width(problem)}, kept),
            **_parties.telling(problem, mine, Penalty(self.l2, 0.0), self._width(problem)),
        }
        weights = problem.initial["params"]
        return Programs(
            work,
            {_parties.STARTED: weights, "velocity": torch.zeros_like(weights)},
            longest=_parties.longest(problem, self._width(problem)),
        )

    def init(self, problem: Problem, key: Tensor) -> Split:
        if self.batches.epochs != 1:
            raise ConfigError("strategy.epochs", "batches are drawn one by one; set run.rounds, or steps per batch")
        top = {} if self.width is None else _top(self.width, self.hidden, self._outputs(problem), key, problem.dtype)
        zero = torch.zeros(self._size(problem) * self._width(problem), dtype=problem.dtype)
        first = keys.fold(key, "batch")
        still = {name: torch.zeros_like(value) for name, value in top.items()}
        return Split(0, top, still, first, zero, first, _parties.everybody(problem))

    def plan(self, problem: Problem, state: Split, key: Tensor) -> Exchange:
        lr = 0.0 if state.round == 0 else self.lr
        down = {
            "before": state.before,
            "batch": state.batch,
            "gradient": state.gradient,
            "lr": torch.tensor(lr, dtype=problem.dtype),
        }
        return _parties.ask("train", _parties.parties(state.presence), down)

    def absorb(self, problem: Problem, state: Split, replies: Replies, key: Tensor) -> tuple[Split, Info]:
        presence, whole, told = _parties.heard(problem, state.presence, replies, self.absent, self.patience)
        if not whole:  # those who answered have taken their step; nothing of this batch is used
            return state._replace(presence=presence, gradient=torch.zeros_like(state.gradient)), {"parties": told}
        rows = _batch(state.batch, self._people(problem), self._size(problem))
        y, data = problem.data.server["train"].y[rows], problem.data
        t = targets(self.loss, y, data.classes, data.task, problem.dtype)

        def loss(top: Named, z: Tensor) -> Tensor:
            return LOSSES[self.loss].each(_outputs(top, z), t).mean()

        z = _parties.total(replies, "outputs").reshape(len(rows), -1)
        (turned, gradient), value = grad_and_value(loss, argnums=(0, 1))(state.top, z)
        velocity = {name: self.momentum * state.velocity[name] + turned[name] for name in turned}
        top = {name: value - self.lr * velocity[name] for name, value in state.top.items()}
        after = Split(
            state.round + 1, top, velocity, keys.fold(key, "batch"), gradient.flatten(), state.batch, presence
        )
        return after, {"objective": float(value)}

    def model(self, problem: Problem, state: Split) -> Named | None:
        return None

    def predicted(self, problem: Problem, state: Split, z: Tensor) -> Tensor:
        """Predictions `[m, c]` from the sum of the parties' outputs `[m, w]`."""
        return _outputs(state.top, z)

    def _people(self, problem: Problem) -> int:
        return int(problem.data.splits["train"].sizes[0])

    def _size(self, problem: Problem) -> int:
        return min(self.batches.size or self._people(problem), self._people(problem))

    def _outputs(self, problem: Problem) -> int:
        return owner(problem, self.loss, True).targets.shape[1]

    def _width(self, problem: Problem) -> int:
        return self.width or self._outputs(problem)


def _batch(key: Tensor, people: int, size: int) -> Tensor:
    """The people of a batch `[B]`, a draw without replacement."""
    return keys.bits(key, people).topk(size, sorted=False).indices.sort().values


def _top(width: int, hidden: int, outputs: int, key: Tensor, dtype: torch.dtype) -> Named:
    """First weights of relu(z W₁ + b₁) W₂ + b₂, of He's deviation."""
    first = keys.normal(keys.fold(key, "top", 1), width, hidden, dtype=dtype) * (2.0 / width) ** 0.5
    second = keys.normal(keys.fold(key, "top", 2), hidden, outputs, dtype=dtype) * (1.0 / hidden) ** 0.5
    return {"w1": first, "b1": first.new_zeros(hidden), "w2": second, "b2": second.new_zeros(outputs)}


def _outputs(top: Named, z: Tensor) -> Tensor:
    if not top:
        return z
    return nn.functional.relu(z @ top["w1"] + top["b1"]) @ top["w2"] + top["b2"]
