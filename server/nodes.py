"""The nodes of a Flower federation, as a fedopt server reaches them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedopt.types import FedoptError, Silence

log = logging.getLogger(__name__)

LONG_S = 30 * 86400.0
"""Seconds that an invitation to the link, and its answer at the end of the run, are good for."""

POLL_S = 0.1


def _content(**said: Any) -> RecordDict:
    return RecordDict({"fedopt": ConfigRecord(said)})


def _said(reply: Message) -> dict[str, Any]:
    """What a node answered. Raises ValueError where it did not."""
    if reply.has_error():
        lines = (reply.error.reason or "").strip().splitlines()  # a traceback, where the app raised
        raise ValueError(f"Flower error {reply.error.code}: {lines[-1][:300] if lines else 'no reason was given'}")
    try:
        return dict(reply.content["fedopt"])
    except KeyError:
        raise ValueError("an answer of another app") from None


class Members:
    """Who may take part, by node: a file of JSON that says which client each node is, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, int] = {}
        self._of = 0.0

    def read(self) -> dict[str, int]:
        """Clients by node; as they were, while the file cannot be read."""
        try:
            of = self.path.stat().st_mtime
            if of != self._of:
                found = json.loads(self.path.read_text("utf-8"))
                self._known, self._of = {str(node): int(client) for node, client in found.items()}, of
        except (OSError, ValueError, AttributeError, TypeError) as error:
            log.warning("%s cannot be read (%s); the nodes that were known stay", self.path, error)
        return self._known


class Hosts(threading.Thread):
    """Invites every node to the link, and again whoever ended while the run goes on.

    invitation: `node -> text`, with a token of its own each time. gone: called with a node that has left. revoked:
    called with one that may not take part any more. members: who may; None is everybody.
    """

    def __init__(
        self,
        grid: Grid,
        invitation: Callable[[str], str],
        gone: Callable[[str], object],
        revoked: Callable[[str], object],
        members: Members | None = None,
    ) -> None:
        super().__init__(name="fedopt-hosts", daemon=True)
        self.grid, self.invitation, self.gone, self.revoked, self.members = grid, invitation, gone, revoked, members
        self.ended: list[tuple[int, str]] = []
        """Nodes that came back, and why."""
        self._over = threading.Event()
        self._open: dict[int, str] = {}
        self._again: dict[int, float] = {}

    def run(self) -> None:
        """Look after them until `stop`."""
        while not self._over.is_set():
            try:
                self._look()
            except Exception:  # the SuperLink may be away for a while; whoever is on the link stays there
                log.warning("the SuperLink did not answer; it is asked again", exc_info=True)
                self._over.wait(5.0)
            self._over.wait(0.5)

    def stop(self) -> None:
        """Invite nobody any more."""
        self._over.set()
        self.join()

    def hear_out(self, seconds: float = 20.0) -> None:
        """Hear those who come back at the end: Flower counts them as at work until then."""
        until = time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            self._hear(again=False)
            time.sleep(POLL_S)

    def _look(self) -> None:
        present = set(self.grid.get_node_ids())
        if self.members is not None:
            known = self.members.read()
            for node in [node for node in self._open if str(node) not in known]:
                del self._open[node]
                self.revoked(str(node))
            present = {node for node in present if str(node) in known}
        for node in self._open.keys() - present:
            del self._open[node]
            self.gone(str(node))
        self._hear(again=True)
        now = time.monotonic()
        wanted = [node for node in sorted(present - self._open.keys()) if self._again.get(node, 0.0) <= now]
        if wanted:
            messages = [
                Message(_content(invitation=self.invitation(str(node))), node, "query.join", ttl=LONG_S)
                for node in wanted
            ]
            self._open |= dict(zip(wanted, self.grid.push_messages(messages), strict=True))

    def _hear(self, again: bool) -> None:
        by_message = {message: node for node, message in self._open.items()}
        for reply in self.grid.pull_messages(list(by_message)) if by_message else ():
            node = by_message[reply.metadata.reply_to_message_id]
            del self._open[node]
            try:
                said = _said(reply)
                reason, refused = str(said.get("reason", "")), int(said.get("status", 0)) not in (0, 3)
            except ValueError as error:
                reason, refused = str(error), False
            self.ended.append((node, reason))
            if again:
                log.warning("node %d left the link (%s) and is invited again", node, reason)
            # one that cannot take part is asked now and then, in case that somebody mends it
            self._again[node] = time.monotonic() + (30.0 if refused else 0.0)


