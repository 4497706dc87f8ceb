"""`fedopt deploy`: init, up, status, logs, down, submit, revoke; and serve and join, which containers run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedopt import config as configs
from fedopt import setup as setups
from fedopt.deploy import compose
from fedopt.deploy import folder as folders
from fedopt.deploy.join import Refused
from fedopt.deploy.join import join as take_part
from fedopt.deploy.serve import serve as be_server
from fedopt.types import FedoptError
from fedopt.wire import address, superlink
from fedopt.wire.tail import read_json

app = typer.Typer(help="A federation on real machines: its server, its clients, with Docker or without.")
console = Console()

REFUSED = 4

Config = Annotated[Path, typer.Argument(help="The experiment; a TOML file.")]
Folder = Annotated[Path, typer.Argument(help="The folder that `fedopt deploy init` wrote.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Change a key of the config.")]


@app.command()
def init(
    config: Config,
    out: Annotated[Path, typer.Option(help="Folder of the federation, new or empty.")],
    clients: Annotated[int | None, typer.Option(min=1, help="How many; data.clients of the config without it.")] = None,
    host: Annotated[
        str, typer.Option(help="Name or address that clients reach the server by; by default one that containers"
                          " on this machine know.")
    ] = compose.HOST,
    port: Annotated[int, typer.Option(help="Of Flower.")] = 8000,
    link_port: Annotated[int, typer.Option(help="Of the link.")] = 9443,
    monitor_port: Annotated[int, typer.Option(help="For `fedopt watch`; 0: none.")] = 9444,
    data: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of data sets on this"
                                              " machine, FEDOPT_DATA of its containers.")] = None,
    gpu: Annotated[str, typer.Option(metavar="0,1", help="Clients whose containers have a GPU.")] = "",
    wheel: Annotated[Path | None, typer.Option(exists=True, help="Of fedopt, for the images.")] = None,
    changes: Changes = None,
) -> None:  # fmt: skip
    """Write certificates, keys, the Flower app, compose files, and a bundle for each client."""
    more = [] if clients is None else [f"data.clients={clients}"]
    read = configs.load(config, [*(changes or ()), *more])
    there = setups.build(read).problem.clients
    with_gpu = frozenset(int(word) for word in gpu.split(",") if word.strip().isdigit())
    folders.create(
        out, read, there, host=host, port=port, link_port=link_port, monitor_port=monitor_port, data=data,
        gpus=with_gpu, wheel=wheel,
    )  # fmt: skip
    console.print(f"a server and {there} clients: {out}", soft_wrap=True)
    console.print(f"on this machine: fedopt deploy up {out}", soft_wrap=True)
    if monitor_port:
        where = host if host != compose.HOST else "127.0.0.1"
        secret = f"--authority {out}/server/ca.pem --token-file {out}/server/monitor.token"
        console.print(f"to look on: fedopt watch {where}:{monitor_port} {secret}", soft_wrap=True)
    console.print(f"elsewhere: copy {out}/clients/N to the machine, then docker compose up, or the systemd unit in it",
                  soft_wrap=True)  # fmt: skip


@app.command()
def up(folder: Folder, build: Annotated[bool, typer.Option(help="Make the images anew.")] = True) -> None:
    """Build the images, and start the server and all clients on this machine."""
    _compose(folder, "up", "-d", *(["--build"] if build else []))


@app.command()
def down(folder: Folder) -> None:
    """End server and clients; what they know and did stays in the folder."""
    _compose(folder, "down")


@app.command()
def logs(folder: Folder, follow: Annotated[bool, typer.Option("--follow", "-f")] = False) -> None:
    """What server and clients say."""
    _compose(folder, "logs", *(["-f"] if follow else []))


@app.command()
def status(folder: Folder) -> None:
    """Experiments and how far they are, clients and whether they may take part."""
    server = folder / "server"
    federation = folders.federation(server)
    table = Table("experiment", "status", "exchanges", "last evaluation", "folder")
    for experiment in folders.experiments(server):
        table.add_row(experiment.name, *_progress(experiment), str(experiment / "run"))
    console.print(table)
    enrolled = read_json(server / "state" / "enrolled.json").values()
    clients = Table("client", "key", "at Flower")
    for client in range(federation.clients):
        key = "good" if (server / "keys" / f"{client}.pub").exists() else "revoked"
        clients.add_row(str(client), key, "enrolled" if client in enrolled else "not enrolled")
    console.print(clients)
    refused = superlink.read(server / "state" / "refused.json")
    for reason, number in sorted(refused.items()):
        console.print(f"{number} did not come in: {superlink.REASONS.get(reason, reason)}", soft_wrap=True)


@app.command()
def submit(
    folder: Folder,
    config: Config,
    name: Annotated[str | None, typer.Option(help="Of its folder; run.name without it.")] = None,
    changes: Changes = None,
) -> None:
    """Put one more experiment in the queue of a federation."""
    server = folder / "server"
    federation = folders.federation(server)
    read = configs.load(config, changes or ())
    there = setups.build(read).problem.clients
    if there > federation.clients:
        raise FedoptError(
            f"the experiment has {there} clients and the federation {federation.clients}; lower data.clients"
        )
    console.print(f"queued: {folders.submit(server, read, name or read.run.name)}", soft_wrap=True)


@app.command()
def revoke(folder: Folder, client: Annotated[int, typer.Argument(help="Its number.")]) -> None:
    """Take back a client's key: Flower forgets it, and its stream is cut."""
    folders.revoke(folder / "server", client)
    console.print(f"the key of client {client} is taken back")


