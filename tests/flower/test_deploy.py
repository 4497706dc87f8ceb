"""`fedopt deploy`: a federation of its own processes, some of which are killed; who is refused; who is revoked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedopt[flower]'")

from fedopt import config as configs
from fedopt.deploy import folder as folders
from fedopt.deploy.join import refusal
from fedopt.deploy.processes import alive
from fedopt.deploy.serve import environment
from fedopt.wire import superlink
from tests.flower.conftest import BIN, CLIENTS, ROOT, free_ports

FEDOPT = str(Path(sys.executable).with_name("fedopt"))


class Deployed:
    """A federation in a folder, with `serve` and `join` as processes."""

    def __init__(self, folder: Path, changes: tuple[str, ...]) -> None:
        self.folder = folder
        port, link_port, self.monitor_port = free_ports(3)
        read = configs.load(ROOT / "configs" / "quickstart.toml", [*CHANGES, *changes])
        # an image needs a wheel, a test of processes none
        empty = folder.parent / "fedopt-0-py3-none-any.whl"
        empty.touch()
        folders.create(
            folder, read, CLIENTS, host="localhost", port=port, link_port=link_port, monitor_port=self.monitor_port,
            wheel=empty,
        )  # fmt: skip
        self.server = folder / "server"
        self.run = self.server / "experiments" / f"1-{read.run.name}"
        self.log = self.run / "run" / "server.log"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*before, FEDOPT, "deploy", *words], stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return self.processes[name]

    def serve(self) -> None:
        self.start("serve", "serve", "server")

    def join(self, clients: int = CLIENTS) -> None:
        for client in range(clients):
            self.start(f"client{client}", "join", f"clients/{client}")

    def exchanges(self) -> int:
        try:
            return len((self.run / "run" / "metrics.jsonl").read_text().splitlines())
        except OSError:
            return 0

    def status(self) -> str:
        try:
            return str(json.loads((self.run / "run" / "run.json").read_text())["status"])
        except (OSError, ValueError):
            return ""

    def until(self, what: Callable[[], bool], seconds: float) -> float:
        """Wait for it; how many seconds that took."""
        began = time.monotonic()
        while not what():
            assert time.monotonic() - began < seconds, self.told()
            time.sleep(0.1)
        return time.monotonic() - began

    def told(self) -> str:
        paths = [*self.folder.glob("*.log"), self.log, self.server / "state" / "superlink.log"]
        return "\n".join(f"== {path}\n{path.read_text()[-1500:]}" for path in paths if path.exists())

    def server_app(self) -> int:
        try:
            pid = int((self.run / "server.pid").read_text())
        except (OSError, ValueError):
            return 0
        return pid if alive(pid) else 0

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


CHANGES = (
    f"data.clients={CLIENTS}", f"participation.count={CLIENTS}", "executor.name=serial", "run.checkpoint_every=1",
    "run.evaluate_every=20", "run.evaluate_clients_every=0", "deploy.patience_s=300", "strategy.epochs=1",
)  # fmt: skip


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Callable[..., Deployed]]:
    made: list[Deployed] = []

    def make(*changes: str) -> Deployed:
        made.append(Deployed(tmp_path / "federation", changes))
        return made[-1]

    yield make
    for one in made:
        one.end()


def children(pid: int) -> list[int]:
    """All below a process."""
    below = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*below, *(deeper for one in below for deeper in children(one))]


def named(pid: int, name: str) -> int:
    """The process of this name below another."""
    for one in children(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
            if any(word.split(b"/")[-1] == name.encode() for word in words[:3]):
                return one
    return 0


@pytest.mark.slow
def test_whoever_dies_the_model_is_the_same(deployed: Any, simulated: Any, capsys: Any) -> None:
    """Client app, SuperLink and server app are killed one after another; the run ends as if nothing had been."""
    changes = ("run.rounds=150",)
    here = deployed(*changes)
    here.serve()
    here.join()
    here.until(lambda: here.exchanges() >= 5, 240.0)

    serve, client = here.processes["serve"].pid, here.processes["client1"].pid

    def workers() -> list[int]:
        """The process that keeps the one that works, and that one."""
        return [one for one in children(client) if b"fedopt.worker" in Path(f"/proc/{one}/cmdline").read_bytes()]

    took = {}
    for which, name in ((1, "worker"), (0, "worker and what keeps it")):
        there = here.log.read_text().count("client 1 is there")
        os.kill(workers()[which], signal.SIGKILL)
        took[name] = here.until(lambda there=there: here.log.read_text().count("client 1 is there") > there, 60.0)

    before = here.exchanges()
    os.kill(link := named(serve, "fedopt.wire.superlink"), signal.SIGKILL)
    took["superlink"] = here.until(lambda: named(serve, "fedopt.wire.superlink") not in (0, link), 60.0)
    app = here.server_app()
    here.until(lambda: here.exchanges() > before + 5, 60.0)
    assert here.server_app() == app, "the server app went on"

    there = here.log.read_text().count("client 1 is there")
    os.kill(named(client, "flwr-clientapp"), signal.SIGKILL)
    took["client app"] = here.until(lambda: here.log.read_text().count("client 1 is there") > there, 150.0)

    here.until(lambda: here.exchanges() > before + 5, 120.0)
    assert here.status() == "running", "it is not over before the server app is killed"
    os.kill(here.server_app(), signal.SIGKILL)
    before = here.exchanges()
    took["server app"] = here.until(lambda: here.exchanges() > before, 180.0)
    here.until(lambda: here.status() == "finished", 300.0)
    with capsys.disabled():
        print("\nseconds until it went on:", {name: round(value, 1) for name, value in took.items()})

    wanted = simulated((*CHANGES, *changes))
    run = here.run / "run"
    assert (run / "model.safetensors").read_bytes() == (wanted / "model.safetensors").read_bytes()
    here.until(lambda: (run / "report.html").exists(), 30.0)


@pytest.mark.slow
def test_a_revoked_client_is_cut_off_and_another_experiment_runs(deployed: Any) -> None:
    here = deployed("run.rounds=100000", "deploy.patience_s=5")
    here.serve()
    here.join()
    here.until(lambda: here.exchanges() >= 5, 180.0)
    folders.revoke(here.server, 2)
    here.until(lambda: "client 2 is gone" in here.log.read_text(), 30.0)
    before = here.exchanges()
    here.until(lambda: here.exchanges() > before + 3, 90.0)
    assert here.log.read_text().count("client 2 is there") == 1, "it did not come back"
    here.until(lambda: "client 2 is revoked" in (here.folder / "serve.log").read_text(), 30.0)

    here.end()
    changed = (here.run / "config.toml").read_text().replace("rounds = 100000", f"rounds = {here.exchanges() + 5}")
    (here.run / "config.toml").write_text(changed)
    second = configs.load(ROOT / "configs" / "quickstart.toml", [*CHANGES, "run.rounds=3", "deploy.patience_s=5"])
    folder = folders.submit(here.server, second, "second")
    here.start("serve", "serve", "server", "--once")
    here.join(2)
    assert here.processes["serve"].wait(240.0) == 0
    for run in (here.run, folder):
        assert json.loads((run / "run" / "run.json").read_text())["status"] == "finished", here.told()


@pytest.mark.slow
def test_outsiders_are_told_why_and_counted(deployed: Any) -> None:
    """A key that is not registered, none at all, another authority, a clock that is wrong, no TLS, and at last a server
    whose certificate has expired."""
    from fedopt.wire import authority

    here = deployed("run.rounds=2")
    here.serve()
    here.until(lambda: len(enrolled(here)) == CLIENTS, 90.0)

    def outcome(client: int, *before: str) -> tuple[int, str]:
        process = here.start(f"client{client}", "join", f"clients/{client}", "--patience", "0", before=before)
        status = process.wait(120.0)
        return status, " ".join((here.folder / f"client{client}.log").read_text().split())

    def counts() -> dict[str, int]:
        return superlink.read(here.server / "state" / "refused.json")

    private, _ = authority.node_key()
    (here.folder / "clients" / "0" / "node.key").write_bytes(private)
    status, said = outcome(0)
    assert status == 4 and "refuses client 0" in said and "registered" in said, said
    assert counts() == {"unregistered": 1}

    program = [
        str(BIN / "flower-supernode"), "--superlink", f"localhost:{folders.federation(here.server).port}",
        "--root-certificates", str(here.server / "ca.pem"), "--max-retries", "2", "--port", str(free_ports(1)[0]),
    ]  # fmt: skip
    output = here.folder / "no-key.log"  # a pipe would be held open by what it starts
    with output.open("wb") as file:
        done = subprocess.run(
            program, env=environment(here.folder / "home"), stdout=file, stderr=file, timeout=120.0, check=False
        )
    assert done.returncode and refusal(output.read_text()), output.read_text()
    assert counts()["unregistered"] > 1

    other = authority.authority("another")
    ours = (here.folder / "clients" / "1" / "ca.pem").read_bytes()
    (here.folder / "clients" / "1" / "ca.pem").write_bytes(other.certificate)
    status, said = outcome(1)
    assert status == 4 and "not from this federation's authority" in said, said
    assert counts()["authority"] >= 1
    (here.folder / "clients" / "1" / "ca.pem").write_bytes(ours)

    if shutil.which("faketime"):
        status, said = outcome(1, "faketime", "-f", "+30m")
        assert status == 4 and "clock" in said, said
        assert counts()["unauthenticated"] >= 1

    with socket.create_connection(("127.0.0.1", folders.federation(here.server).port), 5.0) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in plain.recv(1000)
    assert "somebody did not come in" in (here.folder / "serve.log").read_text()

    here.end()
    trusted = authority.Signed(*((here.folder / "authority" / name).read_bytes() for name in ("ca.key", "ca.pem")))
    key, chain = authority.server(trusted, ["localhost", "127.0.0.1"], days=-1)
    (here.server / "server.key").write_bytes(key)
    (here.server / "server.pem").write_bytes(chain)
    server = here.start("serve", "serve", "server")
    here.until(lambda: "Uvicorn running" in (here.server / "state" / "superlink.log").read_text()[-600:], 60.0)
    status, said = outcome(2)
    assert status == 4 and "expired" in said, said
    assert counts()["expired"] >= 1
    assert server.wait(90.0) != 0, "a server that its own clients cannot trust says so, and ends"
    assert "expired" in (here.folder / "serve.log").read_text()


def enrolled(here: Deployed) -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads((here.server / "state" / "enrolled.json").read_text())
    except (OSError, ValueError):
        return {}
    return found
