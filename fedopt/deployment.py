"""The two ends of a deployed experiment, from the config that a simulation has.

The server is a run like any other, whose executor reaches its clients by a carrier; a client is a `Resident` with a
folder of its own. What the server tells a client so that it can come is an `Invitation`.
"""

from __future__ import annotations

import json
import secrets
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fedopt import config as configs
from fedopt import setup as setups
from fedopt.compressed import Compressed
from fedopt.config import Config
from fedopt.engine.attackers import Attacking, Told, refuse
from fedopt.engine.record import write_json
from fedopt.engine.remote import Carrier, Elsewhere, Remote
from fedopt.engine.resident import Resident
from fedopt.engine.versions import Versions
from fedopt.registry import ConfigError
from fedopt.setup import Setup
from fedopt.types import FedoptError, Strategy, WireError

LARGEST = 1 << 20
"""Bytes of an invitation at the most."""


class Invitation(NamedTuple):
    """What a client has to know to take part."""

    library: str
    """Version of fedopt."""
    experiment: str
    """Stays the same when a server that died goes on; a client's memory lies under it."""
    config: str
    """TOML, resolved."""
    run: str = ""
    """Of the link."""
    node: str = ""
    address: str = ""
    """`host:port` of the link; empty where exchanges come some other way."""
    authority: str = ""
    """Certificate in PEM that the link's is signed by; empty for no TLS."""
    token: str = ""
    """In hexadecimal digits."""
    reconnect_s: float = 20.0

    def write(self) -> str:
        """As JSON."""
        return json.dumps(self._asdict())

    @classmethod
    def read(cls, text: str) -> Invitation:
        """From JSON. Raises WireError, also for one of another version of fedopt."""
        if len(text) > LARGEST:
            raise WireError(f"an invitation of {LARGEST} bytes at the most is needed, one of {len(text)} was given")
        try:
            found = json.loads(text)
        except ValueError as error:
            raise WireError(f"an invitation is needed, this is none: {error}") from None
        if not isinstance(found, dict):
            raise WireError("an invitation is needed, this is none")
        here = version("fedopt")
        if found.get("library") != here:
            raise WireError(
                f"the server has fedopt {found.get('library')!s:.40} and this client {here}; install the same version"
            )
        known = {name: type(default) for name, default in cls(here, "", "")._asdict().items()}
        wrong = [name for name in known.keys() ^ found.keys()]
        wrong += [name for name, kind in known.items() if name in found and not isinstance(found[name], kind)]
        if wrong:
            raise WireError(f"this is no invitation: {min(wrong)} is missing, unknown or of another kind")
        return cls(**found)


def at_server(setup: Setup, carrier: Carrier) -> Setup:
    """The experiment with its clients behind a carrier. Raises ConfigError for what only a simulation can have."""
    config = setup.config
    if not setup.portable:
        raise FedoptError("a deployed experiment is all in its config; give model, data and strategy by name")
    refuse(setup.adversary)
    if config.availability is not None:
        raise ConfigError("availability", "who is away is simulated; remove the section for a deployment")
    if config.compression.down is not None:
        raise ConfigError("compression.down", "not yet in a deployment; remove it")
    executor = Remote(carrier, config.deploy.least)
    return setup._replace(
        strategy=Elsewhere(setup.strategy),
        adversary=Told(*setup.adversary),
        executor=executor,
        checkpointed=executor.settled,
    )


def experiment_id(folder: Path) -> str:
    """Of the deployed run in this folder, made when it is asked for the first time. Raises FedoptError."""
    path = folder / "deployment.json"
    try:
        return str(json.loads(path.read_text("utf-8"))["experiment"])
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        made = secrets.token_hex(8)
        write_json(path, {"experiment": made})
        return made
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedoptError(f"{path} cannot be read ({error}); put it back, or start anew in another folder") from error


def invited(config: Config, experiment: str, **more: Any) -> Invitation:
    """To an experiment."""
    document = config.document()
    document["run"].pop("out", None)
    return Invitation(version("fedopt"), experiment, configs.parse(document).to_toml(), **more)


def at_client(
    invitation: Invitation,
    client: int,
    state: Path | None = None,
    data_folder: str | None = None,
    device: str = "cpu",
) -> Resident:
    """A client of the experiment.

    state: folder for what clients keep; None keeps it in memory alone. data_folder: in place of `data.folder`. device:
    `cpu`, or `cuda` for a GPU, with answers that are those of a CPU to rounding.

    Raises ConfigError, also for a client that the experiment does not have.
    """
    document = tomllib.loads(invitation.config)
    document["executor"] = {"name": "serial"} if device == "cpu" else {"name": "stacked", "device": device}
    if data_folder is not None:
        document.setdefault("data", {})["folder"] = data_folder
    setup = setups.build(configs.load(document))
    clients = setup.problem.clients
    if not 0 <= client < clients:
        raise ConfigError(
            "data.clients", f"the experiment has {clients} clients, and this one would be number {client}"
        )
    strategy = _attacking(setup.strategy, setup)
    programs = strategy.programs(setup.problem)
    folder = None if state is None else state / _plain(invitation.experiment) / str(client)
    executor = None if device == "cpu" else setup.executor
    return Resident(setup.problem, programs, client, Versions(programs.memory, folder), executor)


def _attacking(strategy: Strategy, setup: Setup) -> Strategy:
    """The strategy as its clients run it: attackers attack before anything is coded, and codes are told."""
    if isinstance(strategy, Compressed):
        return replace(strategy, inner=Attacking(strategy.inner, setup.adversary), spoken=True)
    return Attacking(strategy, setup.adversary)


def _plain(name: str) -> str:
    """A name that makes a folder and nothing else. Raises WireError."""
    if not name or len(name) > 64 or not name.isascii() or not name.isalnum():
        raise WireError(f"up to 64 letters and digits name an experiment, {name!r:.80} was given")
    return name