@app.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="The folder `server` of a federation.")],
    once: Annotated[bool, typer.Option(help="End when no experiment is left.")] = False,
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="For Prometheus; it has no password.")] = "",
) -> None:
    """Be the server: keep Flower's processes, run one experiment after another."""
    if metrics:
        address.read(metrics, "--metrics")
    with _until_told() as over:
        be_server(folder, over, once, metrics)


@app.command()
def join(
    folder: Annotated[Path, typer.Argument(help="A client's folder.")],
    hold: Annotated[bool, typer.Option(help="Refused by the server, stay and do nothing, for a container.")] = False,
    patience: Annotated[
        float, typer.Option(help="Seconds in which a refusal is not final: the server may be about to enrol.")
    ] = 180.0,
) -> None:
    """Be a client: keep its SuperNode."""
    with _until_told() as over:
        try:
            take_part(folder, over, patience)
        except Refused as error:
            logging.getLogger("fedopt").error("%s", error)
            while hold and not over():
                time.sleep(1.0)
            raise typer.Exit(REFUSED) from error


@contextlib.contextmanager
def _until_told() -> Iterator[Callable[[], bool]]:
    """Whether this process was told to end; it logs its doings."""
    told: list[int] = []
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda number, frame: told.append(number))
    logging.getLogger("fedopt").setLevel(logging.INFO)
    yield lambda: bool(told)


def _compose(folder: Path, *words: str) -> None:
    """`docker compose`, or the older docker-compose. Raises FedoptError."""
    if not (folder / "compose.yaml").exists():
        raise FedoptError(f"{folder} has no compose.yaml; name a folder that `fedopt deploy init` wrote")
    program = compose_program()
    if program is None:
        raise FedoptError("docker compose is needed, and was not found; without it: fedopt deploy serve and join")
    done = subprocess.run(
        [*program, "-p", _project(folder), "-f", str(folder / "compose.yaml"), *words],
        check=False, env={"DOCKER_BUILDKIT": "0", **os.environ},
    )  # fmt: skip
    if done.returncode:
        raise FedoptError(f"{' '.join(program)} {words[0]} ended with status {done.returncode}")


def compose_program() -> list[str] | None:
    """`docker compose`, or the older docker-compose; None where there is neither."""
    newer = ["docker", "compose"]
    if shutil.which("docker") and not subprocess.run([*newer, "version"], capture_output=True, check=False).returncode:
        return newer
    return ["docker-compose"] if shutil.which("docker-compose") else None


def _project(folder: Path) -> str:
    return "".join(c for c in folder.resolve().name.lower() if c.isalnum() or c in "-_").lstrip("-_") or "fedopt"


def _progress(experiment: Path) -> tuple[str, str, str]:
    if (experiment / "given-up").exists():
        return "given up", "", (experiment / "given-up").read_text("utf-8").strip()
    run = experiment / "run"
    told = str(read_json(run / "run.json").get("status", "waiting"))
    try:
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    except OSError:
        return told, "0", ""
    seen = [line for line in map(_line, lines) if "accuracy" in line or "loss" in line]
    best = {name: seen[-1][name] for name in ("accuracy", "loss") if name in seen[-1]} if seen else {}
    return told, str(len(lines)), ", ".join(f"{name} {value:.4g}" for name, value in best.items())


def _line(text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
