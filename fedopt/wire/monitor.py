"""The monitor: a run that is watched over gRPC, read only (`proto/fedopt/v1/monitor.proto`).

The server tells what `fedopt.wire.tail` finds in the run folder, and what the link's clients do. It has threads and a
port of its own, so the run never waits for whoever watches; no model goes over it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from fedopt.registry import ConfigError
from fedopt.types import FedoptError, WireError
from fedopt.wire import tail
from fedopt.wire.address import Address
from fedopt.wire.link import Keys
from fedopt.wire.monitor_pb2 import Event, FollowRequest
from fedopt.wire.tail import About, Away, Happening, Links, Over, Recorded

VERSION = 1
"""Of the events."""

SERVICE, METHOD = "fedopt.v1.Monitor", "Follow"

EVENT = 4 << 20
"""Bytes of an event at the most."""

ASKED = 1 << 12
"""Bytes of a request at the most."""

WATCHERS = 16
"""So many at once; another one is refused."""

TOKEN = 16
"""Characters of a token at the least."""

FIRST = 20
"""So many clients of a state are named."""

_TEXT = EVENT - 4096

_ALIVE = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # channels to one address share a connection otherwise, and how long one waits before it tries again
    ("grpc.use_local_subchannel_pool", 1),
]


def token(path: Path, key: str) -> str:
    """The token in a file, without the white space around it. Raises ConfigError; `key` is what to change."""
    try:
        found = path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(key, f"a file with a token is needed, {path} is none ({error})") from error
    if len(found) < TOKEN or not found.isprintable() or " " in found:
        raise ConfigError(
            key, f"{path} has to hold {TOKEN} characters or more without spaces, as `openssl rand -hex 32` makes them"
        )
    return found


class Monitor:
    """Tells whoever asks what happens in the run of a folder; a context, which says how the run ended.

    address: where to listen. keys: of TLS, and `token` what a watcher has to show; both are needed where others than
    this machine can reach the address. states: clients by what they do, by name.

    Raises ConfigError for an address that is not safe like this.
    """

    def __init__(
        self,
        folder: Path,
        address: Address,
        keys: Keys | None = None,
        token: str | None = None,
        states: Callable[[], dict[str, list[int]]] | None = None,
    ) -> None:
        if not address.loopback and (keys is None or token is None):
            raise ConfigError(
                "monitor-listen",
                f"others can reach {address}, so link-key, link-chain and monitor-token are needed;"
                " give them, or listen on 127.0.0.1",
            )
        self.folder, self.address, self.states = folder, address, states
        self.port = 0
        self._keys, self._token = keys, None if token is None else _hash(token)
        self._over: Over | None = None
        self._ending = threading.Event()
        self._server: Any = None

    def start(self) -> int:
        """Begin to listen; the port. Raises FedoptError where the address cannot be taken."""
        options = [
            *_ALIVE,
            ("grpc.max_receive_message_length", ASKED),
            ("grpc.max_send_message_length", EVENT),
            ("grpc.so_reuseport", 0),  # else two runs may share a port, and a watcher gets either
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(WATCHERS, "fedopt-monitor"), options=options, maximum_concurrent_rpcs=WATCHERS
        )
        # a watcher says one thing; as a stream, who may not watch is refused before it has said anything, and keeps no
        # thread waiting
        handler = grpc.stream_stream_rpc_method_handler(self._follow)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        try:
            if self._keys is None:
                self.port = self._server.add_insecure_port(str(self.address))
            else:
                credentials = grpc.ssl_server_credentials([(self._keys.key, self._keys.chain)])
                self.port = self._server.add_secure_port(str(self.address), credentials)
        except RuntimeError as error:
            raise FedoptError(
                f"the monitor cannot listen on {self.address} ({error}); take another monitor-listen"
            ) from error
        self._server.start()
        return int(self.port)

    def close(self, over: Over | None = None) -> None:
        """Tell every watcher how the run ended, as run.json has it or as given, and stop. May be called twice."""
        self._over = self._over or over or tail.ended(self.folder) or Over("failed", "the server stopped")
        self._ending.set()
        if self._server is not None:
            self._server.stop(5.0).wait()

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self.close(Over(status, f"{type(error).__name__}: {error}"))

    def _follow(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        if self._token is not None:
            shown = dict(context.invocation_metadata()).get("authorization", "")
            if not hmac.compare_digest(_hash(str(shown).removeprefix("Bearer ")), self._token):
                context.abort(
                    grpc.StatusCode.UNAUTHENTICATED, "a token is needed, and the one given is not that of this run"
                )
        request = FollowRequest()
        try:
            request.ParseFromString(next(requests, b""))
        except DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this is no request of the monitor")
        if request.version != VERSION:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"version {VERSION} of the monitor is needed, {request.version} was given; install the server's fedopt",
            )

        def pause() -> bool:
            self._ending.wait(tail.POLL_S)
            return bool(context.is_active())

        for happening in tail.happenings(
            self.folder, request.after, request.last, over=lambda: self._over, states=self._links, pause=pause
        ):
            yield _event(happening).SerializeToString()

    def _links(self) -> Links | None:
        if self.states is None:
            return None
        return Links({name: tail.State(len(who), who[:FIRST]) for name, who in self.states().items()})


def follow(
    address: Address, root: bytes | None = None, token: str | None = None, reconnect_s: float = 60.0
) -> Iterator[Happening]:
    """What happens in the run whose server listens there, from its first line to its end.

    A server that is away is looked for; one that went on from a checkpoint tells from there, or all again. After
    `reconnect_s` seconds without it the run is over with the status `lost`. root: certificate of the authority in PEM;
    None is no TLS, for a server on this machine.

    Raises FedoptError where the server refuses, and for an address that is not safe like this.
    """
    if root is None and not address.loopback:
        raise FedoptError(f"{address} is another machine; give the certificate of its authority with --authority")
    return _followed(address, root, token, reconnect_s)


def _followed(address: Address, root: bytes | None, token: str | None, reconnect_s: float) -> Iterator[Happening]:
    after, last = 0, b""
    lost, wait = time.monotonic(), 0.1
    while True:
        why, met = "it ended the stream", False
        try:
            for happening in _once(address, root, token, after, last):
                met = True
                if isinstance(happening, Recorded):
                    if happening.number != after:
                        raise WireError(f"the monitor's line {after} is needed, line {happening.number} came")
                    after, last = after + 1, tail.digest(happening.text)
                elif isinstance(happening, About):
                    if happening.after > after:
                        raise WireError(f"the monitor's line {after} is needed, it goes on at {happening.after}")
                    after, last = happening.after, last if happening.after == after else b""
                yield happening
                if isinstance(happening, Over):
                    return
        except grpc.RpcError as error:
            why = _refusal(address, error)
        if met:
            lost, wait = time.monotonic(), 0.1
        yield Away(why)
        if time.monotonic() - lost > reconnect_s:
            yield Over("lost", f"the server at {address} was not reached for {reconnect_s:g} s ({why})")
            return
        time.sleep(wait)
        wait = min(2 * wait, 2.0)


def _once(address: Address, root: bytes | None, token: str | None, after: int, last: bytes) -> Iterator[Happening]:
    """One stream, to its end. Raises WireError for what is not of the protocol."""
    options = [
        *_ALIVE,
        ("grpc.max_receive_message_length", EVENT),
        ("grpc.max_send_message_length", ASKED),
        ("grpc.enable_retries", 0),
    ]
    if root is None:
        channel = grpc.insecure_channel(str(address), options)
    else:
        channel = grpc.secure_channel(str(address), grpc.ssl_channel_credentials(root), options)
    shown = () if token is None else (("authorization", f"Bearer {token}"),)
    request = FollowRequest(version=VERSION, after=after, last=last).SerializeToString()
    with channel:
        for raw in channel.unary_stream(f"/{SERVICE}/{METHOD}")(request, metadata=shown):
            happening = _happening(raw)
            if happening is not None:
                yield happening


def _refusal(address: Address, error: Any) -> str:
    """Why there is no stream for the moment. Raises FedoptError where there will be none."""
    code, said = error.code(), error.details() or ""
    final = {
        grpc.StatusCode.UNAUTHENTICATED: "refuses",
        grpc.StatusCode.INVALID_ARGUMENT: "does not understand",
        grpc.StatusCode.UNIMPLEMENTED: "is no monitor; is that the address of monitor-listen?",
        grpc.StatusCode.RESOURCE_EXHAUSTED: "has too many watchers, or says too much at once",
    }
    if code in final:
        raise FedoptError(f"the server at {address} {final[code]}: {said:.200}")
    return f"{said:.200}"


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _event(happening: Happening) -> Event:
    """What is told of it, in `EVENT` bytes at the most."""
    event = Event()
    match happening:
        case About(facts, after):
            event.about.facts, event.about.after = fitting(json.dumps(facts).encode(), _TEXT), after
        case Recorded(number, text, more):
            event.recorded.number, event.recorded.line, event.recorded.more = number, fitting(text, _TEXT), more
        case Links(states):
            event.links.SetInParent()
            for name, state in states.items():
                event.links.states.add(name=name, clients=state.clients, first=state.first)
        case Over(status, reason):
            event.over.status, event.over.reason = status, reason[:2000]
        case Away():
            raise AssertionError("a server that tells something is there")
    return event


def fitting(text: bytes, most: int) -> bytes:
    """A JSON object in `most` bytes: its longest values are left out, and named in `left_out`."""
    if len(text) <= most:
        return text
    found = json.loads(text)
    left_out: list[str] = []
    for name in sorted(found, key=lambda name: len(json.dumps(found[name])), reverse=True):
        left_out.append(name)
        text = json.dumps(
            {key: value for key, value in found.items() if key not in left_out} | {"left_out": left_out}
        ).encode()
        if len(text) <= most:
            break
    return text


def _happening(raw: bytes) -> Happening | None:
    """What an event tells; None for one that this version does not know. Raises WireError."""
    event = Event()
    try:
        event.ParseFromString(raw)
        match event.WhichOneof("body"):
            case "about":
                facts = json.loads(event.about.facts)
                if not isinstance(facts, dict):
                    raise ValueError("an object is needed")
                return About(facts, event.about.after)
            case "recorded":
                return Recorded(event.recorded.number, event.recorded.line, event.recorded.more)
            case "links":
                return Links({s.name: tail.State(s.clients, list(s.first)) for s in event.links.states})
            case "over":
                return Over(event.over.status, event.over.reason)
            case _:
                return None
    except (DecodeError, ValueError, RecursionError) as error:
        raise WireError(f"what came is not of the monitor: {error}") from None
