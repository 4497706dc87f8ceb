"""A codec between a ClientApp and any Flower strategy: `mod` at the nodes, `decoded` around the strategy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedopt import compression, keys
from fedopt.compressed import PREFIX, Compressed
from fedopt.compression import feedback
from fedopt.types import (
    Client,
    ClientProgram,
    FedoptError,
    Named,
    Programs,
    Uplink,
    WireError,
)
from fedopt.wire.flower.vectors import Arrays, Layout, array_of, component_of, layout_of, only, problem_of
from fedopt.wire.messages import Awaited, Written, plain, read_up, write_up

log = logging.getLogger("flwr")  # the one that a Flower user reads

RECORD = "fedopt"
"""Of the numbers that `decoded` sends along, and the first part of the names under which `mod` keeps its memory."""

CODE = "fedopt.delta"
"""The array that holds a coded difference, a message of `fedopt.wire.messages`; `CODED` is its serialization type."""

CODED = "fedopt"


def mod(codec: str | Mapping[str, Any], *, buffers: Sequence[str] = ()) -> Callable[[Any, Any, Any], Any]:
    """A mod for a ClientApp: what it answers, less what it was sent, goes to the server as a code.

    codec: a name, or a table as `[compression]` in a config, with `feedback`; `decoded` is given the same.
    buffers: patterns over the names of arrays that go as they stand, like arrays of whole numbers.

    What codec and feedback keep lies in the state of the context. It is taken back where the server did not take in
    the answer, so both ends stay in step when answers are lost; a node that lost its state begins anew, and says so.

    Raises ConfigError for unknown names and options.
    """
    _coding(codec, ())

    def compress(message: Any, context: Any, call_next: Any) -> Any:
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        told = message.content.config_records.get(RECORD)
        if told is None:
            raise FedoptError("this ClientApp compresses what it answers, and its server does not know; wrap the"
                              " server's strategy: fedopt.wire.flower.decoded(strategy, codec)")  # fmt: skip
        del message.content[RECORD]
        sent = only(message.content.array_records, "ArrayRecord")[1]
        layout = layout_of(sent, buffers)
        before = layout.vectors(layout.read(sent))
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        name, answer = only(reply.content.array_records, "ArrayRecord")
        arrays = layout.read(answer)
        after = layout.vectors(arrays)
        programs = _coding(codec, layout.params.shapes).programs(problem_of(layout, before, 1))
        exchange, rank, memory = int(told["exchange"]), int(told["rank"]), int(told["memory"])
        kept = _kept(context, memory, programs.memory)
        memory = memory if kept is not None else 0
        client = Client(
            _shared(int(told["key"])),
            {f"{PREFIX}rank": torch.tensor(rank)},
            programs.memory if kept is None else kept,
            keys.fold(torch.tensor(int(told["key"])), "client", rank),
            torch.tensor(0),
        )
        with torch.no_grad():
            uplink = programs.work["train"].finish(client, after["params"] - before["params"])
        _keep(context, exchange, memory, {**client.memory, **uplink.memory})
        said = uplink.said["delta"]
        hearing = programs.coded["delta"]
        written = plain(said.vector)
        if not bool(said.whole):
            d = said.vector.numel()
            written = Written(hearing.codec.name, d, hearing.codec.write(said.code, d))
        body = write_up(exchange, rank, {"delta": written}, {"memory": memory}, 1.0)
        others = {n: answer[n] for n in layout.kinds if n not in layout.params.names}
        reply.content[name] = ArrayRecord({CODE: Array("uint8", (len(body),), CODED, body), **others})
        return reply

    return compress


def decoded(strategy: Any, codec: str | Mapping[str, Any], *, buffers: Sequence[str] = (), seed: int = 0) -> Decoded:
    """A Flower strategy whose nodes have the `mod` of the same `codec` and `buffers`; it is handed what they answered.

    strategy: any that sends one ArrayRecord and gets one from each node, of Flower's or of this module's.
    seed: of the keys that codecs draw with.

    An answer that is no code of such arrays is dropped, with a warning that names the node.
    """
    _coding(codec, ())
    return Decoded(strategy, codec, tuple(buffers), seed)


class Decoded(FlowerStrategy):  # type: ignore[misc]  # Flower is not looked into
    """See `decoded`. `rejected` says whose answers of the last round were none, `nbytes` how long the codes were."""

    def __init__(self, strategy: Any, codec: str | Mapping[str, Any], buffers: tuple[str, ...], seed: int) -> None:
        super().__init__()
        self.strategy, self.codec, self.buffers, self.key = strategy, codec, buffers, keys.root(seed)
        self.rejected: dict[int, str] = {}
        self.nbytes: dict[int, int] = {}
        self._exchange = 0
        self._held: dict[int, tuple[int, Named]] = {}
        """What is kept of a node, and since which exchange."""
        self._asked: dict[int, int] = {}
        self._sent: tuple[Layout, Arrays, Named, Programs] | None = None

    def summary(self) -> None:
        """Log the codec and the strategy."""
        name, _ = component_of(self.codec, "codec")
        log.info("answers come as codes of fedopt's %s", name)
        self.strategy.summary()

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """The strategy's messages, with what a codec has to know."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if not messages:
            return messages
        layout = layout_of(arrays, self.buffers)
        read = layout.read(arrays)
        vectors = layout.vectors(read)
        programs = _coding(self.codec, layout.params.shapes).programs(problem_of(layout, vectors, 1))
        self._exchange += 1
        self._sent = layout, read, vectors, programs
        self._asked = {message.metadata.dst_node_id: rank for rank, message in enumerate(messages)}
        told = {"exchange": self._exchange, "key": int(keys.fold(self.key, "exchange", self._exchange))}
        for message in messages:
            node = message.metadata.dst_node_id
            since = self._held.get(node, (0, {}))[0]
            own = ConfigRecord({**told, "rank": self._asked[node], "memory": since})
            # Flower's strategies give all messages one content
            message.content = RecordDict({**message.content, RECORD: own})
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """The strategy's step on the arrays that the codes stand for."""
        self.rejected, self.nbytes, good = {}, {}, []
        for message in replies:
            node = message.metadata.src_node_id
            if not message.has_error():
                try:
                    self._decode(node, message)
                except WireError as error:
                    self.rejected[node] = str(error)
                    log.warning("the answer of node %d is not used: %s", node, error)
                    continue
            good.append(message)
        return self.strategy.aggregate_train(server_round, good)  # type: ignore[no-any-return]

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """As the strategy does."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)  # type: ignore[no-any-return]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> Any:
        """As the strategy does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _decode(self, node: int, message: Any) -> None:
        """Put arrays in the place of a code. Raises WireError."""
        if self._sent is None or node not in self._asked:
            raise WireError("it was not asked, or has answered")
        rank = self._asked.pop(node)
        layout, read, sent, programs = self._sent
        hearing = programs.coded["delta"]
        name, record = only(message.content.array_records, "ArrayRecord")
        if CODE not in record or record[CODE].stype != CODED:
            raise WireError(
                f"a code is needed, arrays were given; has its ClientApp the mod of '{hearing.codec.name}'?"
            )
        awaited = Awaited(layout.params.numel, hearing.codec, layout.params.dtype, whole=True)
        answer = read_up(record[CODE].data, self._exchange, rank, {"delta": awaited})
        since, held = self._held.get(node, (0, hearing.held))
        memory = answer.metrics.get("memory")
        if memory not in (0, since):
            raise WireError(f"it went on from exchange {memory!r:.80}, and {since} is the last that was taken in")
        told = _shared(int(keys.fold(self.key, "exchange", self._exchange)))
        row, now = hearing.read(
            answer.vectors["delta"], "delta" in answer.whole, held if memory == since else hearing.held, told
        )
        if not bool(torch.isfinite(row).all()):
            raise WireError(f"{int((~torch.isfinite(row)).sum())} of {row.numel()} entries of its delta are NaN or Inf")
        others = {n: kind for n, kind in layout.kinds.items() if n not in layout.params.names}
        if wrong := sorted(record.keys() ^ {CODE, *others}):
            raise WireError(f"the arrays {', '.join([CODE, *others])} are needed, and '{wrong[0]:.80}' is not in both")
        beside = {n: array_of(n, record[n], *kind) for n, kind in others.items()}
        self._held[node] = self._exchange, now
        self.nbytes[node] = len(record[CODE].data)
        vectors = {**sent, "params": sent["params"] + row}
        if "buffers" in vectors:
            vectors["buffers"] = layout.vectors({**read, **beside})["buffers"]
        message.content[name] = layout.arrays(vectors, beside)


