"""A Flower ClientApp that takes part in fedopt experiments.

    join        over the link: a worker process is kept alive until the run is over; the answer says how it ended
    exchange    over Flower alone: one exchange, its message in and its answer out
    who         which client this is

A node says in its node config who it is (`partition-id`), and may say where its data lies (`data-path`), where it keeps
what it has to remember (`state-path`), and what it computes with (`device`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.supervisor import REFUSED, supervise

app = ClientApp()

_RESIDENTS: dict[tuple[str, int], Any] = {}
"""In a process that answers more than one message: the last client, by invitation and number."""


def _client(context: Context) -> int:
    try:
        return int(context.node_config["partition-id"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            "a node of fedopt is numbered; start it with --node-config 'partition-id=0', another one for each"
        ) from error


def _state(context: Context) -> Path:
    given = context.node_config.get("state-path") or os.environ.get("FEDOPT_STATE")
    return Path(str(given)) if given else Path.home() / ".fedopt"


def _data(context: Context) -> str | None:
    given = context.node_config.get("data-path")
    return None if given is None else str(given)


def _device(context: Context) -> str:
    return str(context.node_config.get("device") or "cpu")


def _reply(to: Message, /, **said: Any) -> Message:
    return Message(RecordDict({"fedopt": ConfigRecord(said)}), reply_to=to)


@app.query("who")
def who(message: Message, context: Context) -> Message:
    """Which client this is."""
    return _reply(message, client=_client(context))


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Take part over the link until the run is over, or the server is lost."""
    invitation = str(message.content["fedopt"]["invitation"])
    status, reason = supervise(invitation, _client(context), _state(context), _data(context), _device(context))
    return _reply(message, status=status, reason=reason)


@app.query("exchange")
def exchange(message: Message, context: Context) -> Message:
    """One exchange."""
    import torch

    from fedopt.deployment import Invitation, at_client
    from fedopt.types import FedoptError

    asked, client = message.content["fedopt"], _client(context)
    invitation = str(asked["invitation"])
    torch.set_num_threads(1)  # what the serial executor computes with
    try:
        if (invitation, client) not in _RESIDENTS:
            _RESIDENTS.clear()
            read = Invitation.read(invitation)
            _RESIDENTS[invitation, client] = at_client(read, client, _state(context), _data(context), _device(context))
        said = _RESIDENTS[invitation, client].answer(bytes(asked["message"]))
    except FedoptError as error:
        return _reply(message, status=REFUSED, reason=str(error))
    return _reply(message, message=said)
