"""The link among clients and networks that misbehave: what the others hear stays right, and nothing hangs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

import grpc

import fedopt
from fedopt.types import Silence
from fedopt.wire import authority
from fedopt.wire.frames import FRAME, PART, cut
from fedopt.wire.link import METHOD, Identity, Keys, LinkLost, Listener, talk
from fedopt.wire.link_pb2 import Chunk, Frame, Hello, Here
from fedopt.wire.roster import Roster

ROOT = Path(fedopt.__file__).parents[1]
RUN, LIBRARY, LIMIT = "run1", "1.2.3", 8 << 20
Behaviour = Callable[[int, bytes], Iterator[bytes]]


@pytest.fixture(scope="module")
def ca() -> authority.Signed:
    return authority.authority("test")


@pytest.fixture
def listening(ca: authority.Signed) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def make(address: str = "127.0.0.1:0", hosts: tuple[str, ...] = ("localhost",), **given: float) -> Listener:
        times = {"deadline_s": 30.0, "patience_s": 10.0, **given}
        made.append(Listener(Roster(RUN, LIBRARY, 10), address, Keys(*authority.server(ca, hosts)), **times))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


def frames(exchange: int, message: bytes) -> list[bytes]:
    return [frame.SerializeToString() for frame in cut(exchange, message)]


def hello(listener: Listener, client: int, **changes: Any) -> bytes:
    given = {"version": 1, "library": LIBRARY, "run": RUN, "client": client, "node": f"node {client}", **changes}
    given.setdefault("secret", listener.roster.expect(f"node {client}"))
    return Frame(hello=Hello(**given)).SerializeToString()


class Stream(threading.Thread):
    """A client that says what `behave` makes of each message, frame by frame, until it is cut or told to stop."""

    def __init__(self, listener: Listener, ca: authority.Signed, client: int, behave: Behaviour) -> None:
        super().__init__(daemon=True)
        self.address, self.root, self.behave = f"localhost:{listener.port}", ca.certificate, behave
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.outbox.put(hello(listener, client))
        self.ended = ""
        self.start()

    def run(self) -> None:
        with grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.root)) as channel:
            self.call = channel.stream_stream(METHOD)(iter(self.outbox.get, None))
            heard: dict[int, bytes] = {}
            try:
                for raw in self.call:
                    frame = Frame.FromString(raw)
                    if frame.HasField("welcome"):
                        self.outbox.put(Frame(here=Here()).SerializeToString())
                    if frame.HasField("done"):
                        self.ended = frame.done.reason
                        break
                    if frame.HasField("chunk"):
                        heard[frame.chunk.part] = frame.chunk.data
                        if len(heard) == frame.chunk.parts:
                            message = b"".join(heard[part] for part in sorted(heard))
                            heard.clear()
                            for said in self.behave(frame.chunk.exchange, message):
                                self.outbox.put(said)
            except grpc.RpcError as error:
                self.ended = error.details()
            finally:
                self.outbox.put(None)
                self.call.cancel()


def polite(exchange: int, message: bytes) -> Iterator[bytes]:
    yield from frames(exchange, message)


def content(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def exchanged(listener: Listener, number: int, clients: list[int], size: int) -> dict[int, bytes | Silence]:
    message = content(number, size)
    return dict(listener.ask(number, clients, lambda row: message, LIMIT))


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_parts_that_come_twice_and_in_any_order(
    rounds: int, listening: Callable[..., Listener], ca: authority.Signed
) -> None:
    dice = random.Random(5)

    def shuffled(exchange: int, message: bytes) -> Iterator[bytes]:
        parts = frames(exchange, message)
        every = parts + dice.choices(parts, k=len(parts))
        dice.shuffle(every)
        yield from every

    listener = listening()
    for client, behave in ((0, polite), (1, shuffled), (2, shuffled)):
        Stream(listener, ca, client, behave)
    assert listener.wait_for([0, 1, 2], 10.0) == []
    for number in range(rounds):
        size = dice.choice([0, 1, PART - 1, PART, PART + 1, 5 * PART + 3])
        message = content(number, size)
        assert exchanged(listener, number, [0, 1, 2], size) == dict.fromkeys((0, 1, 2), message)
    assert listener.counts["garbage"] == 0 and listener.counts["joined"] == 3


def test_a_slow_client_is_waited_for_and_keeps_nobody_waiting(
    listening: Callable[..., Listener], ca: authority.Signed
) -> None:
    def slow(exchange: int, message: bytes) -> Iterator[bytes]:
        for said in frames(exchange, message):
            time.sleep(0.25)
            yield said

    listener = listening()
    Stream(listener, ca, 0, slow)
    Stream(listener, ca, 1, polite)
    listener.wait_for([0, 1], 10.0)
    message = content(1, 4 * PART)
    came = list(listener.ask(1, [0, 1], lambda row: message, LIMIT))
    assert came == [(1, message), (0, message)]


def test_a_client_beyond_the_deadline_is_left_out_and_its_rest_is_dropped(
    listening: Callable[..., Listener], ca: authority.Signed
) -> None:
    go = threading.Event()

    def halting(exchange: int, message: bytes) -> Iterator[bytes]:
        first, *rest = frames(exchange, message)
        yield first
        if exchange == 1:
            go.wait(20.0)
        yield from rest

    listener = listening(deadline_s=1.0)
    Stream(listener, ca, 0, halting)
    Stream(listener, ca, 1, polite)
    listener.wait_for([0, 1], 10.0)
    assert exchanged(listener, 1, [0, 1], 3 * PART) == {0: Silence("no answer within 1 s"), 1: content(1, 3 * PART)}
    go.set()
    assert exchanged(listener, 2, [0, 1], 3 * PART) == dict.fromkeys((0, 1), content(2, 3 * PART))


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_half_an_answer_is_worth_nothing(rounds: int, listening: Callable[..., Listener], ca: authority.Signed) -> None:
    """A client that dies while it answers, and comes back with all of it."""
    dice, listener = random.Random(6), listening()

    def asked(number: int, answers: queue.SimpleQueue[Any]) -> None:
        answers.put(exchanged(listener, number, [0, 1], 3 * PART))

    def dies(exchange: int, message: bytes) -> Iterator[bytes]:
        parts = frames(exchange, message)
        yield from dice.sample(parts, dice.randint(1, len(parts) - 1))
        time.sleep(0.2)  # they are on their way
        client.call.cancel()

    Stream(listener, ca, 1, polite)
    for number in range(rounds):
        client = Stream(listener, ca, 0, dies)
        assert listener.wait_for([0, 1], 10.0) == []
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=asked, args=(number, answers), daemon=True).start()
        client.join(10.0)
        until(lambda: 0 not in listener.connected)
        assert answers.empty()
        Stream(listener, ca, 0, polite)
        assert answers.get(timeout=20.0) == dict.fromkeys((0, 1), content(number, 3 * PART))
        listener.revoke(0)
        until(lambda: 0 not in listener.connected)


def trouble(listener: Listener, ca: authority.Signed, dice: random.Random) -> dict[str, Callable[[], object]]:
    """People who have no business here, by name; each comes once when it is called."""

    def said(*raw: bytes, root: bytes | None = ca.certificate) -> None:
        address = f"localhost:{listener.port}"
        alone = [("grpc.use_local_subchannel_pool", 1)]  # or one that failed keeps the next from trying
        made = grpc.insecure_channel(address, alone) if root is None else None
        made = made or grpc.secure_channel(address, grpc.ssl_channel_credentials(root), alone)
        with made as channel, contextlib.suppress(grpc.RpcError):
            for _ in channel.stream_stream(METHOD)(iter([*raw]), timeout=5.0):
                pass

    def bytes_over(wrap: Callable[[socket.socket], socket.socket]) -> None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("localhost", listener.port), 5.0) as plain,
            wrap(plain) as end,
        ):
            end.sendall(dice.randbytes(dice.randint(1, 100_000)))
            end.settimeout(1.0)
            end.recv(100)

    context = ssl.create_default_context(cadata=ca.certificate.decode())
    context.set_alpn_protocols(["h2"])
    used = listener.roster.expect("node 8")
    listener.roster.admit(RUN, LIBRARY, 8, "node 8", used)
    listener.roster.seen("node 8")
    huge = Frame(chunk=Chunk(exchange=0, part=0, parts=(4 << 30) // PART, data=bytes(PART))).SerializeToString()
    return {
        "wrong token": lambda: said(hello(listener, 9, secret=dice.randbytes(32))),
        "replayed token": lambda: said(hello(listener, 8, secret=used)),
        "another's node": lambda: said(hello(listener, 0, secret=dice.randbytes(32))),
        "no TLS": lambda: said(hello(listener, 9, secret=bytes(32)), root=None),
        "another authority": lambda: said(root=authority.authority("another").certificate),
        "4 GB to nobody's question": lambda: said(hello(listener, 9), huge),
        "a frame too long": lambda: said(hello(listener, 9), bytes(FRAME + 1)),
        "random frames": lambda: said(hello(listener, 9), *(dice.randbytes(dice.randint(1, 999)) for _ in range(5))),
        "no greeting": lambda: said(dice.randbytes(500)),
        "random bytes": lambda: bytes_over(lambda end: end),
        "random bytes in TLS": lambda: bytes_over(lambda end: context.wrap_socket(end, server_hostname="localhost")),
    }


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_crowd_at_the_door(times: int, listening: Callable[..., Listener], ca: authority.Signed) -> None:
    """Exchanges with two clients go on as if nobody else were there, whoever comes meanwhile."""
    listener, dice = listening(), random.Random(7)
    people = [Stream(listener, ca, client, polite) for client in (0, 1)]
    assert listener.wait_for([0, 1], 10.0) == []
    crowd = [call for _ in range(times) for call in trouble(listener, ca, dice).values()]
    dice.shuffle(crowd)
    over = threading.Event()

    def come() -> None:
        for call in crowd:
            call()
        over.set()

    threading.Thread(target=come, daemon=True).start()
    number = 0
    while not over.is_set():
        assert exchanged(listener, number, [0, 1], 2 * PART + 5) == dict.fromkeys((0, 1), content(number, 2 * PART + 5))
        number += 1
    assert [one.ended for one in people] == ["", ""] and listener.connected == [0, 1]
    # wrong, replayed and another's token, no greeting
    assert listener.counts["refused"] == 4 * times
    assert listener.counts["garbage"] >= times
    # no TLS (gRPC tries again by itself), another authority, and bytes that are none of TLS, or none of gRPC
    until(lambda: listener.unopened >= 4 * times)


def test_an_announcement_of_4_gb_takes_no_memory(listening: Callable[..., Listener], ca: authority.Signed) -> None:
    def announces(exchange: int, message: bytes) -> Iterator[bytes]:
        parts = (4 << 30) // PART
        yield Frame(chunk=Chunk(exchange=exchange, part=0, parts=parts, data=bytes(PART))).SerializeToString()

    listener = listening()
    rude = Stream(listener, ca, 0, announces)
    Stream(listener, ca, 1, polite)
    listener.wait_for([0, 1], 10.0)
    found = exchanged(listener, 1, [0, 1], 19_000)
    assert found[1] == content(1, 19_000)
    assert isinstance(found[0], Silence) and "one of 16384 was announced" in found[0].reason
    rude.join(10.0)
    assert "one of 16384 was announced" in rude.ended


def bench(module: str, out: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{module}", "--out", str(out), *words]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300.0, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.slow
def test_the_server_holds_three_messages_and_one_for_each_client_at_the_most(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux, which says how much memory a process had at its peak")
    found = bench("link", tmp_path / "found.json", "--clients", "8", "--bytes", "6500000", "--exchanges", "5")
    assert 8 * 6_500_000 < found["grown"] < 11 * 6_500_000


@pytest.mark.slow
def test_many_streams_are_held(tmp_path: Path) -> None:
    found = bench("streams", tmp_path / "found.json", "--streams", "200", "--seconds", "3", "--every", "1")
    assert (found["fewest"], found["lost"], found["answers"]) == (200, 0, 800)
    assert found["counts"]["joined"] == 200 and found["counts"]["left"] == 0


def lost(listener: Listener, root: bytes, address: str = "localhost") -> str:
    """What a client says who does not come in."""
    with pytest.raises(LinkLost) as error:
        talk(
            f"{address}:{listener.port}", Identity(RUN, LIBRARY, 4, "node 4"), lambda: bytes(32), lambda secret: None,
            lambda message: message, limit=LIMIT, root=root, reconnect_s=0.3,
        )  # fmt: skip
    return str(error.value)


def test_a_certificate_that_is_not_trusted_is_said_why_and_counted(
    ca: authority.Signed, listening: Callable[..., Listener]
) -> None:
    listener = listening()
    assert listener.unopened == 0
    assert "not from the authority that this client was given" in lost(listener, authority.authority("b").certificate)
    assert "for another host name" in lost(listener, ca.certificate, "127.0.0.1")
    until(lambda: listener.unopened >= 2)
    assert listener.counts["streams"] == listener.counts["joined"] == listener.counts["refused"] == 0


@pytest.mark.parametrize(
    ("early", "days", "reason"),
    [
        (
            timedelta(minutes=5),
            -1,
            "its certificate is not in date any more; give the server another, or set the clock",
        ),
        (-timedelta(days=2), 5, "its certificate begins later than the clock of this machine says; set it"),
    ],
)
def test_a_certificate_out_of_date_names_the_clock(
    early: timedelta, days: int, reason: str, ca: authority.Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "EARLY", early)
    listener = Listener(Roster(RUN, LIBRARY, 10), keys=Keys(*authority.server(ca, ["localhost"], days=days)))
    listener.start()
    try:
        assert reason in lost(listener, ca.certificate)
        until(lambda: listener.unopened >= 1)
        assert listener.counts["streams"] == 0
    finally:
        listener.close()


def test_a_connection_that_came_in_is_not_counted_as_one_that_failed(
    listening: Callable[..., Listener], ca: authority.Signed
) -> None:
    listener = listening()
    Stream(listener, ca, 1, polite)
    assert listener.wait_for([1], 10.0) == []
    until(lambda: listener.counts["handshakes"] == 1)
    assert listener.unopened == 0 and listener.counts["streams"] == 1


class Wire:
    """A network namespace with one wire to this one, which can be cut: `here` is this end's address."""

    def __init__(self) -> None:
        tail, third = f"{os.getpid() % 0xFFFFF:x}", os.getpid() % 250
        self.space, self.end, self.far = f"fedopt{tail}", f"fo{tail}a", f"fo{tail}b"
        self.here, self.there = f"10.213.{third}.1", f"10.213.{third}.2"

    def lay(self) -> None:
        ip("netns", "add", self.space)
        ip("link", "add", self.end, "type", "veth", "peer", "name", self.far, "netns", self.space)
        ip("addr", "add", f"{self.here}/30", "dev", self.end)
        ip("link", "set", self.end, "up")
        ip("-n", self.space, "addr", "add", f"{self.there}/30", "dev", self.far)
        ip("-n", self.space, "link", "set", self.far, "up")

    def cut(self) -> None:
        ip("link", "set", self.end, "down")

    def mend(self) -> None:
        ip("link", "set", self.end, "up")

    def within(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.space, *command]

    def close(self) -> None:
        for words in (("link", "del", self.end), ("netns", "del", self.space)):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                ip(*words)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    try:
        made.lay()
    except OSError as error:
        pytest.skip(f"needs to make a network namespace: {error}")
    except subprocess.CalledProcessError as error:
        made.close()
        pytest.skip(f"needs to make a network namespace: {error.stderr.strip()}")
    yield made
    made.close()


