"""The link: one gRPC stream from each client to the server, over which exchanges go without polling.

The server is a `Listener`, which carries messages for `fedopt.engine.remote.Remote`; a client is in `talk`. Whoever
comes is checked by a `Roster`. A stream that breaks is opened anew by the client, and the server says again what had no
answer yet; a client that had answered already answers again without working again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from fedopt.types import FedoptError, Silence, WireError
from fedopt.wire import journal
from fedopt.wire.frames import FRAME, PART, Whole, cut, part_size
from fedopt.wire.link_pb2 import Done, Frame, Hello, Here, Welcome
from fedopt.wire.roster import Refusal, Roster

log = logging.getLogger(__name__)

VERSION = 1
"""Of the frames."""

METHOD = "/fedopt.v1.Link/Talk"

GREETING_S = 10.0
"""Seconds in which a client has to say who it is."""

STATES = ("idle", "working", "away", "revoked", "never_came")
"""What a client may be doing; `working`: it is connected, and was asked and has not answered."""

REFUSED = ("greeting", "version", "run", "library", "token", "client")
"""Why somebody may be refused: what was wrong with what it said."""

_ALIVE = [
    # a peer that does not answer a ping is gone: a process that was stopped, a cable that was pulled
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_500),
    ("grpc.http2.max_ping_strikes", 0),
    # else channels to one address share a connection, and how long one waits before it tries again
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", FRAME),
    ("grpc.max_send_message_length", FRAME),
]

_SERVING = [
    *_ALIVE,
    # else gRPC takes in ahead of the reader as much as the network brings, whole answers of every client at once; so it
    # is one frame of each
    ("grpc.http2.bdp_probe", 0),
]

_CERTIFICATES = {
    "not yet valid": "its certificate begins later than the clock of this machine says; set it, or the server's",
    "has expired": "its certificate is not in date any more; give the server another, or set the clock of this machine",
    "issuer certificate": "its certificate is not from the authority that this client was given",
    "Hostname Verification": "its certificate is for another host name than the address has",
}
"""What is wrong with a server's certificate, by words of gRPC's reason."""


class LinkLost(FedoptError):
    """The server could not be reached for so long that the client gives up on this run."""


class Keys(NamedTuple):
    """The server's end of TLS, in PEM."""

    key: bytes
    chain: bytes


class _Asked:
    """A client's part of an exchange."""

    def __init__(
        self,
        number: int,
        client: int,
        message: Callable[[], bytes],
        limit: int,
        tell: Callable[[bytes | Silence], None],
    ) -> None:
        self.number, self.client, self.message, self.limit, self.tell = number, client, message, limit, tell
        self.since = time.monotonic()


class _Peer:
    """A client on its stream."""

    def __init__(self, client: int, node: str) -> None:
        self.client, self.node = client, node
        self.outbox: asyncio.Queue[_Asked | Done] = asyncio.Queue()
        self.since = time.monotonic()
        self.whole: Whole | None = None
        self.reading: int | None = None


