"""How long an exchange takes, with TLS, when clients say back what they hear.

    python -m bench.link --clients 8 --bytes 19000 [--exchanges 30] [--through processes|flower|messages]

    processes   over the link; the clients are processes that speak its protocol and nothing else (`bench/echo.py`)
    flower      over the link; such a process for each client, started by a Flower ClientApp on a SuperNode of its own
    messages    Flower's own messages, which carry the same bytes to the same ClientApps

An exchange is as long as it takes until the last answer is there; the first ones do not count. The server's memory is
what its process grew by from the moment when every client was there and had answered once, to its peak: the message,
the answers, which are all kept until the last is there, and what lies in between. `--out` writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.processes import ROOT
from fedopt.wire import authority
from fedopt.wire.link import Keys, Listener
from fedopt.wire.roster import Roster

if TYPE_CHECKING:
    from fedopt.engine.remote import Carrier

WARM = 3
RUN, LIBRARY = "bench", "0"
JOIN_S = 180.0

Measured = dict[str, Any]


class Grown:
    """The most bytes that this process holds beyond what it holds now."""

    def __init__(self) -> None:
        self._before = _held("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def peak(self) -> int:
        """Bytes, so far."""
        return _held("VmHWM") - self._before


def _held(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(what)))


def exchanged(carrier: Carrier, number: int, clients: int, message: bytes) -> tuple[float, int]:
    """Seconds of an exchange with everybody, and how many answers are missing or not what was said."""
    started = time.perf_counter()
    answers = dict(carrier.ask(number, range(clients), lambda row: message, len(message)))
    took = time.perf_counter() - started
    return took, sum(answer != message for answer in answers.values())


def measured(carrier: Carrier, clients: int, nbytes: int, exchanges: int, warm: int = WARM) -> Measured:
    """Seconds of each exchange, and what the server's memory grew by."""
    exchanged(carrier, 0, clients, b"x")
    grown = Grown()
    message, seconds = os.urandom(nbytes), []
    for number in range(1, 1 + warm + exchanges):
        took, wrong = exchanged(carrier, number, clients, message)
        if wrong:
            raise RuntimeError(f"{wrong} answers are not what was said")
        seconds.append(took)
    return {"seconds": seconds[warm:], "grown": grown.peak()}


@contextlib.contextmanager
def listening(clients: int, pem: Path, keys: Keys) -> Iterator[tuple[Listener, Callable[[int], str]]]:
    """A listener, and the line of a client for `bench/echo.py`."""
    roster = Roster(RUN, LIBRARY, clients)
    listener = Listener(roster, keys=keys)
    listener.start()
    try:
        yield listener, lambda c: f"{c} node{c} {roster.expect(f'node{c}').hex()} {RUN} {LIBRARY}\n"
    finally:
        listener.close()