CLIENT = """
import sys
from pathlib import Path
from fedopt.wire.link import Identity, talk

client, node, secret, run, library = sys.stdin.readline().split()
secrets = [bytes.fromhex(secret)]
talk(sys.argv[1], Identity(run, library, 4, node), lambda: secrets[-1], secrets.append, lambda message: message,
     limit=8 << 20, root=Path(sys.argv[2]).read_bytes(), reconnect_s=60.0)
"""


@pytest.mark.parametrize("seconds", [0.7, pytest.param(15.0, marks=pytest.mark.slow)])
def test_a_cable_that_is_cut_and_mended(
    seconds: float, wire: Wire, listening: Callable[..., Listener], ca: authority.Signed, tmp_path: Path
) -> None:
    """No end of a connection is told: for a moment, and for so long that both ends give the stream up."""
    listener = listening(f"{wire.here}:0", (wire.here,), deadline_s=60.0, patience_s=60.0)
    pem = tmp_path / "ca.pem"
    pem.write_bytes(ca.certificate)
    given = (f"{wire.here}:{listener.port}", str(pem))
    long, line = seconds > 10.0, f"4 node4 {listener.roster.expect('node4').hex()} {RUN} {LIBRARY}\n"
    command = ["-c", CLIENT] if long else ["bench/echo.py"]  # which begins sooner, and does not come back
    client = subprocess.Popen(
        wire.within(sys.executable, *command, *given), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert client.stdin is not None
    client.stdin.write(line)
    client.stdin.close()
    try:
        assert listener.wait_for([4], 60.0) == []
        wire.cut()
        mending = threading.Timer(seconds, wire.mend)
        mending.start()
        began = time.monotonic()
        assert exchanged(listener, 1, [4], 3 * PART) == {4: content(1, 3 * PART)}
        assert time.monotonic() - began >= seconds
        mending.join()
        assert exchanged(listener, 2, [4], 3 * PART) == {4: content(2, 3 * PART)}
        assert listener.counts["came_back"] == long  # keep-alive pings were not answered
        listener.close()
        assert client.wait(20.0) == 0
    finally:
        client.kill()
        client.wait()


def test_a_server_without_tls_is_not_talked_to(ca: authority.Signed) -> None:
    listener = Listener(Roster(RUN, LIBRARY, 10))
    listener.start()
    try:
        assert "was not reached for 0.3 s" in lost(listener, ca.certificate)
        assert listener.counts["joined"] == 0
    finally:
        listener.close()
