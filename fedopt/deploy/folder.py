"""The folder of a federation: what its server and each of its clients have to have.

server/             federation.toml, key and certificate, keys/ of the clients, app/ for Flower, token of its monitor
    experiments/    NAME/config.toml, and NAME/run/ once it runs
clients/3/          client.toml, its key, the authority's certificate, compose file, systemd unit
image/              what the images are built from
authority/          its key, which neither the server nor a client needs
compose.yaml
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

import fedopt
from fedopt import config as configs
from fedopt.config import Config
from fedopt.deploy import compose
from fedopt.registry import ConfigError
from fedopt.types import FedoptError

APP = ("server", "client", "configs")
"""Folders that Flower takes to the nodes."""

IMAGE_USER = 10001
"""Whom the processes of a federation run as that root has made."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")


class Federation(NamedTuple):
    """`server/federation.toml`."""

    host: str
    """How clients reach the server."""
    port: int
    """Of Flower."""
    link_port: int
    clients: int
    data: str = ""
    """The server's FEDOPT_DATA, where it has one."""
    monitor_port: int = 0
    """For `fedopt watch`, with `monitor.token`; 0: it cannot be watched."""


class Bundle(NamedTuple):
    """`client.toml`."""

    client: int
    server: str
    """`host:port` of Flower."""
    data: str = ""
    """This client's FEDOPT_DATA."""
    data_path: str = ""
    """In place of the experiment's `data.folder`."""
    device: str = "cpu"
    """What it computes with."""


def create(
    folder: Path,
    config: Config,
    clients: int,
    *,
    host: str = compose.HOST,
    port: int = 8000,
    link_port: int = 9443,
    monitor_port: int = 9444,
    data: Path | None = None,
    gpus: frozenset[int] = frozenset(),
    wheel: Path | None = None,
) -> Federation:
    """Write a federation for this experiment.

    monitor_port: for `fedopt watch`; 0: none. data: folder of data sets on this machine, for the containers on it.
    gpus: clients whose containers get a GPU. wheel: of fedopt, for the images; None builds it in a checkout, and leaves
    it to the package index elsewhere.

    Raises FedoptError, with nothing written, for a folder that is not empty and for what cannot be.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FedoptError(f"a new folder is needed, {folder} is not empty; give another one")
    if not HOST.fullmatch(host):
        raise FedoptError(f"--host takes a name or an address, {host!r:.80} is none")
    wrong = sorted(gpus - set(range(clients)))
    if wrong:
        raise FedoptError(f"there are clients 0 to {clients - 1}; --gpu names {wrong[0]}")
    authority = _authority()
    source = shipped()
    made = Federation(host, port, link_port, clients, "/data" if data else "", monitor_port)
    ca = authority.authority("fedopt federation")
    key, chain = authority.server(ca, list(dict.fromkeys([host, compose.HOST, "localhost", "127.0.0.1"])))
    _write(folder / "authority" / "ca.key", ca.key, secret=True)
    _write(folder / "authority" / "ca.pem", ca.certificate)
    server = folder / "server"
    _write(server / "ca.pem", ca.certificate)
    _write(server / "server.pem", chain)
    _write(server / "server.key", key, secret=True)
    _write(server / "monitor.token", f"{secrets.token_hex(32)}\n".encode(), secret=True)
    _write(server / "federation.toml", tomli_w.dumps(made._asdict()).encode())
    _app(source, server / "app")
    submit(server, config, config.run.name)
    for client in range(clients):
        private, public = authority.node_key()
        _write(server / "keys" / f"{client}.pub", public)
        bundle = folder / "clients" / str(client)
        _write(bundle / "node.key", private, secret=True)
        _write(bundle / "ca.pem", ca.certificate)
        told = Bundle(client, f"{host}:{port}", made.data, device="cuda" if client in gpus else "cpu")
        _write(bundle / "client.toml", tomli_w.dumps(told._asdict()).encode())
        (bundle / "state").mkdir()
    uid = _owner(folder)
    images = folder / "image"
    _image(source, images, wheel)
    gpu = {client: client in gpus for client in range(clients)}
    mounted = str(data.resolve()) if data else ""
    _write(
        folder / "compose.yaml", compose.everything([port, link_port, monitor_port], host, gpu, uid, mounted).encode()
    )
    for client in range(clients):
        bundle = folder / "clients" / str(client)
        _write(bundle / "compose.yaml", compose.one_client(client, gpu[client], uid).encode())
        _write(bundle / "fedopt-client.service", compose.unit(client).encode())
    if os.getuid() == 0:
        for path in (server, *server.rglob("*"), folder / "clients", *(folder / "clients").rglob("*")):
            os.chown(path, IMAGE_USER, IMAGE_USER)
    return made


def submit(server: Path, config: Config, name: str) -> Path:
    """Put an experiment in the server's queue; its folder. Raises FedoptError."""
    if not NAME.fullmatch(name):
        raise ConfigError("run.name", f"letters, digits, '-', '_' and '.' make the name of a folder, not {name!r:.80}")
    queue = server / "experiments"
    known = [int(path.name.split("-")[0]) for path in queue.glob("[0-9]*-*")] if queue.exists() else []
    folder = queue / f"{max(known, default=0) + 1}-{name}"
    document = config.document()
    document["run"].pop("out", None)
    _write(folder / "config.toml", configs.parse(document).to_toml().encode())
    return folder


