"""Figures of a deployed run for Prometheus, over HTTP on a port of its own.

Figures of exchanges are taken from the record's lines, those of clients from the link when somebody asks; nothing is
done for them in between. No figure has a label for each client, so their number does not grow with the population.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedopt.types import FedoptError
from fedopt.wire.address import Address
from fedopt.wire.link import REFUSED, STATES, Listener

SILENCE_S = 10.0
"""Seconds for which a connection may say nothing."""

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
"""Upper bounds of the buckets of durations."""

COUNTED = {
    "handshakes": "TLS handshakes that began",
    "streams": "Streams that were opened; a handshake without one failed",
    "joined": "Streams of clients that were let in",
    "came_back": "Streams of clients that had one before: reconnections",
    "replaced": "Streams that another one of the same client took the place of",
    "left": "Streams that ended otherwise",
    "silent": "Clients that an exchange went on without, since they did not answer in time",
    "late": "Answers that came after that, and were dropped",
    "garbage": "Streams that were cut since what came was not of the protocol",
}
"""Counts of the link by name, and what they are."""


class Exporter:
    """The figures of one run, from now on.

    `update` takes each line of the record, and is a callback of `fedopt.execution.execute`.

    experiment: id of the run, told with the name of the strategy. listener: the link, where the run has one.
    """

    def __init__(self, experiment: str, strategy: str, listener: Listener | None = None) -> None:
        self.registry = CollectorRegistry()
        given: Any = {"registry": self.registry, "namespace": "fedopt"}
        Info("run", "What runs", **given).info({"experiment": experiment, "strategy": strategy})
        self._exchanges = Counter("exchanges", "Exchanges that are done, evaluations on clients aside", **given)
        self._round = Gauge("round", "The round that the run is in", **given)
        self._updates = Counter("client_updates", "Answers of clients that trained and were accepted", **given)
        self._rejected = Counter("rejected", "Answers that were not accepted", **given)
        self._bytes = Counter(
            "message_bytes", "Bytes of messages as the record counts them, by direction", ["direction"], **given
        )
        for direction in ("up", "down"):
            self._bytes.labels(direction)
        self._seconds = Histogram("exchange_seconds", "Seconds of an exchange", buckets=SECONDS, **given)
        ProcessCollector(registry=self.registry)
        if listener is not None:
            answers = Histogram(
                "answer_seconds", "Seconds from asking a client to its whole answer", buckets=SECONDS, **given
            )
            listener.heard = answers.observe
            self.registry.register(_Link(listener))
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def update(self, line: Mapping[str, Any]) -> None:
        """Count one line of the record."""
        self._exchanges.inc()
        self._round.set(line["round"])
        if not str(line["program"]).startswith("survey."):  # as the report counts updates
            self._updates.inc(len(line["clients"]))
        self._rejected.inc(len(line["rejected"]))
        self._bytes.labels("up").inc(line["bytes_up"])
        self._bytes.labels("down").inc(line["bytes_down"])
        self._seconds.observe(sum(line["seconds"].values()))

    def start(self, address: Address) -> int:
        """Begin to serve; the port. Raises FedoptError where the address cannot be taken."""
        try:
            self._server, self._thread = start_http_server(address.port, address.host, self.registry)
        except OSError as error:
            raise FedoptError(
                f"metrics cannot be served on {address} ({error}); take another metrics-listen"
            ) from error
        self._server.RequestHandlerClass = _impatient(self._server.RequestHandlerClass)
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop serving. May be called twice."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None


def _impatient(handler: Any) -> Any:
    """The same, for connections that say nothing: each of them has a thread."""

    class Impatient(handler):  # type: ignore[misc]
        timeout = SILENCE_S

        def handle(self) -> None:
            with contextlib.suppress(TimeoutError):
                super().handle()

    return Impatient


class _Link(Collector):
    """What the link counts and what its clients do, at the moment of the question."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def collect(self) -> Iterable[Metric]:
        counts, refusals = dict(self.listener.counts), dict(self.listener.refusals)
        for name, text in COUNTED.items():
            yield CounterMetricFamily(f"fedopt_link_{name}", text, counts.get(name, 0))
        passed = CounterMetricFamily(
            "fedopt_link_bytes", "Bytes of the link's frames, by direction", labels=["direction"]
        )
        for direction in ("in", "out"):
            passed.add_metric([direction], counts.get(f"bytes_{direction}", 0))
        yield passed
        refused = CounterMetricFamily("fedopt_link_refused", "Streams that were refused, by reason", labels=["reason"])
        for reason in REFUSED:
            refused.add_metric([reason], refusals.get(reason, 0))
        yield refused
        clients = GaugeMetricFamily("fedopt_link_clients", "Clients, by what they do", labels=["state"])
        states = self.listener.states()
        for state in STATES:
            clients.add_metric([state], len(states[state]))
        yield clients