def _coding(codec: str | Mapping[str, Any], shapes: tuple[tuple[int, ...], ...]) -> Compressed:
    """Compression of a vector that is handed over as it is, at both ends."""
    name, options = component_of(codec, "codec")
    memory = feedback.build(*component_of(options.pop("feedback", "none"), "codec.feedback"), "codec.feedback")
    built = compression.build(name, options, "codec", shapes or None)

    def finish(client: Client, carry: Tensor) -> Uplink:
        return Uplink({"delta": carry}, {}, {}, torch.ones(()))

    program = ClientProgram(lambda client: None, lambda client, carry, batch: carry, finish)
    inner: Any = SimpleNamespace(programs=lambda problem: Programs({"train": program}, {}))
    return Compressed(inner, built, memory, spoken=True)


def _shared(key: int) -> Named:
    """What `fedopt.compressed` sends to all."""
    return {f"{PREFIX}shared": keys.fold(torch.tensor(key), "shared")}


def _kept(context: Any, exchange: int, like: Named) -> Named | None:
    """The memory that a node had after an exchange, 0 for the first values; None where it has it no more."""
    if not exchange or not like:
        return like
    record = context.state.array_records.get(f"{RECORD}.{exchange}")
    if record is None:
        return None
    try:
        kinds = {name: (tuple(value.shape), value.numpy().dtype) for name, value in like.items()}
        return {name: torch.from_numpy(array_of(name, record[name], *kind)) for name, kind in kinds.items()}
    except (KeyError, WireError):  # of another codec, or of another model
        return None


def _keep(context: Any, exchange: int, before: int, memory: Named) -> None:
    """Put a memory aside, beside the one that it came from, until the server says which it goes on from."""
    for name in [n for n in context.state if n.startswith(f"{RECORD}.") and n != f"{RECORD}.{before}"]:
        del context.state[name]
    if memory:
        record = {name: Array(np.asarray(value.numpy(), order="C")) for name, value in memory.items()}
        context.state[f"{RECORD}.{exchange}"] = ArrayRecord(record)
