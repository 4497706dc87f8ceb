"""Stochastic variance-reduced sliding: one client is asked at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedopt.registry import declare
from fedopt.similarity import epochs
from fedopt.similarity.asking import Answer, Constant, Setting, Turn, by_questions, of_clients
from fedopt.similarity.epochs import Epoch, Estimator
from fedopt.similarity.home import NotNegative, Positive, Solving
from fedopt.similarity.sampled import one_client
from fedopt.types import Batches, Optimizer, Rule


@declare(
    reference="Lin, Han, Ye, Zhang 2023, 'Stochastic Distributed Optimization under Average Second-order "
    "Similarity', arXiv 2304.07504, algorithm 1 (SVRS)",
    examples=({"l2": 0.5, "delta": 2.0},),
    exceptions={
        "one client": "the server's own data is no client's, and steps are proximal ones",
        "relabelling": "another client is drawn where they stand in another order",
        "identical": "an epoch is as long as there are clients",
    },
)
@by_questions
@dataclass(frozen=True)
class svrs:
    """Epochs (see `fedopt.similarity.epochs`) of steps at the server, for each of which one client answers.

        e = [∇f_i(x) - ∇f_1(x)] - [∇f_i(w) - ∇f_1(w)],  i uniform over the n clients;  N ~ Geom(1/n)
        θ = min{1/(c δ √n), 1/(2δ)}

    O~(n + √n δ/μ) messages. Clients keep their gradient at the anchor.

    c: 2 works in practice, 8 is of theory. theta: θ in place of the formula.

    l2: λ of (λ/2)‖x‖². mu: μ; None: l2. delta: δ, the largest ‖∇²f_m - ∇²f‖; None: measured by a power iteration over
    the
        clients on whoever is farthest from the mean.
    prox: how the server solves its subproblem.

    Differences from the paper: restated from what is known of it; the law of N begins at 1.
    """

    aggregator: Rule
    server: Optimizer
    batches: Batches = Batches(size=None, shuffle=False)
    l2: NotNegative = 0.0
    mu: Positive | None = None
    delta: Positive | None = None
    c: Positive = 2.0
    theta: Positive | None = None
    prox: Solving = Solving()

    def wanted(self) -> tuple[Constant, ...]:
        return of_clients(self.delta)

    def begin(self, setting: Setting, x: Tensor, key: Tensor) -> Turn:
        return epochs.begin(setting, self._estimator(setting), x)

    def proceed(self, setting: Setting, own: Epoch, answers: tuple[Answer, ...], key: Tensor) -> Turn:
        return epochs.proceed(setting, self._estimator(setting), own, answers, key)

    def _estimator(self, setting: Setting) -> Estimator:
        return one_client(setting, self.c, self.theta, None)
