"""The server's side of a federation: Flower's processes are kept, and experiments run one after another.

An experiment that is there is submitted to Flower. When its server app dies, the run that Flower had of it is ended and
another one submitted, which goes on from the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from fedopt.deploy import folder as folders
from fedopt.deploy.processes import Kept, alive, command
from fedopt.engine.record import write_json
from fedopt.types import FedoptError
from fedopt.wire import superlink
from fedopt.wire.tail import read_json

log = logging.getLogger(__name__)

LOOK_S = 0.5

START_S = 120.0
"""In which a run that was submitted has to be a process."""

ATTEMPTS = 4
"""So many submissions in a row without one more exchange, and an experiment is given up."""

DONE = ("finished", "stopped")


class Attempt(NamedTuple):
    """A submission of an experiment to Flower."""

    experiment: str
    run: str
    """Flower's number of it."""
    exchanges: int
    """Whole ones before it."""
    tries: int
    """Submissions since the last one that got further."""
    at: float
    """Monotonic seconds."""


class FlowerFailed(FedoptError):
    """A command of Flower's did not do what it was for."""


def environment(state: Path) -> dict[str, str]:
    """Of Flower's programs."""
    return {
        **os.environ,
        # Flower starts its own programs by name
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FLWR_HOME": str(state / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "OMP_NUM_THREADS": "1",
        # each thread's own heap would keep what the most clients at once once took; see fedopt.wire.link
        "MALLOC_ARENA_MAX": "1",
    }


