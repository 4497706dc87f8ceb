"""The monitor over loopback: what a watcher is told from the start, in the middle, after a restart; and who is not."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")

import grpc

import fedopt
from fedopt.engine.record import Metrics, write_json
from fedopt.registry import ConfigError
from fedopt.types import FedoptError, WireError
from fedopt.wire import authority, monitor, tail
from fedopt.wire.address import Address
from fedopt.wire.link import Keys
from fedopt.wire.monitor import Monitor, fitting, follow
from fedopt.wire.monitor_pb2 import About as AboutMessage
from fedopt.wire.monitor_pb2 import Event, FollowRequest
from fedopt.wire.monitor_pb2 import Recorded as RecordedMessage
from fedopt.wire.tail import About, Away, Happening, Links, Over, Recorded, State
from tests.wire.test_link import Cable

ROOT = Path(fedopt.__file__).parents[1]
HERE = Address("127.0.0.1", 0)
TOKEN = "a token of some length"


class Run:
    """A run folder that is written to as the engine does, by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "config.toml").write_text('[data]\nname = "digits"\n')
        write_json(folder / "partition.json", {"clients": [{}, {}, {}], "attackers": [2]})
        self.begin()

    def begin(self, before: int = 0) -> None:
        """From the start, or from a checkpoint after so many exchanges."""
        self.status("running")
        self.metrics = Metrics(self.folder / "metrics.jsonl", before)

    def status(self, status: str, reason: str = "") -> None:
        write_json(self.folder / "run.json", {"name": "toy", "strategy": "fedavg", "rounds": 9, "status": status,
                                              "reason": reason})  # fmt: skip

    def write(self, *numbers: int, **more: Any) -> None:
        for number in numbers:
            self.metrics.append({"exchange": number, "round": number + 1, **more})

    def end(self, status: str = "finished", reason: str = "all rounds done") -> None:
        self.metrics.__exit__(None, None, None)
        self.status(status, reason)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path / "run")
    yield made
    with contextlib.suppress(ValueError, OSError):
        made.metrics.__exit__(None, None, None)


@pytest.fixture(scope="module")
def ca() -> authority.Signed:
    return authority.authority("test")


@pytest.fixture(scope="module")
def keys(ca: authority.Signed) -> Keys:
    return Keys(*authority.server(ca, ["localhost", "127.0.0.1"]))


