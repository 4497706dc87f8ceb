"""The link, over loopback: who gets in, what is carried, and what a broken stream leaves behind."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

import grpc

from fedopt.types import FedoptError, Silence, WireError
from fedopt.wire import authority
from fedopt.wire.frames import FEW, FRAME, PART, Whole, cut
from fedopt.wire.link import METHOD, Identity, Keys, LinkLost, Listener, talk
from fedopt.wire.link_pb2 import Chunk, Frame, Hello
from fedopt.wire.roster import Refusal, Roster

RUN, LIBRARY, LIMIT = "run 1", "1.2.3", 8 << 20


@pytest.fixture(scope="module")
def ca() -> authority.Signed:
    return authority.authority("test")


@pytest.fixture(scope="module")
def keys(ca: authority.Signed) -> Keys:
    return Keys(*authority.server(ca, ["localhost", "127.0.0.1"]))


@pytest.fixture
def roster() -> Roster:
    return Roster(RUN, LIBRARY, 10)


@pytest.fixture
def listener(roster: Roster, keys: Keys) -> Iterator[Listener]:
    made = Listener(roster, keys=keys, deadline_s=20.0, patience_s=10.0)
    made.start()
    yield made
    made.close()


class Person(threading.Thread):
    """A client in a thread; `answer` is what it says."""

    def __init__(
        self,
        listener: Listener,
        ca: authority.Signed | None,
        client: int,
        answer: Callable[[bytes], bytes] = lambda message: message,
        **changes: Any,
    ) -> None:
        super().__init__(daemon=True)
        self.port, self.ca, self.answer = changes.pop("port", listener.port), ca, answer
        self.secrets = [changes.pop("secret") if "secret" in changes else listener.roster.expect(f"node {client}")]
        run, library, node = (
            changes.pop(n, v) for n, v in (("run", RUN), ("library", LIBRARY), ("node", f"node {client}"))
        )
        self.identity, self.changes = Identity(run, library, client, node), changes
        self.ended: str | Exception | None = None
        self.start()

    def run(self) -> None:
        given = {"limit": LIMIT, "reconnect_s": 5.0, **self.changes}
        root = None if self.ca is None else self.ca.certificate
        try:
            self.ended = talk(
                f"localhost:{self.port}", self.identity, lambda: self.secrets[-1], self.secrets.append, self.answer,
                root=root, **given,
            )  # fmt: skip
        except FedoptError as error:
            self.ended = error


def echoed(listener: Listener, number: int, clients: list[int], content: bytes) -> dict[int, bytes | Silence]:
    return dict(listener.ask(number, clients, lambda row: content + bytes([row]), LIMIT))


@pytest.mark.parametrize("size", [0, 19_000, PART - 1, PART, 3 * PART + 17])
def test_messages_go_there_and_back(size: int, listener: Listener, ca: authority.Signed) -> None:
    people = [Person(listener, ca, client) for client in (3, 5, 8)]
    assert listener.wait_for([3, 5, 8], 10.0) == []
    content = bytes(range(256)) * (size // 256 + 1)
    for number in range(3):
        found = echoed(listener, number, [3, 5, 8], content[:size])
        assert found == {client: content[:size] + bytes([row]) for row, client in enumerate((3, 5, 8))}
    listener.close()
    for person in people:
        person.join(10.0)
        assert person.ended == "the run is over"


@pytest.mark.parametrize(("clients", "part"), [(FEW, PART), (FEW + 1, PART // 4)])
def test_where_there_are_many_clients_messages_go_in_small_parts(
    clients: int, part: int, keys: Keys, ca: authority.Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Chunk] = []
    take = Whole.take

    def noted(self: Whole, chunk: Chunk) -> bytes | None:
        seen.append(chunk)
        return take(self, chunk)

    listener = Listener(Roster(RUN, LIBRARY, clients), keys=keys, deadline_s=20.0, patience_s=10.0)
    listener.start()
    try:
        Person(listener, ca, 3)
        assert listener.wait_for([3], 10.0) == []
        monkeypatch.setattr(Whole, "take", noted)
        content = bytes(range(256)) * (2 * PART // 256)
        assert echoed(listener, 1, [3], content) == {3: content + b"\0"}
        lengths = {(chunk.parts, len(chunk.data)) for chunk in seen if chunk.part == 0}
        assert lengths == {(2 * PART // part + 1, part)} and len([c for c in seen if c.part == 0]) == 2, "both ways"
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"secret": bytes(32)}, "the token is not, or no longer, that of this node"),
        ({"secret": b""}, "the token is not"),
        ({"node": "another"}, "the token is not"),
        ({"run": "run 2"}, "the server of another run"),
        ({"library": "1.2.4"}, "fedopt 1.2.3 is needed, 1.2.4 was given"),
    ],
)
def test_who_may_not_come_in(change: dict[str, Any], reason: str, listener: Listener, ca: authority.Signed) -> None:
    if "secret" in change:
        listener.roster.expect("node 4")
    person = Person(listener, ca, 4, **change)
    person.join(10.0)
    assert isinstance(person.ended, FedoptError) and reason in str(person.ended)
    assert listener.connected == [] and listener.counts["refused"] == 1


def test_a_token_opens_one_stream(listener: Listener, ca: authority.Signed) -> None:
    first = Person(listener, ca, 4)
    assert listener.wait_for([4], 10.0) == []
    assert echoed(listener, 0, [4], b"a")[4] == b"a\0"
    again = Person(listener, ca, 4, secret=first.secrets[0])
    again.join(10.0)
    assert isinstance(again.ended, FedoptError) and "no longer" in str(again.ended)
    assert listener.connected == [4] and echoed(listener, 1, [4], b"b")[4] == b"b\0"


def test_whoever_has_the_newest_secret_takes_the_stream_over(listener: Listener, ca: authority.Signed) -> None:
    first = Person(listener, ca, 4)
    assert listener.wait_for([4], 10.0) == []
    assert echoed(listener, 0, [4], b"a")[4] == b"a\0"
    second = Person(listener, ca, 4, lambda message: b"second", secret=first.secrets[-1])
    first.join(10.0)
    assert first.ended == "another stream of this client took its place"
    assert echoed(listener, 1, [4], b"b")[4] == b"second" and second.is_alive()


def test_a_client_without_tls_or_with_another_authority_gets_nothing(listener: Listener) -> None:
    for ca in (None, authority.authority("another")):
        person = Person(listener, ca, 4, reconnect_s=0.5)
        person.join(20.0)
        assert isinstance(person.ended, LinkLost) and "certificate" in str(person.ended)
    assert listener.connected == [] and listener.counts["joined"] == 0


def test_a_certificate_out_of_date_is_not_trusted(roster: Roster, ca: authority.Signed) -> None:
    listener = Listener(roster, keys=Keys(*authority.server(ca, ["localhost"], days=-1)))
    listener.start()
    try:
        person = Person(listener, ca, 4, reconnect_s=0.5)
        person.join(20.0)
        assert isinstance(person.ended, LinkLost) and "in date" in str(person.ended)
    finally:
        listener.close()


def test_an_exchange_survives_a_broken_stream(roster: Roster, keys: Keys, ca: authority.Signed) -> None:
    """The cable between the two is cut while the client works, and mended."""
    listener = Listener(roster, keys=keys, deadline_s=30.0)
    port = listener.start()
    cable = Cable(port)
    worked: list[bytes] = []
    began = threading.Event()

    def work(message: bytes) -> bytes:
        if message not in worked:  # as a client does who answers again without working again
            worked.append(message)
            began.set()
            time.sleep(0.3)
        return message

    try:
        Person(listener, ca, 4, work, port=cable.port, reconnect_s=20.0)
        assert listener.wait_for([4], 10.0) == []
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(echoed(listener, 7, [4], b"x")), daemon=True).start()
        assert began.wait(10.0)
        cable.cut()
        assert answers.get(timeout=20.0) == {4: b"x\0"}
        assert worked == [b"x\0"] and listener.counts["joined"] == 2
    finally:
        listener.close()
        cable.close()


class Cable:
    """A port that leads to another one, and can be cut."""

    def __init__(self, to: int) -> None:
        self.to, self.ends = to, list[socket.socket]()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self.socket.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            self.ends += [here, there]
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        for end in (one, other):
            end.close()

    def cut(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.ends.clear()

    def close(self) -> None:
        self.socket.close()
        self.cut()


def test_silence_has_a_reason(roster: Roster, keys: Keys, ca: authority.Signed) -> None:
    listener = Listener(roster, keys=keys, deadline_s=2.0, patience_s=0.5)
    listener.start()
    hang = threading.Event()
    try:
        Person(listener, ca, 4, lambda message: (hang.wait(4.0), message)[1])
        Person(listener, ca, 5)
        listener.wait_for([4, 5], 10.0)
        found = echoed(listener, 0, [4, 5, 6], b"x")
        assert found == {4: Silence("no answer within 2 s"), 5: b"x\1", 6: Silence("not connected for 0.5 s")}
        hang.set()
        deadline = time.monotonic() + 10.0
        while not listener.counts["late"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert listener.counts["late"] == 1
        assert echoed(listener, 1, [4, 5], b"y") == {4: b"y\0", 5: b"y\1"}
    finally:
        listener.close()


def raw(listener: Listener, ca: authority.Signed, frames: list[bytes]) -> str:
    """What a client is told that says these bytes after each other."""
    channel = grpc.secure_channel(f"localhost:{listener.port}", grpc.ssl_channel_credentials(ca.certificate))
    said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    for frame in frames:
        said.put(frame)
    with channel, pytest.raises(grpc.RpcError) as error:
        for _ in channel.stream_stream(METHOD)(iter(said.get, None), timeout=20.0):
            pass
    return str(error.value.details())


def greeting(listener: Listener, client: int) -> bytes:
    secret = listener.roster.expect(f"node {client}")
    return Frame(
        hello=Hello(version=1, library=LIBRARY, run=RUN, client=client, node=f"node {client}", secret=secret)
    ).SerializeToString()


def test_garbage_ends_the_stream_and_nothing_else(listener: Listener, ca: authority.Signed) -> None:
    Person(listener, ca, 5)
    listener.wait_for([5], 10.0)
    assert "version 1 of the link is needed, 9" in raw(
        listener, ca, [Frame(hello=Hello(version=9)).SerializeToString()]
    )
    assert "no frame of the link" in raw(listener, ca, [b"\xff" * 100])
    assert "no frame of the link" in raw(listener, ca, [greeting(listener, 4), b"\xff" * 100])
    assert listener.counts["refused"] == 2 and listener.counts["garbage"] == 1
    # more than a frame may have is not taken in
    assert "larger than max" in raw(listener, ca, [greeting(listener, 4), bytes(FRAME + 1)])
    assert echoed(listener, 0, [5], b"x") == {5: b"x\0"}


def test_a_message_longer_than_it_may_be_is_refused_by_what_it_announces(
    listener: Listener, ca: authority.Signed
) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(echoed(listener, 3, [4], b"x")), daemon=True).start()
    parts = (4 << 30) // PART
    huge = Frame(chunk=Chunk(exchange=3, part=0, parts=parts, data=bytes(PART))).SerializeToString()
    deadline = time.monotonic() + 10.0
    while 4 not in listener._asked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert f"one of {parts} was announced" in raw(listener, ca, [greeting(listener, 4), huge])
    assert "its message was refused" in answers.get(timeout=10.0)[4].reason


def test_parts_come_in_any_order_and_may_come_twice() -> None:
    message = bytes(range(256)) * (5 * PART // 512)
    chunks = [frame.chunk for frame in cut(3, message)]
    assert len(chunks) == 3
    whole = Whole(LIMIT)
    assert [whole.take(chunk) for chunk in (chunks[2], chunks[0], chunks[0], chunks[2])] == [None] * 4
    assert whole.take(chunks[1]) == message
    for wrong in (
        Chunk(exchange=3, part=0, parts=0, data=b""),
        Chunk(exchange=3, part=0, parts=LIMIT // PART + 1, data=bytes(PART)),
        Chunk(exchange=3, part=3, parts=3, data=b""),
        Chunk(exchange=3, part=0, parts=3, data=bytes(PART - 1)),
        Chunk(exchange=3, part=2, parts=3, data=bytes(PART + 1)),
    ):
        with pytest.raises(WireError, match="needed"):
            Whole(LIMIT).take(wrong)
    started = Whole(LIMIT)
    started.take(chunks[0])
    with pytest.raises(WireError, match="of 4 with"):
        started.take(Chunk(exchange=3, part=1, parts=4, data=bytes(PART)))


def test_until_a_client_showed_its_new_secret_the_one_before_is_good(roster: Roster) -> None:
    token = roster.expect("a")
    first = roster.admit(RUN, LIBRARY, 4, "a", token)
    second = roster.admit(RUN, LIBRARY, 4, "a", token)  # the welcome with `first` was lost
    with pytest.raises(Refusal):
        roster.admit(RUN, LIBRARY, 4, "a", first)
    roster.seen("a")
    with pytest.raises(Refusal):
        roster.admit(RUN, LIBRARY, 4, "a", token)
    third = roster.admit(RUN, LIBRARY, 4, "a", second)
    roster.drop("a")
    with pytest.raises(Refusal):
        roster.admit(RUN, LIBRARY, 4, "a", third)


def test_a_client_is_at_one_node_and_a_node_is_one_client(roster: Roster) -> None:
    roster.admit(RUN, LIBRARY, 4, "a", roster.expect("a"))
    with pytest.raises(Refusal, match="client 4 is at another node"):
        roster.admit(RUN, LIBRARY, 4, "b", roster.expect("b"))
    with pytest.raises(Refusal, match="this node is client 4"):
        roster.admit(RUN, LIBRARY, 5, "a", roster.expect("a"))
    with pytest.raises(Refusal, match="there are 10 clients"):
        roster.admit(RUN, LIBRARY, 10, "c", roster.expect("c"))
    roster.drop("a")
    roster.admit(RUN, LIBRARY, 4, "b", roster.expect("b"))
    assert roster.node(4) == "b"


def test_an_address_that_is_taken_is_said_so(roster: Roster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listener = Listener(roster, f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(FedoptError, match="take another address"):
            listener.start()
