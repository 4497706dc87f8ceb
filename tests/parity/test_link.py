"""Over the link, gRPC and TLS on loopback, a federation has the serial executor's bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

from fedopt import attacks, compression, keys, models
from fedopt.compressed import Compressed
from fedopt.compression import feedback
from fedopt.engine.adversary import Adversary, Group
from fedopt.engine.attackers import Attacking, Told
from fedopt.engine.remote import Elsewhere, Remote
from fedopt.engine.resident import Resident
from fedopt.engine.versions import Versions
from fedopt.participation import selection
from fedopt.problem import Problem
from fedopt.testing.strategies import compose, play, small_federation, small_problem
from fedopt.types import Batches, Strategy
from fedopt.wire import authority
from fedopt.wire.link import Identity, Keys, Listener, talk
from fedopt.wire.roster import Roster

SIZES = (7, 5, 9, 4, 6)
BATCHES = Batches(size=4)
ROUNDS = 3


@pytest.fixture(scope="module")
def ca() -> authority.Signed:
    return authority.authority("test")


def problem_for() -> Problem:
    options = {"hidden": [7], "activation": "tanh"}
    module = models.build(
        "mlp", options, inputs=(5,), classes=3, vocabulary=None, key=keys.root(0), dtype=torch.float32
    )
    return small_problem(small_federation(SIZES, dtype=torch.float32), module)


@contextmanager
def linked(problem: Problem, strategy: Strategy, folder: Path, ca: authority.Signed) -> Iterator[Listener]:
    """A listener with all clients on their streams."""
    roster = Roster("run", "1", problem.clients)
    listener = Listener(roster, keys=Keys(*authority.server(ca, ["localhost"])))
    port = listener.start()

    def live(client: int, secrets: list[bytes]) -> None:
        mine = problem_for()  # a module lends its parameters to one call at a time
        programs = strategy.programs(mine)
        resident = Resident(mine, programs, client, Versions(programs.memory, folder / str(client)))
        identity = Identity("run", "1", client, f"node {client}")
        talk(
            f"localhost:{port}", identity, lambda: secrets[-1], secrets.append, resident.answer,
            limit=resident.limit, root=ca.certificate,
        )  # fmt: skip

    threads = [
        threading.Thread(target=live, args=(client, [roster.expect(f"node {client}")]), daemon=True)
        for client in range(problem.clients)
    ]
    for thread in threads:
        thread.start()
    try:
        assert listener.wait_for(range(problem.clients), 20.0) == []
        yield listener
    finally:
        listener.close()
        for thread in threads:
            thread.join(10.0)
            assert not thread.is_alive()


def compress(strategy: Strategy) -> Compressed:
    return Compressed(strategy, compression.build("topk", {"share": 0.1}), feedback.build("ef21", {}))


ISP = {"name": "isp", "start": 3, "warmup": 1, "period": 2}
ATTACK = Adversary((Group(attacks.build("gaussian", {"sigma": 0.1, "around": "own"}), torch.tensor([1, 4])),))
CASES: dict[str, tuple[Strategy, Adversary]] = {
    "fedavg under attack": (compose("fedavg", lr=0.1, batches=BATCHES), ATTACK),
    "scaffold": (compose("scaffold", lr=0.1, batches=BATCHES, participation=selection(count=3)), Adversary()),
    "topk with ef21": (compress(compose("fedavg", lr=0.1, batches=BATCHES)), Adversary()),
    "isp": (compose("fedavg", lr=0.1, batches=BATCHES, participation=selection(count=ISP)), Adversary()),
    "fedbuff": (compose("fedbuff", lr=0.1, batches=BATCHES), Adversary()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_serial(case: str, ca: authority.Signed, tmp_path: Path) -> None:
    problem, (strategy, adversary) = problem_for(), CASES[case]
    wanted = play(problem, strategy, ROUNDS, adversary=adversary)
    theirs: Any = replace(strategy, spoken=True) if isinstance(strategy, Compressed) else strategy
    with linked(problem, Attacking(theirs, adversary), tmp_path, ca) as listener:
        got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(listener), adversary=Told(*adversary))
    assert got.params is not None and wanted.params is not None and torch.equal(got.params, wanted.params)
    for step, other in zip(got.steps, wanted.steps, strict=True):
        assert torch.equal(step.replies.clients, other.replies.clients)
        torch.testing.assert_close(step.replies.metrics, other.replies.metrics, rtol=0, atol=0)
    assert not listener.counts["refused"] and not listener.counts["garbage"]
