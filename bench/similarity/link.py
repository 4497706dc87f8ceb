"""A run of C-AEG over the link, a process for each client, TLS on loopback: seconds to the gap.

    python -m bench.similarity.link [--method c-aeg]

Ridge regression on a9a with two groups and 20 clients. The figure is stored in bench/cells/similarity-link.json, beside
that of the simulation, and stands in docs/similarity.md. Needs FEDOPT_DATA with libsvm/a9a, and fedopt[deploy].
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.processes import ROOT
from bench.similarity import cases, page, runs
from bench.similarity.cases import Task
from fedopt import keys
from fedopt.engine.loop import Executor, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.setup import Setup
from fedopt.types import Strategy

TASK = Task("a9a", "squares", 20, "columns")
RUN, LIBRARY = "bench", "0"
STORED = ROOT / "bench" / "cells" / "similarity-link.json"


def played(setup: Setup, strategy: Strategy, executor: Executor) -> dict[str, Any]:
    """Rounds and seconds until the gap is reached; the gap is computed beside, and its seconds do not count."""
    value, _ = runs.objective(TASK)
    least = runs.optimum(TASK)
    first = float(value(torch.zeros(setup.problem.d, dtype=torch.float64))) - least
    start = {name: torch.zeros_like(v) for name, v in setup.problem.initial.items()}
    problem, key = setup.problem._replace(initial=start), keys.root(1)
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(key, "init"))
    looking, started, gap = 0.0, time.perf_counter(), float("inf")
    for step in exchanges(problem, strategy, executor, setup.adversary, memory, state, key):
        state, looked = step.state, time.perf_counter()
        model = strategy.model(problem, state)
        assert model is not None
        gap = (float(value(model["params"])) - least) / first
        looking += time.perf_counter() - looked
        if gap <= runs.GOAL or step.state.round >= 5000:
            break
    seconds = time.perf_counter() - started - looking
    counted = getattr(state, "counted", None)
    digest = float(model["params"].double().sum())
    return {"seconds": seconds, "rounds": state.round, "gap": gap, "sum": digest, "counted": counted}


def over_the_link(method: str) -> dict[str, Any]:
    """With a process for each client."""
    from fedopt.engine.remote import Elsewhere, Remote
    from fedopt.wire import authority
    from fedopt.wire.link import Keys, Listener
    from fedopt.wire.roster import Roster

    torch.set_num_threads(1)
    setup = cases.setup(TASK, method)
    ca = authority.authority("bench")
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "ca.pem"
        pem.write_bytes(ca.certificate)
        roster = Roster(RUN, LIBRARY, TASK.clients)
        listener = Listener(roster, keys=Keys(*authority.server(ca, ["localhost"])))
        port = listener.start()
        workers = []
        for client in range(TASK.clients):
            secret = roster.expect(f"node{client}").hex()
            command = [sys.executable, "-m", "bench.similarity.link", "--client", str(client), "--port", str(port)]
            worker = subprocess.Popen(
                [*command, "--pem", str(pem), "--folder", f"{folder}/{client}", "--method", method],
                stdin=subprocess.PIPE, text=True, cwd=ROOT,
            )  # fmt: skip
            assert worker.stdin is not None
            worker.stdin.write(secret + "\n")
            worker.stdin.close()
            workers.append(worker)
        try:
            missing = listener.wait_for(range(TASK.clients), 400.0)
            if missing:
                raise RuntimeError(f"clients {missing} did not come")
            return played(setup, Elsewhere(setup.strategy), Remote(listener))
        finally:
            listener.close()
            for worker in workers:
                worker.wait(60.0)


def client(number: int, port: int, pem: str, folder: str, method: str) -> None:
    """One client, until the server is done."""
    from fedopt.engine.resident import Resident
    from fedopt.engine.versions import Versions
    from fedopt.wire.link import Identity, talk

    torch.set_num_threads(1)
    setup = cases.setup(TASK, method)
    programs = setup.strategy.programs(setup.problem)
    resident = Resident(setup.problem, programs, number, Versions(programs.memory, Path(folder)))
    secrets = [bytes.fromhex(sys.stdin.readline())]
    identity = Identity(RUN, LIBRARY, number, f"node{number}")
    talk(
        f"localhost:{port}", identity, lambda: secrets[-1], secrets.append, resident.answer,
        limit=resident.limit, root=Path(pem).read_bytes(),
    )  # fmt: skip


def main() -> None:
    """Measure and store."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--method", default="c-aeg", choices=list(cases.TWO))
    arguments.add_argument("--client", type=int)
    arguments.add_argument("--port", type=int)
    arguments.add_argument("--pem")
    arguments.add_argument("--folder")
    given = arguments.parse_args()
    if given.client is not None:
        client(given.client, given.port, given.pem, given.folder, given.method)
        return
    setup = cases.setup(TASK, given.method)
    found = {"simulated": played(setup, setup.strategy, setup.executor), "link": over_the_link(given.method)}
    STORED.write_text(json.dumps(found, indent=1) + "\n")
    Console().print(found)
    page.write()


if __name__ == "__main__":
    main()
