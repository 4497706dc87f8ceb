"""The images are built, a server and three clients run in containers, the server is killed, and the model is the same.

FEDOPT_DOCKER_BUILD holds more words for `docker build`, such as `--network host --build-arg TORCH_INDEX=` where
packages come from an index of one's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedopt
from fedopt import config as configs

pytest.importorskip("cryptography", reason="needs the extra 'deploy'")

from fedopt.deploy import folder as folders
from fedopt.deploy.commands import compose_program

CLIENTS = 3
ROUNDS = 300
CHANGES = (
    f"data.clients={CLIENTS}", f"participation.count={CLIENTS}", f"run.rounds={ROUNDS}", "executor.name=serial",
    "run.checkpoint_every=1", "run.evaluate_every=20", "run.evaluate_clients_every=0", "deploy.patience_s=300",
)  # fmt: skip
ROOT = Path(fedopt.__file__).parents[1]


def docker(*words: str, check: bool = True) -> str:
    packaged = "/usr/bin/docker"  # where two are installed, the one that fits the packaged engine
    program = packaged if os.path.exists(packaged) else "docker"
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, check=False, env={"DOCKER_BUILDKIT": "0", **os.environ}
    )
    assert not check or done.returncode == 0, f"docker {words[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def engine() -> str:
    """Why no container can be run here; empty where one can."""
    if not shutil.which("docker") and not os.path.exists("/usr/bin/docker"):
        return "no docker"
    if not compose_program():
        return "no docker compose"
    return "" if docker("info", "--format", "{{.ServerVersion}}", check=False).strip() else "no engine answers"


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "fedopt-test"
    read = configs.load(ROOT / "configs" / "quickstart.toml", CHANGES)
    folders.create(folder, read, CLIENTS, port=18080, link_port=19443, monitor_port=19444)
    yield folder
    compose(folder, "down", "-t", "5")


def compose(folder: Path, *words: str) -> str:
    program = compose_program()
    assert program is not None
    done = subprocess.run(
        [*program, "-p", folder.name, "-f", str(folder / "compose.yaml"), *words], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_in_containers_with_a_server_that_is_killed(federation: Path, tmp_path: Path, capsys: Any) -> None:
    reason = engine()
    if reason:
        pytest.skip(f"no container can be run here: {reason}")
    more = os.environ.get("FEDOPT_DOCKER_BUILD", "").split()
    for side in ("server", "client"):
        docker(
            "build", *more, "-f", str(federation / "image" / "docker" / f"{side}.Dockerfile"), "-t", f"fedopt-{side}",
            str(federation / "image"),
        )  # fmt: skip
    compose(federation, "up", "-d", "--no-build")
    run = federation / "server" / "experiments" / "1-quickstart" / "run"

    def exchanges() -> int:
        return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0

    def status() -> str:
        return str(json.loads((run / "run.json").read_text())["status"]) if (run / "run.json").exists() else ""

    def until(what: Callable[[], bool], seconds: float) -> float:
        began = time.monotonic()
        while not what():
            assert time.monotonic() - began < seconds, compose(federation, "logs", "--tail", "20")
            time.sleep(0.2)
        return time.monotonic() - began

    until(lambda: exchanges() >= 10, 300.0)
    server = compose(federation, "ps", "-q", "server").strip()
    pid = int(docker("inspect", "-f", "{{.State.Pid}}", server))
    os.kill(pid, signal.SIGKILL)
    before = exchanges()
    assert before < ROUNDS
    took = until(lambda: exchanges() > before, 240.0)
    until(lambda: status() == "finished", 400.0)
    until(lambda: (run / "report.html").exists(), 60.0)
    until(lambda: docker("inspect", "-f", "{{.State.Health.Status}}", server).strip() == "healthy", 60.0)
    with capsys.disabled():
        print(f"\nthe server's container was killed after {before} exchanges; the next one came {took:.1f} s later")

    result: Any = fedopt.run(
        ROOT / "configs" / "quickstart.toml", [*CHANGES, "run.checkpoint_every=100"], out=tmp_path / "simulated"
    )
    assert (run / "model.safetensors").read_bytes() == (result.path / "model.safetensors").read_bytes()
    inside = docker(
        "run",
        "--rm",
        "--entrypoint",
        "sh",
        "fedopt-server",
        "-c",
        "id -u; find / -xdev -name '*.key' 2>/dev/null || true",
    )
    assert inside.split() == ["10001"], "nobody is root, and an image holds no keys"