class ByMessages:
    """A carrier over Flower's own messages: slow, and needs no other port than Flower's.

    invitation: text that goes with each message, since a node may have a new process for each. clients: how many are
    needed; wait_s: for how long they are waited for. members: who may take part; None is everybody.
    """

    def __init__(
        self,
        grid: Grid,
        invitation: str,
        clients: int,
        wait_s: float,
        deadline_s: float,
        members: Members | None = None,
    ) -> None:
        self.grid, self.invitation, self.deadline_s, self.members = grid, invitation, deadline_s, members
        self.nodes = self._numbered(clients, wait_s)

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        """As `fedopt.engine.remote.Carrier` has it."""
        known = None if self.members is None else self.members.read()
        there = {
            client: row
            for row, client in enumerate(clients)
            if client in self.nodes and (known is None or known.get(str(self.nodes[client])) == client)
        }
        for client in clients:
            if client not in there:
                yield client, Silence("no node has this number, or it was revoked")
        messages = [
            Message(
                _content(invitation=self.invitation, message=message(row)),
                self.nodes[client],
                "query.exchange",
                ttl=self.deadline_s,
            )
            for client, row in there.items()
        ]
        sent = dict(zip(self.grid.push_messages(messages), there, strict=True))
        until = time.monotonic() + self.deadline_s
        while sent and time.monotonic() < until:
            for reply in self.grid.pull_messages(list(sent)):
                client = sent.pop(reply.metadata.reply_to_message_id)
                try:
                    said = _said(reply)
                except ValueError as error:
                    yield client, Silence(str(error))
                    continue
                answer = said.get("message")
                if isinstance(answer, bytes) and len(answer) <= limit:
                    yield client, answer
                else:
                    yield client, Silence(str(said.get("reason", "an answer that is too long")))
            time.sleep(POLL_S)
        for client in sent.values():
            yield client, Silence(f"no answer within {self.deadline_s:g} s")

    def _numbered(self, clients: int, wait_s: float) -> dict[int, int]:
        """Nodes by the number of their client. Raises FedoptError where two have one number or nobody comes."""
        found: dict[int, int] = {}
        asked: set[int] = set()
        until = time.monotonic() + wait_s
        while len(found) < clients and time.monotonic() < until:
            fresh = [node for node in self.grid.get_node_ids() if node not in asked]
            asked.update(fresh)
            if fresh:
                messages = [Message(_content(), node, "query.who") for node in fresh]
                for reply in self.grid.send_and_receive(messages, timeout=max(1.0, until - time.monotonic())):
                    try:
                        client = int(_said(reply)["client"])
                    except (ValueError, KeyError) as error:
                        log.warning("node %d takes no part: %s", reply.metadata.src_node_id, error)
                        continue
                    node = reply.metadata.src_node_id
                    if self.members is not None and self.members.read().get(str(node)) != client:
                        log.warning("node %d takes no part: its key is not that of client %d", node, client)
                    elif not 0 <= client < clients:
                        log.warning("node %d takes no part: there is no client %d", node, client)
                    elif client in found:
                        raise FedoptError(f"two nodes have the partition-id {client}; give each one of its own")
                    else:
                        found[client] = node
            time.sleep(POLL_S)
        if not found:
            raise FedoptError(f"no client came within {wait_s:g} s; start SuperNodes, each with its partition-id")
        return found
