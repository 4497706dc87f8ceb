"""A Flower ServerApp that runs a fedopt experiment.

It reads the config of a simulation and runs the same loop; what is another is where clients are. In its run config:

    config          the experiment: a file of this app, or a path on the server's machine
    changes         keys of it that are changed, `run.rounds=5 optimizer.lr=0.1`
    out             run folder; a run that is there already is gone on with
    executor        `link`, or `flower` where only Flower's port is open
    link-listen     host:port for the link; link-address: how clients reach it
    link-key, link-chain, link-authority    PEM files of the link's TLS
    metrics-listen  host:port for Prometheus, or a port of 127.0.0.1; empty: no metrics
    monitor-listen  the same for `fedopt watch`; monitor-token: a file with what a watcher has to show
    nodes           a file of JSON, node -> client: who may take part, and as whom; everybody without it
    pid             a file for this process's number, for whoever looks after it
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedopt import config as configs
from fedopt import execution
from fedopt import setup as setups
from fedopt.deployment import at_server, experiment_id, invited
from fedopt.execution import Callback
from fedopt.registry import ConfigError
from fedopt.report import html
from fedopt.setup import Setup
from fedopt.types import FedoptError
from fedopt.wire.link import Keys, Listener
from fedopt.wire.roster import Roster
from server.nodes import ByMessages, Hosts, Members
from server.observe import log_to, observed

app = ServerApp()
log = logging.getLogger("fedopt")

HERE = Path(__file__).resolve().parents[1]


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment, or go on with it."""
    asked = {name: str(value) for name, value in context.run_config.items()}
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if asked.get("pid"):
        Path(asked["pid"]).write_text(f"{os.getpid()}\n")
    path = Path(asked["config"])
    config = configs.load(path if path.is_absolute() else HERE / path, asked.get("changes", "").split())
    out = Path(asked.get("out") or config.run.out or Path("runs") / config.run.name)
    experiment, run = experiment_id(out), secrets.token_hex(8)
    log_to(out, {"run": run, "experiment": experiment, "flower_run": str(context.run_id)})
    setup = setups.build(config)
    try:
        if asked.get("executor", "link") == "flower":
            _by_messages(grid, setup, out, experiment, asked)
        else:
            _over_the_link(grid, setup, out, experiment, asked, run)
    except Exception:
        log.exception("the run failed")
        raise


def _run(setup: Setup, out: Path, callbacks: list[Callback]) -> None:
    try:
        result = execution.execute(setup, out, callbacks=callbacks, resume=execution.is_run(out))
        log.info("%s: %s", result.status, result.reason)
    finally:
        with contextlib.suppress(FedoptError, OSError):  # no report must not hide why a run failed
            html.write(out)


def _by_messages(grid: Grid, setup: Setup, out: Path, experiment: str, asked: dict[str, str]) -> None:
    deploy = setup.config.deploy
    invitation = invited(setup.config, experiment).write()
    with observed(asked, setup, out, experiment) as callbacks:
        carrier = ByMessages(grid, invitation, setup.problem.clients, deploy.join_s, deploy.deadline_s, _members(asked))
        _run(at_server(setup, carrier), out, callbacks)


def _over_the_link(grid: Grid, setup: Setup, out: Path, experiment: str, asked: dict[str, str], run: str) -> None:
    deploy = setup.config.deploy
    keys, authority = _tls(asked)
    roster = Roster(run, invited(setup.config, experiment).library, setup.problem.clients)
    listener = Listener(
        roster, asked.get("link-listen") or "0.0.0.0:9443", keys,
        deadline_s=deploy.deadline_s, patience_s=deploy.patience_s,
    )  # fmt: skip
    listener.start()
    address = asked.get("link-address") or f"localhost:{listener.port}"

    members = _members(asked)

    def invitation(node: str) -> str:
        token = roster.expect(node, None if members is None else members.read().get(node))
        more: dict[str, Any] = {"token": token.hex(), "reconnect_s": deploy.reconnect_s}
        return invited(
            setup.config, experiment, run=run, node=node, address=address, authority=authority, **more
        ).write()

    hosts = Hosts(grid, invitation, roster.drop, listener.revoke_node, members)
    hosts.start()
    try:
        with observed(asked, setup, out, experiment, listener) as callbacks:
            known = range(setup.problem.clients) if members is None else sorted(members.read().values())
            missing = listener.wait_for(known, deploy.join_s)
            if missing:
                log.warning("after %g s, clients %s are not there yet", deploy.join_s, missing)
            _run(at_server(setup, listener), out, callbacks)
    finally:
        hosts.stop()
        listener.close()
        hosts.hear_out()
        log.info("link: %s", dict(listener.counts))


def _members(asked: dict[str, str]) -> Members | None:
    return Members(Path(asked["nodes"])) if asked.get("nodes") else None


def _end_with_parent(parent: int) -> None:
    """A server app whose Flower is gone would hold its run folder against the next one."""
    while os.getppid() == parent:
        time.sleep(1.0)
    log.error("the process that started this one is gone; it ends, and the run can be gone on with")
    os._exit(1)


def _tls(asked: dict[str, str]) -> tuple[Keys | None, str]:
    """The link's keys, and the authority that clients check them by."""
    names = ("link-key", "link-chain", "link-authority")
    given = {name: asked[name] for name in names if asked.get(name)}
    if not given and (asked.get("link-listen") or "").startswith(("127.0.0.1:", "localhost:")):
        return None, ""
    if len(given) < len(names):
        raise ConfigError(
            "link", f"{', '.join(names)} are needed, each a file in PEM; {', '.join(given) or 'none'} given."
            " Without TLS the link listens on 127.0.0.1 alone"
        )  # fmt: skip
    key, chain, authority = (Path(given[name]).read_bytes() for name in names)
    return Keys(key, chain), authority.decode()
