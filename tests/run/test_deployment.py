"""An experiment with real client processes over the link: the numbers of its simulation, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

import fedopt
from fedopt import config as configs
from fedopt import setup as setups
from fedopt.deployment import Invitation, at_client, at_server, experiment_id, invited
from fedopt.execution import Result, execute
from fedopt.registry import ConfigError
from fedopt.types import WireError
from fedopt.wire import authority
from fedopt.wire.link import Keys, Listener
from fedopt.wire.roster import Roster
from fedopt.worker import LIVED_S, LOST, REFUSED

ROOT = Path(fedopt.__file__).parents[1]
CLIENTS = 3
Small = Callable[..., dict[str, Any]]

ISP = {"name": "uniform", "count": {"name": "isp", "start": 2, "warmup": 1, "period": 2, "pool_factor": 1.5}}
METHODS: dict[str, dict[str, Any]] = {
    "scaffold": {"strategy.name": "scaffold"},
    "topk with ef21": {"compression": {"name": "topk", "share": 0.1, "feedback": "ef21"}},
    "own attack": {"attack": [{"name": "gaussian", "sigma": 0.1, "around": "own", "clients": [1]}]},
    "isp": {"participation": ISP, "data.trial_samples": 100},
}


class Federation:
    """A listener and the processes of its clients, until the end of the test."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder, self.config = folder, configs.load(document)
        self.ca = authority.authority("test")
        self.keys = Keys(*authority.server(self.ca, ["localhost"]))
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.started: list[subprocess.Popen[str]] = []
        self.invitations: dict[int, Invitation] = {}
        self.listener = self.listening("run 1")

    def listening(self, run: str, address: str = "127.0.0.1:0") -> Listener:
        listener = Listener(Roster(run, invited(self.config, "x").library, CLIENTS), address,
                            self.keys, deadline_s=60.0, patience_s=60.0)  # fmt: skip
        listener.start()
        return listener

    def invite(self, client: int, out: Path, **changes: Any) -> Invitation:
        roster = self.listener.roster
        given = {
            "run": roster.run,
            "node": f"node {client}",
            "address": f"localhost:{self.listener.port}",
            "authority": self.ca.certificate.decode(),
            "token": roster.expect(f"node {client}").hex(),
            "reconnect_s": 30.0,
            **changes,
        }
        self.invitations[client] = invited(self.config, experiment_id(out), **given)
        return self.invitations[client]

    def start(self, client: int) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "fedopt.worker",
            "--client",
            str(client),
            "--state",
            str(self.folder / "state"),
        ]
        worker = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert worker.stdin is not None
        worker.stdin.write(self.invitations[client].write() + "\n")
        worker.stdin.flush()
        self.workers[client] = worker
        self.started.append(worker)
        return worker

    def gather(self, out: Path) -> None:
        for client in range(CLIENTS):
            self.invite(client, out)
            self.start(client)
        assert self.listener.wait_for(range(CLIENTS), 60.0) == []

    def run(self, out: Path, resume: bool = False, callback: Callable[[Any], Any] = lambda line: None) -> Result:
        setup = at_server(setups.build(self.config), self.listener)
        return execute(setup, out, resume=resume, callbacks=[callback])

    def end(self) -> None:
        self.listener.close()
        for worker in self.started:
            worker.kill()
            worker.wait()
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.close()
            worker.stdout.close()


@pytest.fixture
def federation(tmp_path: Path, small: Small) -> Iterator[Callable[[dict[str, Any]], Federation]]:
    made: list[Federation] = []

    def make(changes: dict[str, Any]) -> Federation:
        document = small({"data.clients": CLIENTS, "participation": None, "run.rounds": 5, "run.checkpoint_every": 2,
                          "run.evaluate_clients_every": 0, "executor": "serial", **changes})  # fmt: skip
        made.append(Federation(tmp_path, document))
        return made[-1]

    yield make
    for one in made:
        one.end()


def compared(tmp_path: Path, federation: Federation) -> None:
    """The deployed run's model and record against the simulation's."""
    simulated = fedopt.run(federation.config, out=tmp_path / "simulated").path
    assert (simulated / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
    records = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (simulated, tmp_path / "run")
    ]
    for one, other in zip(*records, strict=True):
        for key in one.keys() - {"seconds", "elapsed"}:
            assert one[key] == other[key], key


@pytest.mark.parametrize(
    "method", ["topk with ef21", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "topk with ef21")]
)
def test_a_deployed_run_is_its_simulation(method: str, federation: Any, tmp_path: Path) -> None:
    made = federation(METHODS[method])
    made.gather(tmp_path / "run")
    assert made.run(tmp_path / "run").status == "finished"
    made.listener.close()
    for worker in made.workers.values():
        assert worker.wait(20.0) == 0 and worker.stdout.read().strip() == "the run is over"
    compared(tmp_path, made)


