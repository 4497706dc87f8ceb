"""A deployed experiment whose clients and disk fail: the numbers of its simulation, or those without who is out.

Clients that are killed, or stopped for a moment, are in `test_deployment.py`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

from fedopt import setup as setups
from fedopt.deployment import at_client, at_server, invited
from fedopt.engine.checkpoint import load_checkpoint, newest
from fedopt.execution import execute
from fedopt.types import FedoptError, Silence

from .conftest import lines_of
from .test_deployment import CLIENTS, Federation, compared, taking_part
from .test_deployment import federation as federation  # a fixture

Make = Callable[[dict[str, Any]], Federation]


class Near:
    """A carrier to clients in this process; from an exchange on, some of them say nothing."""

    def __init__(self, made: Federation, gone: Sequence[int], after: int) -> None:
        invitation = invited(made.config, "near")
        self.residents = [at_client(invitation, client) for client in range(CLIENTS)]
        self.gone, self.after, self.asked = gone, after, 0

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        self.asked += 1
        for row, client in enumerate(clients):
            away = self.asked > self.after and client in self.gone
            yield client, Silence("away") if away else self.residents[client].answer(message(row))


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=["killed", "stopped"]
)
def test_who_stays_away_is_left_out_as_if_nobody_had_asked(
    how: signal.Signals, federation: Make, tmp_path: Path
) -> None:
    """The result is that of the same experiment in which this client says nothing from then on, bit for bit."""
    made = federation({"strategy.name": "scaffold", "run.rounds": 4})
    made.gather(tmp_path / "run")

    def strike(line: dict[str, Any]) -> None:
        if line["exchange"] == 1:
            working = taking_part(made.workers[1])
            if how is signal.SIGKILL:
                os.kill(made.workers[1].pid, how)  # or it would be back at once
                made.listener.patience_s = 1.0
            else:  # its stream stays until a ping has had no answer, for longer than this
                made.listener.deadline_s = 6.0
            os.kill(working, how)

    assert made.run(tmp_path / "run", callback=strike).status == "finished"
    near = at_server(setups.build(made.config), Near(made, [1], after=2))
    execute(near, tmp_path / "near")
    deployed, alone = (tmp_path / name / "model.safetensors" for name in ("run", "near"))
    assert deployed.read_bytes() == alone.read_bytes()
    assert made.listener.counts["silent"] == 2
    reasons = [str(line.get("silent", "")) for line in lines_of(tmp_path / "run")]
    wanted = "no answer within 6 s" if how is signal.SIGSTOP else "not connected for 1 s"
    assert ["1" in reason and wanted in reason for reason in reasons] == [False, False, True, True], reasons


@contextlib.contextmanager
def limited() -> Iterator[Callable[[int], None]]:
    """`call(size)`: from now on no file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def gone_on_with(made: Federation, out: Path, status: int) -> None:
    """The clients of the server that failed have ended; it is started anew and everybody comes again."""
    made.listener.close("the server is started anew")
    for worker in made.workers.values():
        assert worker.wait(30.0) == status
    made.listener = made.listening("run 2")
    made.gather(out)
    assert made.run(out, resume=True).status == "finished"


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_server(federation: Make, tmp_path: Path) -> None:
    made = federation({"strategy.name": "scaffold"})
    out = tmp_path / "run"
    made.gather(out)
    with limited() as to:

        def fill(line: dict[str, Any]) -> None:
            if line["exchange"] == 2:
                to((out / "metrics.jsonl").stat().st_size + 20)

        with pytest.raises(FedoptError, match=r"metrics\.jsonl cannot be written.*free some space"):
            made.run(out, callback=fill)
    last = newest(out / "checkpoints")
    assert last is not None and load_checkpoint(last).exchanges >= 2
    gone_on_with(made, out, 0)
    compared(tmp_path, made)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, where this process may mount one."""
    place = tmp_path / "run"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True)
    except OSError as error:
        pytest.skip(f"needs to mount a tmpfs: {error}")
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_file_system_that_fills_up_at_the_server(tmpfs: Path, federation: Make, tmp_path: Path) -> None:
    made = federation({"strategy.name": "scaffold"})
    made.gather(tmpfs)
    ballast = tmpfs / "ballast"

    def fill(line: dict[str, Any]) -> None:
        if line["exchange"] == 2:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass

    with pytest.raises(FedoptError, match="No space left on device"):
        made.run(tmpfs, callback=fill)
    last = newest(tmpfs / "checkpoints")
    assert last is not None and load_checkpoint(last).exchanges >= 2
    ballast.unlink()
    gone_on_with(made, tmpfs, 0)
    compared(tmp_path, made)