class Watcher(threading.Thread):
    """Somebody who listens to what is told, in a thread."""

    def __init__(self, happenings: Iterator[Happening]) -> None:
        super().__init__(daemon=True)
        self.happenings, self.heard = happenings, list[Happening]()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for happening in self.happenings:
                self.heard.append(happening)
        except FedoptError as error:
            self.error = error

    def until(self, condition: Any, seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not condition(self) and time.monotonic() < until:
            time.sleep(0.01)
        assert condition(self), self.heard

    def lines(self) -> list[bytes]:
        """The record as it was told, without what was void later."""
        lines: list[bytes] = []
        for happening in self.heard.copy():
            if isinstance(happening, About):
                del lines[happening.after :]
            elif isinstance(happening, Recorded):
                assert happening.number == len(lines)
                lines.append(happening.text)
        return lines


def content(run: Run) -> list[bytes]:
    return (run.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def asked(port: int, request: bytes, token: str | None = None) -> list[Event]:
    """What comes of a request in bytes, until the stream ends. Raises grpc.RpcError."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        call = channel.unary_stream("/fedopt.v1.Monitor/Follow")(request, metadata=metadata, timeout=20.0)
        return [Event.FromString(raw) for raw in call]


def request(**given: Any) -> bytes:
    return FollowRequest(**{"version": 1, **given}).SerializeToString()


def test_a_run_is_told_from_its_start_to_its_end(run: Run, ca: authority.Signed, keys: Keys) -> None:
    states = {"idle": [0, 1], "away": list(range(2, 40))}
    run.write(0, 1)
    with Monitor(run.folder, HERE, keys, TOKEN, lambda: states) as server:
        watcher = Watcher(follow(Address("localhost", server.port), ca.certificate, TOKEN))
        watcher.until(lambda w: len(w.lines()) == 2)
        run.write(2)
        watcher.until(lambda w: len(w.lines()) == 3)
        states = {"idle": [0]}
        watcher.until(lambda w: Links({"idle": State(1, [0])}) in w.heard)
        run.write(3, 4, loss=0.5)
        run.end()
    watcher.join(10.0)
    assert watcher.lines() == content(run) and len(content(run)) == 5
    first, *_, last = watcher.heard
    assert isinstance(first, About) and first.after == 0
    assert first.facts == {
        "name": "toy", "strategy": "fedavg", "rounds": 9, "status": "running", "reason": "",
        "data": "digits", "clients": 3, "attackers": [2], "folder": str(run.folder),
    }  # fmt: skip
    assert [h.more for h in watcher.heard if isinstance(h, Recorded)][:2] == [True, False]
    assert Links({"idle": State(2, [0, 1]), "away": State(38, list(range(2, 22)))}) in watcher.heard
    assert last == Over("finished", "all rounds done")


def test_from_the_middle(run: Run) -> None:
    run.write(*range(600))  # more than are read at once
    run.end("failed", "x" * 9000)
    with Monitor(run.folder, HERE) as server:
        threading.Timer(0.5, server.close).start()

        def numbers(**given: Any) -> tuple[int, list[int]]:
            first, *events = asked(server.port, request(**given))
            assert events[-1].over.status == "failed" and len(events[-1].over.reason) == 2000
            return first.about.after, [event.recorded.number for event in events[:-1]]

        right = tail.digest(content(run)[589])
        with futures.ThreadPoolExecutor() as pool:
            told = pool.map(
                lambda given: numbers(**given),
                [{"after": 590}, {"after": 590, "last": right}, {"after": 590, "last": b"other"}, {"after": 601}, {}],
            )
            assert [(after, lines[0], len(lines)) for after, lines in told] == [
                (590, 590, 10), (590, 590, 10), (0, 0, 600), (0, 0, 600), (0, 0, 600),
            ]  # fmt: skip


def test_a_server_that_goes_on_from_a_checkpoint(run: Run, ca: authority.Signed, keys: Keys) -> None:
    """The watcher has nine lines; the server dies, and goes on after five, of which the next differ."""
    first = Monitor(run.folder, HERE, keys, TOKEN)
    cable = Cable(first.start())
    watcher = Watcher(follow(Address("localhost", cable.port), ca.certificate, TOKEN, reconnect_s=30.0))
    try:
        run.write(*range(9), try_=1)
        watcher.until(lambda w: len(w.lines()) == 9)
        with Monitor(run.folder, HERE, keys, TOKEN) as second:
            cable.to = second.port
            cable.cut()
            first._server.stop(0.0).wait()
            watcher.until(lambda w: any(isinstance(h, Away) for h in w.heard))
            # the new server has begun, and its run not yet: what is told is still the old record
            watcher.until(lambda w: isinstance(w.heard[-1], About))
            assert watcher.heard[-1].after == 9  # type: ignore[union-attr]
            run.metrics.__exit__(None, None, None)
            run.begin(before=5)
            run.write(*range(5, 12), try_=2)
            watcher.until(lambda w: len(w.lines()) == 12)
            run.end()
        watcher.join(10.0)
        assert watcher.lines() == content(run)
        assert [json.loads(line)["try_"] for line in watcher.lines()] == [1] * 5 + [2] * 7
        assert watcher.heard[-1] == Over("finished", "all rounds done")
    finally:
        cable.close()


def test_a_server_that_is_gone_is_looked_for_and_given_up(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    watcher = Watcher(follow(Address("127.0.0.1", port), reconnect_s=1.0))
    watcher.join(20.0)
    assert isinstance(watcher.heard[0], Away)
    last = watcher.heard[-1]
    assert isinstance(last, Over) and last.status == "lost" and "not reached for 1 s" in last.reason


def test_how_it_ended_where_the_run_never_began(run: Run) -> None:
    """run.json may be of an earlier try: what the server says counts."""
    run.end("finished")
    with pytest.raises(KeyError), Monitor(run.folder, HERE) as server:
        watcher = Watcher(follow(Address("127.0.0.1", server.port)))
        watcher.until(lambda w: w.heard)
        raise KeyError("no such key")
    watcher.join(10.0)
    assert watcher.heard[-1] == Over("failed", "KeyError: 'no such key'")


@pytest.mark.parametrize("token", [None, "", "a token of some lengt", TOKEN + "h", "Bearer " + TOKEN])
def test_without_the_token_nothing_is_told(token: str | None, run: Run, ca: authority.Signed, keys: Keys) -> None:
    run.write(0)
    with Monitor(run.folder, HERE, keys, TOKEN) as server:
        watcher = Watcher(follow(Address("localhost", server.port), ca.certificate, token))
        watcher.join(10.0)
        assert "refuses: a token is needed" in str(watcher.error) and watcher.heard == []


def test_another_authority_is_not_trusted(run: Run, keys: Keys) -> None:
    with Monitor(run.folder, HERE, keys, TOKEN) as server:
        other = authority.authority("another").certificate
        watcher = Watcher(follow(Address("localhost", server.port), other, TOKEN, reconnect_s=0.5))
        watcher.join(20.0)
        assert [type(h) for h in watcher.heard[-1:]] == [Over] and not any(isinstance(h, About) for h in watcher.heard)


def test_what_others_can_reach_needs_keys_and_a_token(run: Run, keys: Keys) -> None:
    for given in ((None, None), (keys, None), (None, TOKEN)):
        with pytest.raises(ConfigError, match="monitor-listen: others can reach"):
            Monitor(run.folder, Address("0.0.0.0", 0), *given)
    Monitor(run.folder, Address("0.0.0.0", 0), keys, TOKEN)
    with pytest.raises(FedoptError, match="--authority"):
        follow(Address("10.0.0.1", 9444), token=TOKEN)


def test_a_token_has_some_length(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for wrong in ("", "short", "fifteen letters", "sixteen letters w", "sixteenlettersä"):
        path.write_text(wrong + "\n")
        with pytest.raises(ConfigError, match="monitor-token"):
            monitor.token(path, "monitor-token")
    with pytest.raises(ConfigError, match="monitor-token"):
        monitor.token(tmp_path / "absent", "monitor-token")
    path.write_text("\n 0123456789abcdef\n")
    assert monitor.token(path, "monitor-token") == "0123456789abcdef"


def test_requests_that_are_none_and_too_long_ones(run: Run) -> None:
    with Monitor(run.folder, HERE) as server:
        for wrong, why in (
            (b"\xff" * 20, "no request of the monitor"),
            (request(version=2), "version 1 of the monitor is needed, 2 was given"),
            (b"", "version 1 of the monitor is needed, 0 was given"),
            (request(last=bytes(monitor.ASKED)), "larger than max"),
        ):
            with pytest.raises(grpc.RpcError) as error:
                asked(server.port, wrong)
            assert why in str(error.value.details())
        threading.Timer(0.3, server.close).start()
        assert asked(server.port, request())[0].HasField("about")


def test_a_line_that_is_too_long_goes_without_its_longest_values(run: Run) -> None:
    rest = "y" * (monitor.EVENT - 5000)
    run.write(0, longest="x" * monitor.EVENT, rest=rest, accuracy=0.5)
    run.write(1)
    run.end()
    with Monitor(run.folder, HERE) as server:
        watcher = Watcher(follow(Address("127.0.0.1", server.port)))
        watcher.until(lambda w: len(w.lines()) == 2)
    watcher.join(10.0)
    line = json.loads(watcher.lines()[0])
    assert line == {"exchange": 0, "round": 1, "rest": rest, "accuracy": 0.5, "left_out": ["longest"]}
    assert json.loads(fitting(b'{"a": 1, "b": "' + b"x" * 100 + b'"}', 50)) == {"a": 1, "left_out": ["b"]}
    assert fitting(b'{"a": 1}', 8) == b'{"a": 1}'


def test_watchers_are_so_many_at_most(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "WATCHERS", 2)
    with Monitor(run.folder, HERE) as server:
        where = Address("127.0.0.1", server.port)
        two = [Watcher(follow(where)) for _ in range(2)]
        for watcher in two:
            watcher.until(lambda w: w.heard)
        third = Watcher(follow(where))
        third.join(10.0)
        assert "too many watchers" in str(third.error)
        run.write(0)
        for watcher in two:
            watcher.until(lambda w: len(w.lines()) == 1)


def test_who_says_nothing_takes_no_place(run: Run, ca: authority.Signed, keys: Keys, monkeypatch: Any) -> None:
    """A stream without a token and without a request is ended, and does not wait for one."""
    monkeypatch.setattr(monitor, "WATCHERS", 1)
    never: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with Monitor(run.folder, HERE, keys, TOKEN) as server:
        credentials = grpc.ssl_channel_credentials(ca.certificate)
        with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
            call = channel.stream_stream("/fedopt.v1.Monitor/Follow")(iter(never.get, None))
            with pytest.raises(grpc.RpcError) as error:
                next(call)
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
            never.put(None)
        watcher = Watcher(follow(Address("localhost", server.port), ca.certificate, TOKEN))
        watcher.until(lambda w: w.heard)
        assert watcher.error is None


def test_an_address_that_is_taken_is_said_so(run: Run) -> None:
    with Monitor(run.folder, HERE) as server, pytest.raises(FedoptError, match="take another monitor-listen"):
        Monitor(run.folder, Address("127.0.0.1", server.port)).start()


@contextlib.contextmanager
def liar(said: list[bytes]) -> Iterator[Address]:
    """A server that says these bytes to whoever asks."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_stream_rpc_method_handler(lambda request, context: iter(said))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fedopt.v1.Monitor", {"Follow": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Address("127.0.0.1", port)
    finally:
        server.stop(0.0).wait()


def about(facts: bytes, after: int = 0) -> bytes:
    return Event(about=AboutMessage(facts=facts, after=after)).SerializeToString()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (bytes(monitor.EVENT + 1), "says too much at once"),
        (b"\xff" * 20, "not of the monitor"),
        (about(b"[1, 2]"), "an object is needed"),
        (about(b"[" * 100_000), "not of the monitor"),
        (about(b"{}", after=3), "line 0 is needed, it goes on at 3"),
        (Event(recorded=RecordedMessage(number=7)).SerializeToString(), "line 0 is needed, line 7 came"),
    ],
)
def test_a_watcher_trusts_no_server(said: bytes, why: str) -> None:
    with liar([said]) as address, pytest.raises(FedoptError, match=why):
        for _ in follow(address, reconnect_s=0.5):
            pass


def test_something_else_that_speaks_grpc_is_no_monitor() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(FedoptError, match="is that the address of monitor-listen"):
            list(follow(Address("127.0.0.1", port)))
    finally:
        server.stop(0.0).wait()


def test_the_tail_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    end = tail.Tail(path)
    assert end.read() == (False, [])
    with path.open("wb", buffering=0) as file:
        file.write(b"1\n2")
        assert end.read() == (False, [b"1\n"])
        assert end.read() == (False, [])  # a line that is being written
        file.write(b"2\n3\n")
        assert end.read(1) == (False, [b"22\n"])
        assert end.read() == (False, [b"3\n"])
    draft = tmp_path / "draft"
    draft.write_bytes(b"1\n22\n3\n4\n")
    draft.replace(path)
    assert end.read() == (False, [b"4\n"])  # a file that begins alike
    draft.write_bytes(b"1\n22\n")
    draft.replace(path)
    assert end.read() == (True, [b"1\n", b"22\n"])
    draft.write_bytes(b"1\n23\n3\n")
    draft.replace(path)
    assert end.read() == (True, [b"1\n", b"23\n", b"3\n"])
    end.close()


def test_a_watcher_who_meets_a_message_of_another_kind() -> None:
    """A server of a later version may say more."""
    with liar([b"", Event(over={"status": "stopped", "reason": "early"}).SerializeToString()]) as address:
        assert list(follow(address)) == [Over("stopped", "early")]
    with pytest.raises(WireError):
        monitor._happening(about(b""))


def test_the_generated_code_is_that_of_the_protocol(tmp_path: Path) -> None:
    if not (ROOT / "proto").is_dir():
        pytest.skip("needs the folder proto/ of a checkout")
    pytest.importorskip("grpc_tools", reason="needs grpcio-tools, of fedopt[dev]")
    made = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={tmp_path}",
         f"--pyi_out={tmp_path}", "fedopt/v1/monitor.proto"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr

    def settled(path: Path) -> list[str]:
        """Without the version of the compiler."""
        lines = path.read_text().splitlines()
        return [line for line in lines if "Protobuf Python Version" not in line and not line.strip(" ,").isdigit()]

    for name in ("monitor_pb2.py", "monitor_pb2.pyi"):
        fresh, kept = tmp_path / "fedopt" / "v1" / name, ROOT / "fedopt" / "wire" / name
        assert settled(fresh) == settled(kept), f"{name} is out of date: run `make proto`"
    shutil.rmtree(tmp_path)
