"""A Flower federation on free ports of this machine, ended with the test by its own process ids."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedopt

ROOT = Path(fedopt.__file__).parents[1]
BIN = Path(sys.executable).parent
CLIENTS = 3
CHANGES = (
    f"data.clients={CLIENTS}", "run.rounds=3", "run.evaluate_clients_every=0",
    "executor.name=serial", "strategy.epochs=1", "run.checkpoint_every=1",
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


class Flower:
    """SuperLink and SuperNodes; `run` is `flwr run` on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.app = folder / "app"  # what `flwr run` looks through, without environments and results
        self.app.mkdir()
        for name in ("server", "client", "configs"):
            shutil.copytree(ROOT / name, self.app / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.app / name)
        self.env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "FEDOPT_STATE": str(folder / "state"),
            "OMP_NUM_THREADS": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], stdout=log, stderr=log, env=self.env, cwd=self.folder,
            start_new_session=True,
        )  # fmt: skip
        log.close()
        return self.processes[name]

    def deploy(self, nodes: int = CLIENTS) -> None:
        """A SuperLink with TLS, and SuperNodes with keys of their own that it knows."""
        from fedopt.wire import authority  # which needs an extra

        ca = authority.authority("test")
        key, chain = authority.server(ca, ["localhost", "127.0.0.1"])
        for name, content in (("ca.pem", ca.certificate), ("server.pem", chain), ("server.key", key)):
            (self.folder / name).write_bytes(content)
        (self.folder / "server.key").chmod(0o600)
        self.port, *ports = free_ports(1 + nodes)
        tls = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        self.start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port), *tls,
            "--enable-supernode-auth", "--database", "state.db", "--disable-runtime-dependency-installation",
        )  # fmt: skip
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "localhost:{self.port}"\n'
            f'root-certificates = "{self.folder / "ca.pem"}"\n'
        )
        until = time.monotonic() + 60.0
        while self.flwr("supernode", "list", "test", check=False).returncode and time.monotonic() < until:
            time.sleep(0.5)
        for node, port in enumerate(ports):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(self.folder / f"c{node}")],
                check=True,
            )
            self.flwr("supernode", "register", str(self.folder / f"c{node}.pub"), "test")
            self.start(
                f"node{node}", "flower-supernode", "--superlink", f"localhost:{self.port}", "--root-certificates",
                "ca.pem", "--auth-supernode-private-key", f"c{node}", "--port", str(port), "--max-retries", "20",
                "--node-config", f"partition-id={node}",
            )  # fmt: skip

    def flwr(self, *words: str, check: bool = True, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(BIN / "flwr"), *words], env=self.env, cwd=self.app, capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"flwr {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done

    def run(self, where: str, out: Path, changes: tuple[str, ...] = (), *more: str, **settings: str) -> Path:
        """`flwr run`, to the end of the experiment; its run folder."""
        words = " ".join((*CHANGES, *changes))  # Flower's run config has no escapes, so strings are in single quotes
        given = {"out": str(out), "changes": words, **settings}
        text = " ".join(f'{name}="{value}"' for name, value in given.items())
        done = self.flwr("run", ".", where, "--stream", "--run-config", text, *more)
        log = out / "server.log"
        assert (out / "model.safetensors").exists(), (
            f"{done.stdout[-3000:]}{done.stderr[-2000:]}{log.read_text()[-3000:] if log.exists() else ''}"
        )
        return out

    def tls(self) -> dict[str, str]:
        """Run config of a link with the federation's certificates."""
        files = {"link-key": "server.key", "link-chain": "server.pem", "link-authority": "ca.pem"}
        return {"link-listen": "127.0.0.1:0", **{name: str(self.folder / file) for name, file in files.items()}}

    def end_superlink(self, control: int) -> None:
        """The SuperLink that `flwr run` starts for a simulation, and leaves alive; it is known by its port."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"127.0.0.1:{control}".encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGTERM)

    def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Flower]:
    made = Flower(tmp_path)
    yield made
    made.end()


@pytest.fixture
def simulated(tmp_path: Path) -> Callable[[tuple[str, ...]], Path]:
    """The same experiment in this process."""

    def run(changes: tuple[str, ...]) -> Path:
        out = tmp_path / f"simulated {len(list(tmp_path.glob('simulated*')))}"
        result: Any = fedopt.run(ROOT / "configs" / "quickstart.toml", [*CHANGES, *changes], out=out)
        path: Path = result.path
        return path

    return run