def echoing(port: int, pem: Path, lines: Sequence[str]) -> subprocess.Popen[str]:
    """A process with an echoing client for each line."""
    command = [sys.executable, str(ROOT / "bench" / "echo.py"), f"localhost:{port}", str(pem)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    worker.stdin.writelines(lines)
    worker.stdin.close()
    return worker


@contextlib.contextmanager
def echoes(
    listener: Listener, line: Callable[[int], str], pem: Path, clients: Sequence[int], processes: int
) -> Iterator[None]:
    """These clients in so many processes, which end with the listener."""
    lines = [line(client) for client in clients]
    workers = [echoing(listener.port, pem, lines[i::processes]) for i in range(min(processes, len(clients)))]
    try:
        yield
    finally:
        listener.close()
        for worker in workers:
            worker.wait(60.0)


def there(listener: Listener, clients: int) -> None:
    """Wait for everybody. Raises RuntimeError."""
    missing = listener.wait_for(range(clients), JOIN_S)
    if missing:
        raise RuntimeError(f"clients {missing} did not come")


def by_processes(clients: int, nbytes: int, exchanges: int, processes: int) -> Measured:
    """The figures over the link, with clients in processes."""
    ca = authority.authority("bench")
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "ca.pem"
        pem.write_bytes(ca.certificate)
        with (
            listening(clients, pem, Keys(*authority.server(ca, ["localhost"]))) as (listener, line),
            echoes(listener, line, pem, range(clients), processes),
        ):
            there(listener, clients)
            return measured(listener, clients, nbytes, exchanges)


APP = """\
[project]
name = "echo"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedopt"

[tool.flwr.app.components]
serverapp = "echo:server"
clientapp = "echo:client"

[tool.flwr.app.config]
"""


def by_flower(nodes: int, task: str, **settings: Any) -> Measured:
    """What `task`, "module:function" of (grid, settings), finds in the ServerApp of a federation.

    It has so many SuperNodes, TLS and registered keys.
    """
    from tests.flower.conftest import Flower

    with tempfile.TemporaryDirectory() as folder:
        app, out = Path(folder) / "echo", Path(folder) / "found.json"
        app.mkdir()
        flower = Flower(Path(folder))
        flower.env |= {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}  # as `fedopt deploy serve` has it
        try:
            flower.deploy(nodes)
            given = {"task": task, "out": str(out), "folder": folder, "nodes": nodes, **settings}
            (app / "pyproject.toml").write_text(
                APP + "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())
            )
            (app / "echo.py").write_text(
                "from bench.link import client_app, server_app\n\nclient = client_app()\nserver = server_app()\n"
            )
            flower.app = app
            done = flower.flwr("run", ".", "test", "--stream", timeout=settings.get("seconds", 0.0) + 1800.0)
            if not out.exists():
                raise RuntimeError(f"the ServerApp found nothing: {done.stdout[-3000:]}{done.stderr[-1000:]}")
            found: Measured = json.loads(out.read_text())
            return found
        finally:
            flower.end()


def server_app() -> Any:
    """A ServerApp that does the task of its run config and writes what it found."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        settings = dict(context.run_config)
        module, name = str(settings["task"]).split(":")
        found = getattr(importlib.import_module(module), name)(grid, settings)
        draft = Path(str(settings["out"]) + ".draft")
        draft.write_text(json.dumps(found))
        draft.replace(str(settings["out"]))

    app.main()(main)
    return app


def end_with(parent: int) -> None:
    """End this process when its parent is gone: a ServerApp outlives its SuperLink."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def client_app() -> Any:
    """A ClientApp whose clients echo, over the link or by Flower's messages."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def reply(to: Message, **said: Any) -> Message:
        return Message(RecordDict({"fedopt": ConfigRecord(said)}), reply_to=to)

    def who(message: Message, context: Context) -> Message:
        return reply(message, client=int(context.node_config["partition-id"]))

    def join(message: Message, context: Context) -> Message:
        asked: Any = message.content["fedopt"]
        line = asked["lines"][int(context.node_config["partition-id"])]
        return reply(message, status=echoing(asked["port"], Path(asked["pem"]), [line]).wait())

    def exchange(message: Message, context: Context) -> Message:
        return reply(message, message=message.content["fedopt"]["message"])

    app.query("who")(who)
    app.query("join")(join)
    app.query("exchange")(exchange)
    return app


@contextlib.contextmanager
def joined(grid: Any, nodes: int, pem: Path, listener: Listener, line: Callable[[int], str]) -> Iterator[None]:
    """The first clients, one on each SuperNode, come by a Flower message; it is answered when the listener ends."""
    from flwr.app import ConfigRecord, Message, RecordDict

    until = time.monotonic() + JOIN_S
    while len(list(grid.get_node_ids())) < nodes and time.monotonic() < until:
        time.sleep(0.5)
    asked = {"port": listener.port, "pem": str(pem), "lines": [line(client) for client in range(nodes)]}
    waiting = set(
        grid.push_messages(
            [Message(RecordDict({"fedopt": ConfigRecord(asked)}), node, "query.join") for node in grid.get_node_ids()]
        )
    )
    try:
        yield
    finally:
        listener.close()
        until = time.monotonic() + 60.0
        while waiting and time.monotonic() < until:
            waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(list(waiting))}
            time.sleep(0.2)


def over_the_link(grid: Any, settings: dict[str, Any]) -> Measured:
    """In a ServerApp: the figures of the link."""
    folder, nodes = Path(settings["folder"]), settings["nodes"]
    keys = Keys((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    pem = folder / "ca.pem"
    with listening(nodes, pem, keys) as (listener, line), joined(grid, nodes, pem, listener, line):
        there(listener, nodes)
        return measured(listener, nodes, settings["bytes"], settings["exchanges"])


def over_messages(grid: Any, settings: dict[str, Any]) -> Measured:
    """In a ServerApp: the figures of Flower's messages."""
    from server.nodes import ByMessages

    carrier = ByMessages(grid, "", settings["nodes"], JOIN_S, 600.0)
    return measured(carrier, settings["nodes"], settings["bytes"], settings["exchanges"], warm=1)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--bytes", type=int, default=19_000)
    arguments.add_argument("--exchanges", type=int, default=30)
    arguments.add_argument("--through", choices=("processes", "flower", "messages"), default="processes")
    arguments.add_argument("--processes", type=int, default=8, help="the clients are spread over so many")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    if given.through == "processes":
        found = by_processes(given.clients, given.bytes, given.exchanges, given.processes)
    else:
        task = "bench.link:over_the_link" if given.through == "flower" else "bench.link:over_messages"
        found = by_flower(given.clients, task, bytes=given.bytes, exchanges=given.exchanges)
    took, load = sorted(1e3 * s for s in found["seconds"]), os.getloadavg()[0]
    print(
        f"{given.clients} clients, {given.bytes} bytes, {given.through}: median {statistics.median(took):.2f} ms"
        f" ({took[0]:.2f} to {took[-1]:.2f}, {len(took)} exchanges); server grew by"
        f" {found['grown'] / 1e6:.1f} MB at its peak, {found['grown'] / given.bytes:.1f} messages; load {load:.1f}"
    )
    if given.out is not None:
        about = {"clients": given.clients, "bytes": given.bytes, "through": given.through, "load": load}
        given.out.write_text(json.dumps({**about, **found}) + "\n")


if __name__ == "__main__":
    main()