def experiments(server: Path) -> list[Path]:
    """Folders of the experiments in the order in which they are run."""
    found = [path for path in (server / "experiments").glob("[0-9]*-*") if (path / "config.toml").exists()]
    return sorted(found, key=lambda path: int(path.name.split("-")[0]))


def revoke(server: Path, client: int) -> None:
    """Take back a client's key; the server notices, and cuts it off. Raises FedoptError."""
    key = server / "keys" / f"{client}.pub"
    if not key.exists():
        known = sorted(int(path.stem) for path in key.parent.glob("*.pub"))
        raise FedoptError(f"clients {', '.join(map(str, known)) or 'none'} have a key, {client} has none")
    (key.parent / "revoked").mkdir(exist_ok=True)
    key.rename(key.parent / "revoked" / key.name)


def federation(server: Path) -> Federation:
    """What is written in `federation.toml`. Raises FedoptError."""
    return Federation(**_read(server / "federation.toml", Federation._fields))


def bundle(client: Path) -> Bundle:
    """What is written in `client.toml`. Raises FedoptError."""
    return Bundle(**_read(client / "client.toml", Bundle._fields))


def shipped() -> Path:
    """Where the Flower app and the Dockerfiles are: a checkout, or what the wheel brought. Raises FedoptError."""
    checkout = Path(fedopt.__file__).parents[1]
    if (checkout / "server" / "app.py").exists() and (checkout / "pyproject.toml").exists():
        return checkout
    for file in importlib.metadata.files("fedopt") or ():
        if file.as_posix().endswith("share/fedopt/pyproject.toml"):
            return Path(str(file.locate())).resolve().parent
    raise FedoptError("this installation of fedopt came without its Flower app; install it from a wheel or a checkout")


def _authority() -> Any:
    try:
        from fedopt.wire import authority
    except ImportError as error:  # comes with an extra
        raise FedoptError(f"a federation needs {error.name}; install fedopt[deploy]") from error
    return authority


def _app(source: Path, app: Path) -> None:
    for name in APP:
        shutil.copytree(source / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, app / name)


def _image(source: Path, image: Path, wheel: Path | None) -> None:
    (image / "wheels").mkdir(parents=True)
    (image / "docker").mkdir()
    for name in ("server.Dockerfile", "client.Dockerfile", "health.py"):
        shutil.copy(source / "docker" / name, image / "docker" / name)
    shutil.copy(source / "constraints.txt", image / "constraints.txt")
    if wheel is not None:
        shutil.copy(wheel, image / "wheels" / wheel.name)
    elif (source / "fedopt").exists():
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(image / "wheels"), "."]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FedoptError(f"the wheel for the images could not be built: {done.stderr.strip()[-500:]}")
        shutil.rmtree(source / "build", ignore_errors=True)


def _owner(folder: Path) -> int:
    """Whom the containers run as: whoever owns the folder, but never root."""
    return folder.stat().st_uid or IMAGE_USER


def _write(path: Path, content: bytes, secret: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if secret else 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text("utf-8"))
        wrong = found.keys() ^ set(names)
        if wrong:
            raise ValueError(f"'{min(wrong)}' is missing or unknown")
    except (OSError, ValueError) as error:
        raise FedoptError(f"{path} cannot be read ({error}); name a folder that `fedopt deploy init` wrote") from error
    return found
