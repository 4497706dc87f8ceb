"""Figures for Prometheus: what they say of a link with clients that behave in every way, and how they are asked for."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("grpc", reason="needs gRPC: pip install 'fedopt[deploy]'")
pytest.importorskip("cryptography", reason="needs cryptography: pip install 'fedopt[deploy]'")
pytest.importorskip("prometheus_client", reason="needs prometheus_client: pip install 'fedopt[deploy]'")

from prometheus_client.parser import text_string_to_metric_families

from fedopt.registry import ConfigError
from fedopt.types import FedoptError, Silence
from fedopt.wire import address, authority, metrics
from fedopt.wire.address import Address
from fedopt.wire.frames import cut
from fedopt.wire.link import Keys, Listener
from fedopt.wire.link_pb2 import Frame, Hello, Here
from fedopt.wire.metrics import Exporter
from fedopt.wire.roster import Roster
from tests.wire.test_link import LIBRARY, RUN, Cable, Person, echoed, greeting, raw

HERE = Address("127.0.0.1", 0)
Figures = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def ca() -> authority.Signed:
    return authority.authority("test")


@pytest.fixture
def listener(ca: authority.Signed) -> Iterator[Listener]:
    keys = Keys(*authority.server(ca, ["localhost", "127.0.0.1"]))
    made = Listener(Roster(RUN, LIBRARY, 8), keys=keys, deadline_s=1.5, patience_s=20.0)
    made.start()
    yield made
    made.close()


@pytest.fixture
def exporter(listener: Listener) -> Iterator[Exporter]:
    made = Exporter("ab12", "fedavg", listener)
    yield made
    made.close()


def scraped(port: int) -> Figures:
    """Figures by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10.0) as said:
        text = said.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def soon(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10.0
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def line(number: int, **more: Any) -> dict[str, Any]:
    return {
        "exchange": number, "round": number + 1, "program": "train", "clients": [0, 2, 5],
        "rejected": [{"client": 1, "reason": "NaN"}], "bytes_up": 300, "bytes_down": 500,
        "seconds": {"plan": 0.125, "map": 0.25, "absorb": 0.125, "evaluate": 0.25}, **more,
    }  # fmt: skip


def test_what_the_record_says(exporter: Exporter) -> None:
    port = exporter.start(HERE)
    for number in range(3):
        exporter.update(line(number))
    exporter.update(line(3, program="survey.loss", clients=[0, 1, 2, 3], rejected=[], seconds={"map": 100.0}))
    found = scraped(port)
    assert found[("fedopt_exchanges_total",)] == 4
    assert found[("fedopt_round",)] == 4
    assert found[("fedopt_client_updates_total",)] == 9  # answers to a survey are no updates
    assert found[("fedopt_rejected_total",)] == 3
    assert found[("fedopt_message_bytes_total", "up")] == 1200 and found[("fedopt_message_bytes_total", "down")] == 2000
    assert found[("fedopt_exchange_seconds_count",)] == 4 and found[("fedopt_exchange_seconds_sum",)] == 102.25
    assert found[("fedopt_exchange_seconds_bucket", "0.5")] == 0
    assert found[("fedopt_exchange_seconds_bucket", "1.0")] == 3
    assert found[("fedopt_exchange_seconds_bucket", "120.0")] == 4
    assert found[("fedopt_run_info", "ab12", "fedavg")] == 1


def test_what_the_link_says(listener: Listener, exporter: Exporter, ca: authority.Signed) -> None:
    """Eight clients: 0 and 1 answer, 2 does not, 3 breaks off and comes back, 4 says garbage, 5 is revoked."""
    port, cable, hang = exporter.start(HERE), Cable(listener.port), threading.Event()
    try:
        Person(listener, ca, 0)
        Person(listener, ca, 1)
        Person(listener, ca, 2, lambda message: (hang.wait(20.0), message)[1])
        Person(listener, ca, 3, port=cable.port, reconnect_s=20.0)
        Person(listener, ca, 5)
        assert listener.wait_for([0, 1, 2, 3, 5], 10.0) == []
        content = bytes(30_000)
        answers: queue.SimpleQueue[dict[int, bytes | Silence]] = queue.SimpleQueue()
        asked = threading.Thread(target=lambda: answers.put(echoed(listener, 7, [0, 1, 2], content)), daemon=True)
        asked.start()
        frames = sum(len(frame.SerializeToString()) for frame in cut(7, content + b"\0"))
        here = len(Frame(here=Here()).SerializeToString())
        soon(lambda: scraped(port)[("fedopt_answer_seconds_count",)] == 2)
        # whoever does not answer is told too, and everybody says once that it is there
        soon(lambda: scraped(port)[("fedopt_link_bytes_total", "out")] >= 3 * frames)
        soon(lambda: scraped(port)[("fedopt_link_bytes_total", "in")] >= 2 * frames + 5 * here)
        found = scraped(port)
        assert clients(found) == {"idle": 4, "working": 1, "away": 0, "revoked": 0, "never_came": 3}
        assert found[("fedopt_link_bytes_total", "out")] == 3 * frames
        assert found[("fedopt_link_bytes_total", "in")] == 2 * frames + 5 * here
        assert found[("fedopt_link_silent_total",)] == 0

        asked.join(10.0)
        assert answers.get()[2] == Silence("no answer within 1.5 s")
        assert scraped(port)[("fedopt_link_silent_total",)] == 1
        hang.set()
        soon(lambda: scraped(port)[("fedopt_link_late_total",)] == 1)

        cable.cut()
        soon(lambda: scraped(port)[("fedopt_link_came_back_total",)] == 1)
        raw(listener, ca, [greeting(listener, 4), b"\xff" * 100])
        listener.revoke(5)
        soon(lambda: clients(scraped(port)) == {"idle": 4, "working": 0, "away": 1, "revoked": 1, "never_came": 2})
        found = scraped(port)
        assert found[("fedopt_link_garbage_total",)] == 1
        assert found[("fedopt_link_joined_total",)] == 7

        def ended() -> float:  # of a stream that broke, the server may hear by the next one
            found = scraped(port)
            return found[("fedopt_link_left_total",)] + found[("fedopt_link_replaced_total",)]

        soon(lambda: ended() == 3)
        assert found[("fedopt_answer_seconds_count",)] == 2  # one that comes late is none
        assert 0 < found[("fedopt_answer_seconds_sum",)] < 3.0
    finally:
        hang.set()
        cable.close()


def clients(found: Figures) -> dict[str, float]:
    return {name[1]: value for name, value in found.items() if name[0] == "fedopt_link_clients"}


def test_who_is_refused_is_counted_by_what_was_wrong(
    listener: Listener, exporter: Exporter, ca: authority.Signed
) -> None:
    port = exporter.start(HERE)

    def hello(**changes: Any) -> bytes:
        given = {"version": 1, "library": LIBRARY, "run": RUN, "client": 4, "node": "a", "secret": bytes(32), **changes}
        return Frame(hello=Hello(**given)).SerializeToString()

    for frame in (b"\xff" * 9, hello(version=2), hello(run="another"), hello(library="0"), hello(), hello()):
        raw(listener, ca, [frame])
    raw(listener, ca, [hello(client=8, secret=listener.roster.expect("a"))])
    listener.roster.admit(RUN, LIBRARY, 4, "b", listener.roster.expect("b"))
    raw(listener, ca, [hello(secret=listener.roster.expect("a"))])
    found = {name[1]: value for name, value in scraped(port).items() if name[0] == "fedopt_link_refused_total"}
    assert found == {"greeting": 1, "version": 1, "run": 1, "library": 1, "token": 2, "client": 2}
    assert clients(scraped(port))["never_came"] == 8


def test_a_client_that_is_revoked_while_it_is_away_is_so_until_it_comes_again(
    listener: Listener, ca: authority.Signed
) -> None:
    person = Person(listener, ca, 4)
    listener.wait_for([4], 10.0)
    listener.revoke(4)
    person.join(10.0)
    assert listener.states()["revoked"] == [4] and listener.states()["idle"] == []
    Person(listener, ca, 4)
    soon(lambda: listener.states()["idle"] == [4])
    assert listener.states()["revoked"] == [] and listener.counts["came_back"] == 1


def test_figures_do_not_grow_with_the_population() -> None:
    names = []
    for clients in (2, 10_000):
        listener = Listener(Roster(RUN, LIBRARY, clients))
        listener.start()
        exporter = Exporter("a", "b", listener)
        exporter.update(line(0, clients=list(range(clients))))
        families = list(exporter.registry.collect())
        listener.close()
        names.append({(sample.name, *sample.labels.items()) for family in families for sample in family.samples})
    assert names[0] == names[1] and len(names[0]) < 100


def test_who_says_nothing_keeps_nobody_waiting(
    listener: Listener, exporter: Exporter, ca: authority.Signed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SILENCE_S", 3.0)
    port = exporter.start(HERE)
    Person(listener, ca, 0)
    listener.wait_for([0], 10.0)
    with contextlib.ExitStack() as stack:
        mute = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10.0)) for _ in range(20)]
        began = time.monotonic()
        assert echoed(listener, 0, [0], b"x") == {0: b"x\0"}
        assert scraped(port)[("fedopt_link_joined_total",)] == 1
        assert time.monotonic() - began < metrics.SILENCE_S
        assert all(one.recv(1) == b"" for one in mute)  # they are hung up


def test_where_it_listens(exporter: Exporter) -> None:
    assert address.read("9464", "metrics-listen") == ("127.0.0.1", 9464)
    assert address.read("0.0.0.0:9464", "metrics-listen") == ("0.0.0.0", 9464)
    assert address.read("[::1]:1", "metrics-listen") == ("::1", 1) and str(Address("::1", 1)) == "[::1]:1"
    assert [Address(host, 1).loopback for host in ("localhost", "127.0.0.2", "::1")] == [True] * 3
    assert [Address(host, 1).loopback for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example")] == [False] * 4
    for wrong in ("", "host", "host:", ":x", "host:65536", "::1:5", "host:-1", "host:٣"):
        with pytest.raises(ConfigError, match="metrics-listen: host:port is needed"):
            address.read(wrong, "metrics-listen")
    port = exporter.start(HERE)
    with pytest.raises(FedoptError, match="take another metrics-listen"):
        Exporter("a", "b").start(Address("127.0.0.1", port))
    exporter.close()
    with pytest.raises(OSError):
        scraped(port)
