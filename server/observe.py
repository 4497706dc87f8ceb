"""How a deployed run is seen: its log, its figures for Prometheus, the monitor that `fedopt watch` asks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from fedopt import keys
from fedopt.execution import Callback
from fedopt.setup import Setup
from fedopt.wire import address
from fedopt.wire.journal import JsonLines
from fedopt.wire.link import Keys, Listener
from fedopt.wire.metrics import Exporter
from fedopt.wire.monitor import Monitor, token

log = logging.getLogger(__name__)

LOG_BYTES, LOGS = 32 << 20, 3
"""Of a log file before it is put aside, and how many are kept: who is refused over and over fills no disk."""


def log_to(folder: Path, ids: Mapping[str, str]) -> None:
    """`server.log`, JSON lines with these ids."""
    handler = RotatingFileHandler(folder / "server.log", maxBytes=LOG_BYTES, backupCount=LOGS)
    handler.setFormatter(JsonLines(ids))
    for name in ("fedopt", "server"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)


@contextlib.contextmanager
def observed(
    asked: Mapping[str, str], setup: Setup, out: Path, experiment: str, listener: Listener | None = None
) -> Iterator[list[Callback]]:
    """Metrics and monitor as the run config asks for them; what is to be called with each line of the record.

    Raises ConfigError for an address that is none, or is not safe, and FedoptError for one that is taken.
    """

    def noted(line: Mapping[str, Any]) -> None:
        number = int(keys.fold(setup.key, "exchange", line["exchange"])) % (1 << 64)  # as messages have it
        for rejected in line["rejected"]:
            log.warning("rejected: %s", rejected["reason"], extra={"exchange": number, "client": rejected["client"]})
        log.info(
            "exchange %d, round %d: %d of %d clients answered, %d were rejected",
            line["exchange"], line["round"], line["answered"], line["asked"], len(line["rejected"]),
            extra={"exchange": number},
        )  # fmt: skip

    callbacks: list[Callback] = [noted]
    with contextlib.ExitStack() as stack:
        if asked.get("metrics-listen"):
            exporter = Exporter(experiment, setup.config.strategy.name, listener)
            port = exporter.start(address.read(asked["metrics-listen"], "metrics-listen"))
            stack.callback(exporter.close)
            callbacks.append(exporter.update)
            log.info("metrics are served on port %d", port)
        if asked.get("monitor-listen"):
            where = address.read(asked["monitor-listen"], "monitor-listen")
            secret = token(Path(asked["monitor-token"]), "monitor-token") if asked.get("monitor-token") else None
            states = None if listener is None else listener.states
            monitor = stack.enter_context(Monitor(out, where, _keys(asked), secret, states))
            log.info("the monitor listens on port %d", monitor.port)
        yield callbacks


def _keys(asked: Mapping[str, str]) -> Keys | None:
    """The link's, where it has some."""
    names = ("link-key", "link-chain")
    if not all(asked.get(name) for name in names):
        return None
    return Keys(*(Path(asked[name]).read_bytes() for name in names))
