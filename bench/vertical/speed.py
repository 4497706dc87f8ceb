"""Iterations per second of EGVFL on a9a with five parties: simulated, and over the link with a process for each party.

    python -m bench.vertical.speed [--rounds 300] [--link]

Beside it the floor, measured in the same sitting: the time of the bare products of an iteration (four with each block),
the bytes of all blocks that these read at the speed at which this machine copies, and over the link the time of two
exchanges of as many bytes in which processes say back what they hear.

Figures are stored in bench/results/, and stand in docs/vfl.md. Needs FEDOPT_DATA with libsvm/a9a, and for --link
fedopt[deploy].
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from bench import machine
from bench.processes import ROOT
from bench.run import store
from bench.vertical import page
from fedopt import config as configs
from fedopt import keys
from fedopt import setup as setups
from fedopt.engine.loop import Executor, exchanges
from fedopt.engine.memory import ClientMemory
from fedopt.setup import Setup
from fedopt.types import Strategy

PARTIES = 5
WARM = 5
"""Iterations that do not count."""
RUN, LIBRARY = "bench", "0"


def made(executor: str = "serial") -> Setup:
    """The experiment, the same at both ends."""
    return setups.build(
        configs.load(
            {
                "run": {"rounds": 10**6},
                "data": {"name": "libsvm", "file": "libsvm/a9a", "features": 123, "clients": PARTIES},
                "model": {"name": "logistic", "bias": False},
                "strategy": {"name": "egvfl", "l2": 1e-2},
                "executor": {"name": executor},
            }
        )
    )


def timed(setup: Setup, strategy: Strategy, executor: Executor, rounds: int) -> dict[str, float]:
    """Seconds per iteration, and in what part of an exchange they were spent."""
    problem = setup.problem
    memory = ClientMemory(strategy.programs(problem).memory, problem.clients)
    state = strategy.init(problem, keys.fold(setup.key, "init"))
    steps = exchanges(problem, strategy, executor, setup.adversary, memory, state, setup.key)
    spent: dict[str, float] = {}
    started = 0.0
    for step in steps:
        if step.state.round >= WARM and not started:
            started, spent = time.perf_counter(), {}
        for name, seconds in step.seconds.items():
            spent[name] = spent.get(name, 0.0) + seconds
        if step.state.round >= WARM + rounds:
            break
    whole = (time.perf_counter() - started) / rounds
    return {"per iteration": whole, **{name: seconds / rounds for name, seconds in spent.items()}}


def simulated(rounds: int) -> dict[str, Any]:
    """In this process, with one thread, by either executor."""
    torch.set_num_threads(1)
    found = {}
    for executor in ("stacked", "serial"):
        setup = made(executor)
        found[executor] = timed(setup, setup.strategy, setup.executor, rounds)
    x = setup.problem.data.splits["train"].x
    # each of the two exchanges multiplies with a block and with its transpose
    read = 4 * x.nbytes
    return {
        "executors": found,
        "operations": 2 * 4 * x.numel(),
        "read": read,
        "reading": read / (machine.limits()["copy_gb_per_s_1"] * 1e9),
        "products": products(x.unflatten(0, (PARTIES, -1))),
    }


def products(blocks: Tensor) -> float:
    """Seconds of an iteration's products and nothing else; blocks `[n, m, d]`."""
    x, y = torch.randn(blocks.shape[2]), torch.randn(blocks.shape[1])

    def work() -> None:
        for _ in range(2):
            for block in blocks:
                torch.mv(block, x)
                torch.mv(block.T, y)

    return machine.best(work, 20)


def over_the_link(rounds: int) -> dict[str, Any]:
    """With a process for each party, TLS on loopback."""
    from bench.link import by_processes
    from fedopt.engine.remote import Elsewhere, Remote
    from fedopt.wire import authority
    from fedopt.wire.link import Keys, Listener
    from fedopt.wire.roster import Roster

    torch.set_num_threads(1)
    setup = made()
    ca = authority.authority("bench")
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "ca.pem"
        pem.write_bytes(ca.certificate)
        roster = Roster(RUN, LIBRARY, PARTIES)
        listener = Listener(roster, keys=Keys(*authority.server(ca, ["localhost"])))
        port = listener.start()
        workers = []
        for client in range(PARTIES):
            secret = roster.expect(f"node{client}").hex()
            command = [sys.executable, "-m", "bench.vertical.speed", "--client", str(client), "--port", str(port)]
            worker = subprocess.Popen(
                [*command, "--pem", str(pem), "--folder", f"{folder}/{client}"], stdin=subprocess.PIPE, text=True,
                cwd=ROOT,
            )  # fmt: skip
            assert worker.stdin is not None
            worker.stdin.write(secret + "\n")
            worker.stdin.close()
            workers.append(worker)
        try:
            missing = listener.wait_for(range(PARTIES), 180.0)
            if missing:
                raise RuntimeError(f"parties {missing} did not come")
            found = timed(setup, Elsewhere(setup.strategy), Remote(listener), rounds)
        finally:
            listener.close()
            for worker in workers:
                worker.wait(60.0)
    outputs = 4 * int(setup.problem.data.splits["train"].sizes[0])
    echoed = by_processes(PARTIES, outputs, rounds, PARTIES)["seconds"]
    # of each party, outputs up and multipliers down in each of two exchanges
    return {"parts": found, "bytes": 4 * PARTIES * outputs, "echo": 2.0 * statistics.median(echoed)}


def party(client: int, port: int, pem: str, folder: str) -> None:
    """One party, until the server is done."""
    from fedopt.engine.resident import Resident
    from fedopt.engine.versions import Versions
    from fedopt.wire.link import Identity, talk

    torch.set_num_threads(1)
    setup = made()
    programs = setup.strategy.programs(setup.problem)
    resident = Resident(setup.problem, programs, client, Versions(programs.memory, Path(folder)))
    secrets = [bytes.fromhex(sys.stdin.readline())]
    identity = Identity(RUN, LIBRARY, client, f"node{client}")
    talk(
        f"localhost:{port}", identity, lambda: secrets[-1], secrets.append, resident.answer,
        limit=resident.limit, root=Path(pem).read_bytes(),
    )  # fmt: skip


def main() -> None:
    """Measure and store."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=300)
    arguments.add_argument("--link", action="store_true")
    arguments.add_argument("--client", type=int)
    arguments.add_argument("--port", type=int)
    arguments.add_argument("--pem")
    arguments.add_argument("--folder")
    given = arguments.parse_args()
    if given.client is not None:
        party(given.client, given.port, given.pem, given.folder)
        return
    found = over_the_link(given.rounds) if given.link else simulated(given.rounds)
    store("vertical.link" if given.link else "vertical.simulated", {**found, "rounds": given.rounds})
    Console().print(found)
    page.write()


if __name__ == "__main__":
    main()