class Listener:
    """The server's end of the link, in a thread of its own.

    address: `host:port`; port 0 takes a free one. keys: of TLS; None is for tests on one machine alone.
    deadline_s: after which a client that was asked is silent. patience_s: the same for one that is not connected.
    """

    def __init__(
        self,
        roster: Roster,
        address: str = "127.0.0.1:0",
        keys: Keys | None = None,
        *,
        deadline_s: float = 600.0,
        patience_s: float = 30.0,
    ) -> None:
        self.roster, self.deadline_s, self.patience_s = roster, deadline_s, patience_s
        self.counts: Counter[str] = Counter()
        """What happened: joined, came_back, replaced, left, refused, garbage, late, silent, bytes_in, bytes_out.

        With TLS also handshakes, which began, and streams, which were opened; see `unopened`.
        """
        self.refusals: Counter[str] = Counter()
        """Who was refused, by `REFUSED`."""
        self.heard: Callable[[float], object] | None = None
        """Called with the seconds from asking a client to its whole answer, in the link's thread."""
        self._address, self._keys, self._part = address, keys, part_size(roster.clients)
        self._peers: dict[int, _Peer] = {}
        self._asked: dict[int, _Asked] = {}
        self._left: dict[int, float] = {}
        self._revoked: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="fedopt-link", daemon=True)
        self.port = 0
        self._began = time.monotonic()

    def start(self) -> int:
        """Begin to listen; the port. Raises FedoptError where the address cannot be taken."""
        _share_heap()
        self._thread.start()
        try:
            self.port = self._await(self._listen())
        except RuntimeError as error:
            self.close()
            raise FedoptError(f"the link cannot listen on {self._address} ({error}); take another address") from error
        return self.port

    @property
    def connected(self) -> list[int]:
        """Ids of the clients who are there, increasing."""
        return sorted(self._peers)

    @property
    def unopened(self) -> int:
        """Connections that began a TLS handshake and opened no stream (yet).

        No TLS, another authority, a certificate that a client does not trust, or nobody of the link. gRPC does not say
        which; the client's own error does.
        """
        return max(0, self.counts["handshakes"] - self.counts["streams"])

    def states(self) -> dict[str, list[int]]:
        """Clients by what they do now: every one in one of `STATES`, by increasing numbers."""
        peers, asked, left, revoked = self._peers.copy(), self._asked.copy(), self._left.copy(), self._revoked.copy()
        found: dict[str, list[int]] = {state: [] for state in STATES}
        for client in range(self.roster.clients):
            if client in revoked:
                state = "revoked"
            elif client in peers:
                state = "working" if client in asked else "idle"
            else:
                state = "away" if client in left else "never_came"
            found[state].append(client)
        return found

    def wait_for(self, clients: Sequence[int], seconds: float) -> list[int]:
        """Wait until these clients are connected, no longer than so many seconds; who is missing then."""
        until = time.monotonic() + seconds
        while (missing := [c for c in clients if c not in self._peers]) and time.monotonic() < until:
            time.sleep(0.01)
        return missing

    def ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        """As `fedopt.engine.remote.Carrier` has it."""
        with journal.exchange(number):
            yield from self._ask(number, clients, message, limit)

    def _ask(
        self, number: int, clients: Sequence[int], message: Callable[[int], bytes], limit: int
    ) -> Iterator[tuple[int, bytes | Silence]]:
        heard: queue.SimpleQueue[tuple[int, bytes | Silence]] = queue.SimpleQueue()
        asked = {}
        for row, client in enumerate(clients):
            tell = partial(_put, heard, client)
            asked[client] = _Asked(number, client, partial(message, row), limit, tell)
        self._loop.call_soon_threadsafe(self._begin, list(asked.values()))
        waiting, until = set(clients), time.monotonic() + self.deadline_s
        try:
            while waiting:
                try:
                    client, said = heard.get(timeout=min(1.0, max(0.0, until - time.monotonic())))
                except queue.Empty:
                    now = time.monotonic()
                    gone = {c for c in waiting if now - self._away_since(c, now) > self.patience_s}
                    late = waiting if now >= until else set[int]()
                    for client in sorted(gone | late):
                        waiting.discard(client)
                        reason = (
                            f"not connected for {self.patience_s:g} s"
                            if client in gone
                            else f"no answer within {self.deadline_s:g} s"
                        )
                        self.counts["silent"] += 1
                        log.warning("goes on without client %d: %s", client, reason, extra={"client": client})
                        yield client, Silence(reason)
                    continue
                if client in waiting:
                    waiting.discard(client)
                    yield client, said
        finally:
            self._loop.call_soon_threadsafe(self._end, list(asked.values()))

    def revoke(self, client: int, reason: str = "the server does not go on with this client") -> None:
        """Cut a client's stream; it comes back with another token alone."""
        node = self.roster.node(client)
        if node is not None:
            self.roster.drop(node)
        self._revoked.add(client)
        self._loop.call_soon_threadsafe(self._dismiss, client, reason)

    def revoke_node(self, node: str) -> None:
        """`revoke` of the client that is at this node; its token is worth nothing, whether it came or not."""
        clients = [client for client, peer in list(self._peers.items()) if peer.node == node]
        self._revoked.update(client for client in list(self._left) if self.roster.node(client) == node)
        self.roster.drop(node)
        for client in clients:
            self.revoke(client, "the key of this client was revoked")

    def close(self, reason: str = "the run is over") -> None:
        """Tell every client that it is over, and stop listening. May be called twice."""
        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                self._await(self._stop(reason))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _await(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result()

    def _away_since(self, client: int, now: float) -> float:
        return now if client in self._peers else self._left.get(client, self._began)

    async def _listen(self) -> int:
        self._server = grpc.aio.server(options=_SERVING)
        talk = grpc.stream_stream_rpc_method_handler(self._talk)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fedopt.v1.Link", {"Talk": talk}),))
        if self._keys is None:
            port = self._server.add_insecure_port(self._address)
        else:
            # asked for at every handshake, which is the one sign that gRPC gives of those that fail
            certificates = grpc.ssl_server_certificate_configuration([(self._keys.key, self._keys.chain)])
            port = self._server.add_secure_port(
                self._address, grpc.dynamic_ssl_server_credentials(certificates, self._shaken)
            )
        await self._server.start()
        return int(port)

    def _shaken(self) -> None:
        """A handshake begins, in a thread of gRPC; None keeps the certificate."""
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._count, "handshakes")

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    async def _stop(self, reason: str) -> None:
        for client in list(self._peers):
            self._dismiss(client, reason)
        if self._server is not None:
            await self._server.stop(2.0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:  # streams that are ending
            await asyncio.wait(left, timeout=2.0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _begin(self, asked: list[_Asked]) -> None:
        for one in asked:
            self._asked[one.client] = one
            if one.client in self._peers:
                self._peers[one.client].outbox.put_nowait(one)

    def _end(self, asked: list[_Asked]) -> None:
        for one in asked:
            if self._asked.get(one.client) is one:
                del self._asked[one.client]

    def _dismiss(self, client: int, reason: str) -> None:
        if client in self._peers:
            self._peers[client].outbox.put_nowait(Done(reason=reason))

    async def _talk(self, requests: Any, context: Any) -> None:
        """One stream, from its greeting to its end."""
        self._count("streams")
        peer, secret = await self._greeted(context)
        old = self._peers.get(peer.client)
        if old is not None:
            self.counts["replaced"] += 1
            old.outbox.put_nowait(Done(reason="another stream of this client took its place"))
        self._peers[peer.client] = peer
        if peer.client in self._asked:  # before anything is waited for, or an exchange that begins meanwhile asks too
            peer.outbox.put_nowait(self._asked[peer.client])
        self._revoked.discard(peer.client)
        self.counts["joined"] += 1
        self.counts["came_back"] += old is not None or peer.client in self._left
        log.info("client %d is there", peer.client, extra={"client": peer.client})
        await context.write(_frame(Frame(welcome=Welcome(secret=secret, part=self._part))))
        tasks = {asyncio.ensure_future(self._write(peer, context)), asyncio.ensure_future(self._read(peer, context))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except WireError as error:
            self.counts["garbage"] += 1
            log.warning("client %d: %s", peer.client, error, extra={"client": peer.client, "exchange": peer.reading})
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            for task in tasks:
                task.cancel()
            if self._peers.get(peer.client) is peer:
                del self._peers[peer.client]
                self._left[peer.client] = time.monotonic()
                self.counts["left"] += 1
                log.info("client %d is gone", peer.client, extra={"client": peer.client})

    async def _greeted(self, context: Any) -> tuple[_Peer, bytes]:
        """A client who may come in, and its next secret."""
        try:
            hello = Hello()
            raw = await asyncio.wait_for(context.read(), GREETING_S)
            hello = _read(raw).hello
            if hello.version != VERSION:
                raise Refusal(f"version {VERSION} of the link is needed, {hello.version} was given")
            secret = self.roster.admit(hello.run, hello.library, hello.client, hello.node, hello.secret)
        except (Refusal, WireError, TimeoutError) as error:
            self.counts["refused"] += 1
            self.refusals[_refused(hello, error, self.roster)] += 1
            log.warning("%s was refused: %s", context.peer(), error or "it did not say who it is")
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error) or "a greeting is needed, none came")
            raise
        return _Peer(hello.client, hello.node), secret

    async def _write(self, peer: _Peer, context: Any) -> None:
        while True:
            said = await peer.outbox.get()
            if isinstance(said, Done):
                await context.write(_frame(Frame(done=said)))
                return
            if self._asked.get(peer.client) is not said:  # answered meanwhile, or given up
                continue
            for raw in map(_frame, cut(said.number, said.message(), self._part)):
                self.counts["bytes_out"] += len(raw)
                await context.write(raw)
            del raw, said  # the next one may be long in coming

    async def _read(self, peer: _Peer, context: Any) -> None:
        first = True
        while True:
            raw = await context.read()
            if raw is grpc.aio.EOF:
                return
            if first:
                self.roster.seen(peer.node)
                first = False
            self.counts["bytes_in"] += len(raw)
            frame = _read(raw)
            if frame.HasField("chunk"):
                self._take(peer, frame)
            del raw, frame  # while the next one is awaited, this one would take room for every client

    def _take(self, peer: _Peer, frame: Frame) -> None:
        chunk, asked = frame.chunk, self._asked.get(peer.client)
        if asked is None or asked.number != chunk.exchange:
            self.counts["late"] += chunk.part == 0
            return
        if peer.reading != chunk.exchange or peer.whole is None:
            peer.reading, peer.whole = chunk.exchange, Whole(asked.limit, self._part)
        try:
            message = peer.whole.take(chunk)
        except WireError as error:
            peer.whole = None
            self._answered(asked, Silence(f"its message was refused: {error}"))
            raise
        if message is not None:
            peer.whole = None
            self._answered(asked, message)

    def _answered(self, asked: _Asked, said: bytes | Silence) -> None:
        if self._asked.get(asked.client) is asked:
            del self._asked[asked.client]
        if self.heard is not None and isinstance(said, bytes):
            self.heard(time.monotonic() - asked.since)
        asked.tell(said)


class Identity(NamedTuple):
    """Who a client is, to the server of a run."""

    run: str
    library: str
    client: int
    node: str


def talk(
    address: str,
    identity: Identity,
    secret: Callable[[], bytes],
    keep: Callable[[bytes], object],
    answer: Callable[[bytes], bytes],
    *,
    limit: int,
    root: bytes | None = None,
    reconnect_s: float = 20.0,
    stop: threading.Event | None = None,
) -> str:
    """Be a client until the server says that it is over; the reason it gives.

    address: `host:port` of the server. secret: what to come in with. keep: stores what to come back with, before it is
    used. answer: a message's answer; it raises WireError for one that is not for this client. limit: bytes of a message
    at the most. root: certificate of the federation's authority in PEM; None is no TLS, for tests on one machine.

    Raises LinkLost after `reconnect_s` without the server, and FedoptError where the server refuses this client.
    """
    lost = time.monotonic()
    wait = 0.05
    while stop is None or not stop.is_set():
        met: list[float] = []
        try:
            reason = _once(address, identity, secret, keep, answer, limit, root, met)
        except grpc.RpcError as error:
            code, told = error.code(), error.details() or ""
            if code == grpc.StatusCode.UNAUTHENTICATED:
                raise FedoptError(f"the server at {address} refuses this client: {told}") from None
            if code == grpc.StatusCode.INVALID_ARGUMENT:
                raise FedoptError(f"the server at {address} cut the link: {told}") from None
        else:
            if reason is not None:
                return reason
            told = "it ended the stream"
        now = time.monotonic()
        if met:
            lost, wait = now, 0.05
        if now - lost > reconnect_s:
            wrong = next((words for sign, words in _CERTIFICATES.items() if sign in told), None)
            raise LinkLost(
                f"the server at {address} was not reached for {reconnect_s:g} s ({told}); "
                + (
                    wrong
                    or "is it running, and is its certificate from the federation's authority, in date, and for this"
                    " host name?"
                )
            )
        time.sleep(wait)
        wait = min(2 * wait, 1.0)
    return "stopped"


def _once(
    address: str,
    identity: Identity,
    secret: Callable[[], bytes],
    keep: Callable[[bytes], object],
    answer: Callable[[bytes], bytes],
    limit: int,
    root: bytes | None,
    met: list[float],
) -> str | None:
    """One stream, to its end; the reason where the server says that it is over."""
    options = [*_ALIVE, ("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 100)]
    if root is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root), options)
    outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with channel:
        hello = Hello(
            version=VERSION,
            library=identity.library,
            run=identity.run,
            client=identity.client,
            node=identity.node,
            secret=secret(),
        )
        outbox.put(_frame(Frame(hello=hello)))
        frames = channel.stream_stream(METHOD)(iter(outbox.get, None))
        try:
            whole, reading, part = Whole(limit), None, PART
            for raw in frames:
                frame = _read(raw)
                kind = frame.WhichOneof("body")
                if kind == "welcome":
                    keep(frame.welcome.secret)
                    part = min(frame.welcome.part, PART) or PART
                    met.append(time.monotonic())
                    outbox.put(_frame(Frame(here=Here())))
                elif kind == "done":
                    return frame.done.reason
                elif kind == "chunk":
                    if frame.chunk.exchange != reading:
                        whole, reading = Whole(limit, part), frame.chunk.exchange
                    message = whole.take(frame.chunk)
                    if message is not None:
                        reading = None
                        with journal.exchange(frame.chunk.exchange):
                            began = time.monotonic()
                            said = answer(message)
                            log.info(
                                "%d bytes answered with %d in %.3f s", len(message), len(said), time.monotonic() - began
                            )
                        for one in cut(frame.chunk.exchange, said, part):
                            outbox.put(_frame(one))
        finally:
            outbox.put(None)
            frames.cancel()
    return None


def _refused(hello: Hello, error: Exception, roster: Roster) -> str:
    """Which of `REFUSED` it was. The roster looks in this order."""
    if not isinstance(error, Refusal):
        return "greeting"
    wrong = {
        "version": hello.version != VERSION,
        "run": hello.run != roster.run,
        "library": hello.library != roster.library,
    }
    return next((name for name, other in wrong.items() if other), "token" if "token" in str(error) else "client")


def _share_heap() -> None:
    """One heap of glibc for all threads of this process, where there is glibc.

    It would give each thread of gRPC a heap of its own, and each of them keeps what the most clients at once once had.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX


def _put(heard: queue.SimpleQueue[tuple[int, bytes | Silence]], client: int, said: bytes | Silence) -> None:
    heard.put((client, said))


def _frame(frame: Frame) -> bytes:
    raw: bytes = frame.SerializeToString()
    return raw


def _read(raw: Any) -> Frame:
    if not isinstance(raw, bytes):
        raise WireError("a greeting is needed, the stream ended")
    frame = Frame()
    try:
        frame.ParseFromString(raw)
    except DecodeError as error:
        raise WireError(f"this is no frame of the link: {error}") from None
    return frame
