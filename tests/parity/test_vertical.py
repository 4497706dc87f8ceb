"""Strategies over columns have the same bits wherever their parties are: here, elsewhere by messages, over the link."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fedopt.compressed import Compressed
from fedopt.compression import build, feedback
from fedopt.engine.remote import Elsewhere, Remote
from fedopt.engine.resident import Resident
from fedopt.engine.versions import Versions
from fedopt.problem import Problem
from fedopt.registry import parameters
from fedopt.strategies import registry
from fedopt.testing.strategies import play, vertical
from fedopt.types import Batches, Strategy
from tests.parity.test_remote import Near, assert_same, assert_same_memory
from tests.vfl.toy import toy

ROUNDS = 5
CASES: list[tuple[str, dict[str, Any], tuple[str, dict[str, Any], str] | None]] = [
    *((name, {}, None) for name in vertical()),
    ("egvfl", {"form": "split"}, None),
    ("egvfl", {"adaptive": True, "output": "average"}, None),
    ("egvfl_reference", {"take": 2}, None),
    ("egvfl_reference", {"rows": 0.3}, None),
    ("egvfl_reference", {}, ("randk", {"share": 0.2}, "none")),
    ("egvfl_reference", {}, ("permk", {"n": 3}, "none")),
    ("egvfl_reference", {}, ("topk", {"share": 0.2}, "ef14")),
    ("vertical_gd", {}, ("qsgd", {"levels": 3}, "none")),
]


def made(name: str, options: dict[str, Any], asked: tuple[str, dict[str, Any], str] | None, dtype: str) -> Strategy:
    component = registry.get(name)
    wants = parameters(component)
    codec = build("none", {"dtype": dtype}) if asked is None else build(asked[0], asked[1])
    given: dict[str, Any] = {"loss": "squares", **options}
    if "codec" in wants:
        given["codec"] = codec
    if "broadcast" in wants and asked is not None and not codec.asks:
        given["broadcast"] = codec
    if "batches" in wants:
        given["batches"] = Batches(size=10)
    strategy: Any = component(**given)
    if asked is None:
        return strategy  # type: ignore[no-any-return]
    [vector] = strategy.lengths(problem_of(torch.float64))
    return Compressed(strategy, codec, feedback.build(asked[2], {}), (vector,))


def problem_of(dtype: torch.dtype) -> Problem:
    problem = toy(3, people=30, features=8).problem
    if dtype == torch.float64:
        return problem
    data = problem.data
    splits = {n: s._replace(x=s.x.to(dtype)) for n, s in data.splits.items()}
    server = {n: s._replace(y=s.y.to(dtype)) for n, s in data.server.items()}
    spec = problem.network.spec._replace(dtype=dtype)
    network = problem.network._replace(
        spec=spec, training=problem.network.training.to(dtype), inference=problem.network.inference.to(dtype)
    )
    initial = {n: v.to(dtype) for n, v in problem.initial.items()}
    return problem._replace(data=data._replace(splits=splits, server=server), network=network, initial=initial)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options", "asked"), CASES, ids=str)
def test_by_messages(
    name: str, options: dict[str, Any], asked: tuple[str, dict[str, Any], str] | None, dtype: str, tmp_path: Path
) -> None:
    problem = problem_of(getattr(torch, dtype))
    strategy = made(name, options, asked, dtype)
    wanted = play(problem, strategy, ROUNDS)
    near = Near(problem, strategy, tmp_path)
    got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(near))
    assert_same(got, wanted)
    assert_same_memory(near, got, wanted)


@pytest.mark.parametrize("name", ["egvfl", "egvfl_reference"])
def test_over_the_link(name: str, tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
    from fedopt.wire import authority
    from fedopt.wire.link import Identity, Keys, Listener, talk
    from fedopt.wire.roster import Roster

    strategy, problem = made(name, {}, None, "float64"), problem_of(torch.float64)
    ca, roster = authority.authority("test"), Roster("run", "1", problem.clients)
    listener = Listener(roster, keys=Keys(*authority.server(ca, ["localhost"])))
    port = listener.start()

    def live(client: int, secrets: list[bytes]) -> None:
        mine = problem_of(torch.float64)
        programs = strategy.programs(mine)
        resident = Resident(mine, programs, client, Versions(programs.memory, tmp_path / str(client)))
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
        got = play(problem, Elsewhere(strategy), ROUNDS, executor=Remote(listener))
    finally:
        listener.close()
        for thread in threads:
            thread.join(10.0)
    assert_same(got, play(problem, strategy, ROUNDS))


def test_over_ray() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'fedopt[ray]'")
    from fedopt.engine.ray import Ray

    problem, strategy = problem_of(torch.float64), made("egvfl", {}, None, "float64")
    executor = Ray("serial", workers=2)
    try:
        got = play(problem, strategy, ROUNDS, executor=executor)
    finally:
        executor.close()
    assert_same(got, play(problem, strategy, ROUNDS))