def taking_part(worker: subprocess.Popen[str]) -> int:
    """The process that a worker works in."""
    (child,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize(
    "how",
    ["killed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("killed with its parent", "stopped"))],
)
def test_a_client_that_dies_or_hangs_comes_back_and_nothing_is_lost(how: str, federation: Any, tmp_path: Path) -> None:
    made = federation({"strategy.name": "scaffold", "strategy.steps": 20})
    made.gather(tmp_path / "run")
    time.sleep(LIVED_S if how == "killed" else 0.0)
    victim = made.workers[1]
    first = taking_part(victim)

    def strike(line: dict[str, Any]) -> None:
        if line["exchange"] != 1:
            return
        if how == "killed":
            os.kill(first, signal.SIGKILL)
            return
        if how == "stopped":
            os.kill(first, signal.SIGSTOP)
        else:
            os.kill(victim.pid, signal.SIGKILL)

        def again() -> None:
            if how == "stopped":
                time.sleep(1.5)
                os.kill(first, signal.SIGCONT)
            else:
                victim.wait()
                made.start(1)

        threading.Thread(target=again, daemon=True).start()

    assert made.run(tmp_path / "run", callback=strike).status == "finished"
    if how == "killed":
        assert victim.poll() is None and taking_part(victim) != first, "another process took its place"
    compared(tmp_path, made)


def test_a_server_that_dies_goes_on_from_its_checkpoint(federation: Any, tmp_path: Path) -> None:
    """The checkpoint that it goes on from is older than what the clients have."""
    made = federation({"strategy.name": "scaffold"})
    made.gather(tmp_path / "run")

    class Dies(BaseException):
        pass

    def strike(line: dict[str, Any]) -> None:
        if line["exchange"] == 2:  # the last checkpoint is that of exchange 1
            raise Dies

    with pytest.raises(Dies):
        made.run(tmp_path / "run", callback=strike)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("[0-9]*"))[-1]
    if int(newest.name) > 2:  # what ended in an orderly way left a newer one; a process that is killed does not
        for path in newest.iterdir():
            path.unlink()
        newest.rmdir()
    made.listener.close("the server is started anew")
    for worker in made.workers.values():
        worker.wait(20.0)
    made.listener = made.listening("run 2")
    made.gather(tmp_path / "run")
    assert made.run(tmp_path / "run", resume=True).status == "finished"
    compared(tmp_path, made)


def test_who_is_refused_or_finds_nobody_says_why(federation: Any, tmp_path: Path) -> None:
    made = federation({})
    made.invite(0, tmp_path / "run", token="00" * 32)
    made.invite(1, tmp_path / "run", address="localhost:1", reconnect_s=0.2)
    made.invite(2, tmp_path / "run")
    made.invitations[2] = made.invitations[2]._replace(library="0.0.1")
    ended = {client: made.start(client) for client in range(CLIENTS)}
    status = {client: (worker.wait(60.0), worker.stdout.read()) for client, worker in ended.items()}
    assert status[0][0] == REFUSED and "the token is not, or no longer" in status[0][1]
    assert status[1][0] == LOST and "was not reached for 0.2 s" in status[1][1]
    assert status[2][0] == REFUSED and "install the same version" in status[2][1]
    assert made.listener.counts["refused"] == 1


def test_what_a_deployment_cannot_have_is_refused(small: Small) -> None:
    for changes, key in [
        ({"attack": [{"name": "alie", "count": 2}]}, "attack.0.name"),
        ({"availability": {"share": 0.5}}, "availability"),
        ({"compression.down": {"name": "topk", "count": 10}}, "compression.down"),
    ]:
        setup = setups.build(configs.load(small(changes)))
        with pytest.raises(ConfigError) as error:
            at_server(setup, None)  # type: ignore[arg-type]
        assert error.value.where == key


def test_an_invitation_is_read_with_care(small: Small) -> None:
    given = invited(configs.load(small()), "abc", token="00")
    assert Invitation.read(given.write()) == given
    document = given._asdict()
    for wrong, reason in [
        ("", "this is none"),
        ("[]", "this is none"),
        ("x" * (1 << 21), "bytes at the most"),
        (json.dumps({**document, "library": "9"}), "the server has fedopt 9 and this client"),
        (json.dumps({**document, "more": 1}), "more is missing, unknown"),
        (json.dumps({**document, "token": 5}), "token is missing, unknown or of another kind"),
        (json.dumps({k: v for k, v in document.items() if k != "run"}), "run is missing"),
    ]:
        with pytest.raises(WireError, match=reason):
            Invitation.read(wrong)
    with pytest.raises(ConfigError, match="has 8 clients, and this one would be number 8"):
        at_client(given, 8)
    for name in ("../up", "", "a" * 65, "a/b"):
        with pytest.raises(WireError, match="letters and digits name an experiment"):
            at_client(given._replace(experiment=name), 0, Path("/nowhere"))