class Server:
    """A federation's server in its folder; `look` again and again, and `end`."""

    def __init__(self, folder: Path, metrics: str = "") -> None:
        self.folder, self.federation = folder.resolve(), folders.federation(folder)
        self.metrics = metrics
        self.state = self.folder / "state"
        self.env = environment(self.state)
        if self.federation.data:
            self.env["FEDOPT_DATA"] = self.federation.data
        self.attempt: Attempt | None = None
        self.given_up: set[str] = set()
        self.refused = superlink.read(self.state / "refused.json")
        self._stale = str(self._stored().get("run", ""))
        port, here = str(self.federation.port), str(self.folder)
        self._health = f"https://localhost:{port}/health"
        tls = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        self.superlink = Kept(
            [sys.executable, "-m", "fedopt.wire.superlink", str(self.state / "refused.json"),
             "--host", "0.0.0.0", "--port", port, *tls, "--enable-supernode-auth", "--database", "state/superlink.db",
             "--isolation", "process", "--disable-runtime-dependency-installation"],
            self.env, self.state / "superlink.log", self.folder,
        )  # fmt: skip
        self.superexec = Kept(
            ["flower-superexec", "--runtime-api-address", f"127.0.0.1:{port}", "--root-certificates", f"{here}/ca.pem"],
            self.env, self.state / "superexec.log", self.folder,
        )  # fmt: skip

    def start(self) -> None:
        """Start Flower's processes. Raises FedoptError where they do not answer."""
        home = self.state / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        connection = {"address": f"127.0.0.1:{self.federation.port}", "root-certificates": str(self.folder / "ca.pem")}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "fedopt", "fedopt": connection}}))
        self.superlink.look()
        until = time.monotonic() + 60.0
        while not self.healthy():
            if time.monotonic() > until or self.superlink.pid is None:
                why = ailing(self._health, self.folder / "ca.pem")
                raise FedoptError(
                    f"Flower's SuperLink does not answer on port {self.federation.port} ({why}): "
                    + self._words("superlink")
                )
            time.sleep(LOOK_S)
        self.superexec.look()

    def healthy(self) -> bool:
        """Whether the SuperLink answers."""
        return not ailing(self._health, self.folder / "ca.pem")

    def look(self) -> bool:
        """Start what died, enrol and revoke clients, go on with experiments; whether one is left."""
        if self.superlink.look():
            log.warning("the SuperLink was started again")
        self.superexec.look()
        self._refused()
        try:
            self._enrol()
            return self._attend()
        except FlowerFailed as error:  # the SuperLink may be starting
            log.warning("%s", error)
            time.sleep(2.0)
            return True

    def end(self) -> None:
        """End Flower's processes, and with them the server app."""
        self.superexec.end()
        self.superlink.end()

    def _refused(self) -> None:
        """Say who did not come in since the last look."""
        counts = superlink.read(self.state / "refused.json")
        for reason, number in counts.items():
            if number > self.refused.get(reason, 0):
                meaning = superlink.REASONS.get(reason, reason)
                log.warning("somebody did not come in, as %d before: %s", number - 1, meaning)
        self.refused = counts

    def _enrol(self) -> None:
        """Make Flower know the nodes whose keys are here, and no others."""
        keys = {int(path.stem): path for path in (self.folder / "keys").glob("*.pub")}
        enrolled, path = read_json(self.state / "enrolled.json"), self.state / "enrolled.json"
        for client in sorted(keys.keys() - set(enrolled.values())):
            said = self._flwr("supernode", "register", str(keys[client]), "fedopt")
            enrolled[str(said["node-id"])] = client
            write_json(path, enrolled)
            log.info("client %d is enrolled as node %s", client, said["node-id"])
        nodes = {node: client for node, client in enrolled.items() if client in keys}
        if nodes != read_json(self.state / "nodes.json"):
            write_json(self.state / "nodes.json", nodes)  # the server app invites these, and cuts off who is not here
        for node in enrolled.keys() - nodes.keys():
            log.warning("client %d is revoked", enrolled[node])
            try:
                self._flwr("supernode", "unregister", node, "fedopt")
            except FlowerFailed as error:
                if "not found" not in str(error).lower():
                    raise
            del enrolled[node]
            write_json(path, enrolled)

    def _attend(self) -> bool:
        """One step of the experiment whose turn it is."""
        for experiment in folders.experiments(self.folder):
            status = self._status(experiment)
            if status in DONE or experiment.name in self.given_up or (experiment / "given-up").exists():
                continue
            if self.attempt is None or self.attempt.experiment != experiment.name:
                self._submit(experiment, 1)
            else:
                self._go_on(experiment, self.attempt)
            return True
        return False

    def _go_on(self, experiment: Path, attempt: Attempt) -> None:
        pid = self._pid(experiment)
        if (pid is not None and alive(pid)) or (pid is None and time.monotonic() - attempt.at < START_S):
            return
        if self._status(experiment) in DONE:
            log.info("%s: %s", experiment.name, self._status(experiment))
            self.attempt = None
            return
        further = self._exchanges(experiment) > attempt.exchanges
        if not further and attempt.tries >= ATTEMPTS:
            words = self._words(experiment / "run" / "server.log")
            (experiment / "given-up").write_text(f"{attempt.tries} times without one more exchange: {words}\n")
            log.error("%s is given up: %s", experiment.name, words)
            self.attempt = None
            return
        log.warning("the server app of %s is gone; it is submitted again", experiment.name)
        self._submit(experiment, 1 if further else attempt.tries + 1)

    def _submit(self, experiment: Path, tries: int) -> None:
        """Submit it, and end the run that Flower may still have of it."""
        stale = self.attempt.run if self.attempt is not None else self._stale
        if self._pid(experiment) is None:  # it may be about to start
            self._stop(stale)
            stale = ""
        out = experiment / "run"
        (experiment / "server.pid").unlink(missing_ok=True)
        settings = {
            "config": str(experiment / "config.toml"),
            "out": str(out),
            "pid": str(experiment / "server.pid"),
            "nodes": str(self.state / "nodes.json"),
            "link-listen": f"0.0.0.0:{self.federation.link_port}",
            "link-address": f"{self.federation.host}:{self.federation.link_port}",
            "link-key": str(self.folder / "server.key"),
            "link-chain": str(self.folder / "server.pem"),
            "link-authority": str(self.folder / "ca.pem"),
            "metrics-listen": self.metrics,
        }
        if self.federation.monitor_port:
            settings["monitor-listen"] = f"0.0.0.0:{self.federation.monitor_port}"
            settings["monitor-token"] = str(self.folder / "monitor.token")
        path = self.state / "run-config.toml"
        path.write_text(tomli_w.dumps(settings))
        said = self._flwr("run", str(self.folder / "app"), "fedopt", "--run-config", str(path))
        run = str(said["run-id"])
        self.attempt = Attempt(experiment.name, run, self._exchanges(experiment), tries, time.monotonic())
        write_json(self.state / "serve.json", {"experiment": experiment.name, "run": run})
        log.info("%s is run %s of Flower", experiment.name, run)
        self._stale = ""
        self._stop(stale)

    def _stop(self, run: str) -> None:
        if run:
            try:
                self._flwr("stop", run, "fedopt")
            except FlowerFailed as error:  # it has ended
                log.info("%s", error)

    def _flwr(self, *words: str) -> dict[str, Any]:
        """What `flwr` says, as JSON. Raises FlowerFailed."""
        try:
            done = subprocess.run(
                [command("flwr"), *words, "--format", "json"], env=self.env, cwd=self.state, capture_output=True,
                text=True, check=False, timeout=120.0, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            said = json.loads(done.stdout)
        except (ValueError, subprocess.TimeoutExpired) as error:
            raise FlowerFailed(f"flwr {words[0]} said nothing that can be read: {error}") from error
        if not isinstance(said, dict) or not said.get("success"):
            raise FlowerFailed(f"flwr {' '.join(words[:2])}: {said.get('error-message') or done.stderr[-300:]}")
        return said

    def _status(self, experiment: Path) -> str:
        return str(read_json(experiment / "run" / "run.json").get("status", ""))

    def _exchanges(self, experiment: Path) -> int:
        try:
            with (experiment / "run" / "metrics.jsonl").open("rb") as file:
                return sum(1 for _ in file)
        except OSError:
            return 0

    def _pid(self, experiment: Path) -> int | None:
        try:
            return int((experiment / "server.pid").read_text())
        except (OSError, ValueError):
            return None

    def _stored(self) -> dict[str, Any]:
        return read_json(self.state / "serve.json")

    def _words(self, log_file: str | Path) -> str:
        path = log_file if isinstance(log_file, Path) else self.state / f"{log_file}.log"
        try:
            last = path.read_text("utf-8", "replace").strip().splitlines()[-1]
        except (OSError, IndexError):
            return "nothing was said"
        with contextlib.suppress(ValueError, AttributeError):  # a line of JSON, or not
            told = json.loads(last)
            last = str(told.get("exception") or told.get("message") or last).strip().splitlines()[-1]
        return last[-500:]


def serve(folder: Path, over: Callable[[], bool], once: bool = False, metrics: str = "") -> None:
    """Be the server until `over`, or with `once` until no experiment is left.

    metrics: host:port for Prometheus; empty: none.
    """
    server = Server(folder, metrics)
    try:
        server.start()
        while not over() and (server.look() or not once):
            time.sleep(LOOK_S)
    finally:
        server.end()


def ailing(address: str, authority: Path) -> str:
    """Why no server answers at this address; empty where one does."""
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with urllib.request.urlopen(address, timeout=5.0, context=context):
            return ""
    except OSError as error:
        return str(error)
