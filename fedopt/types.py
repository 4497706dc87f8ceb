"""The values that every part of fedopt exchanges: clients, uplinks, exchanges, replies, strategies.

Everything here is a plain value or a protocol. Nothing imports another part of fedopt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Named = dict[str, Tensor]
"""Tensors by name."""

Carry = Any
"""What a client program hands from one step to the next: a pytree of tensors."""

State = Any
"""A strategy's explicit state: a NamedTuple of tensors, numbers and nested states, with a field `round`."""

Info = dict[str, Any]
"""Numbers for people. Never needed again by the computation."""

Batch = dict[str, Tensor]
"""`x [B, ...]`, `y [B, ...]` and `mask [B]`, which is 1 for a sample and 0 for padding."""


class FedoptError(Exception):
    """A problem that the user can mend; the message says what was needed, what was given and what to change."""


class WireError(FedoptError):
    """Bytes from outside that are not what they have to be. Nothing was allocated for what they claim."""


class Client(NamedTuple):
    """What a client program sees of the world. Read-only."""

    down: Named
    """Sent to every client of the exchange (`params [d]`, `buffers [b]`, hyper-parameters as scalars)."""
    own: Named
    """Sent to this client alone."""
    memory: Named
    """What this client kept from its last exchange with this strategy."""
    key: Tensor
    """Counter key of (run, exchange, client), an int64 scalar; see `fedopt.keys`."""
    samples: Tensor
    """How many samples the client holds in the split that the exchange walks over (0 without data), int64."""


class Said(NamedTuple):
    """How a vector went through its codec, for whoever sends it."""

    code: Named
    whole: Tensor
    """A bool: the vector itself is sent, as it stands, in place of its code."""
    vector: Tensor


class Uplink(NamedTuple):
    """A client's answer."""

    vectors: Named
    """Flat vectors for the server, `delta [d]` before all; attacks, rules and codecs act on these."""
    metrics: Named
    """Scalars for the record."""
    memory: Named
    """The memory keys that changed. Committed by the engine only when the answer was accepted."""
    weight: Tensor
    """The client's weight in a weighted mean, usually its number of samples; a scalar."""
    said: Mapping[str, Said] = {}
    """Of `vectors`, what goes through a codec; told where clients send it, and not where it is simulated."""


class ClientProgram(NamedTuple):
    """A client's half of an exchange as three pure functions, run for one client or for a cohort under vmap."""

    start: Callable[[Client], Carry]
    step: Callable[[Client, Carry, Batch], Carry]
    finish: Callable[[Client, Carry], Uplink]


class Hearing(NamedTuple):
    """How the server reads a vector that comes as a code, where it shares no memory with the client."""

    codec: Codec
    held: Named
    """What the server has kept of a client before its first answer."""
    read: Callable[[Tensor, bool, Named, Named], tuple[Tensor, Named]]
    """`(said [d], whole, held, down) -> (row [d], held)`; `whole` tells that the vector itself was sent."""


class Programs(NamedTuple):
    """All client programs of a strategy, with the first values of the memory that they share."""

    work: Mapping[str, ClientProgram]
    memory: Named
    coded: Mapping[str, Hearing] = {}
    """Vectors that are sent as codes."""
    home: Named | None = None
    """First values of the memory where clients keep it themselves; `memory` is then what the server keeps of them."""
    longest: int = 0
    """Entries of the longest vector that is sent, where one is longer than the model."""


class Batches(NamedTuple):
    """How a client walks over its own data in one exchange."""

    split: str = "train"
    size: int | None = None
    """Samples per batch; None is the client's whole split at once."""
    epochs: int = 1
    steps: int | None = None
    """Exact number of batches, cycling over the data; overrides `epochs`."""
    shuffle: bool = True


class Coded(NamedTuple):
    """How a vector is sent."""

    codec: str
    nbytes: Tensor
    """Of the body, for each client `[n]`, int64."""


class Exchange(NamedTuple):
    """The server's half of an exchange: who does what with which values."""

    program: str
    clients: Tensor
    """Client ids `[n]`, int64, strictly increasing."""
    down: Named
    own: Named = {}  # noqa: RUF012 - read-only
    """Rows `[n, ...]`, one for each of `clients`."""
    batches: Batches | None = None
    """None: the program needs no data."""
    reduce: Literal["rows", "mean"] = "rows"
    """`rows` keeps every client's vectors; `mean` lets the executor form the weighted mean where the work runs."""
    keep: Any = None
    """For the server alone, handed back with the replies."""
    coded: Mapping[str, Coded] = {}
    """Of `down`, what is sent in another form than as it stands."""


class Rejection(NamedTuple):
    """A client whose answer was not used."""

    client: int
    reason: str


class Silence(NamedTuple):
    """Why a client that was asked gave no answer."""

    reason: str


class Replies(NamedTuple):
    """The accepted answers to an exchange, rows in the order of `clients`.

    Under `reduce = "mean"`, `vectors` hold one row, the weighted mean over the accepted clients, and `weights` one
    entry, their total weight. A rule of linear scope gives the same result on that row as on all rows, so `absorb`
    reads both forms alike.
    """

    exchange: Exchange
    clients: Tensor
    """Ids of the accepted clients `[m]`, m <= n."""
    vectors: Named
    weights: Tensor
    metrics: Named
    memory: Named
    rejected: tuple[Rejection, ...] = ()
    silent: tuple[Rejection, ...] = ()
    """Who was asked and did not answer; nothing came of them."""


@runtime_checkable
class Strategy(Protocol):
    """A federated method: pure functions over an explicit state.

    `model` names what the server would publish now (`params`, and `buffers` where the model has any), or None for
    methods without a common model.
    """

    def programs(self, problem: Any) -> Programs: ...
    def init(self, problem: Any, key: Tensor) -> State: ...
    def plan(self, problem: Any, state: State, key: Tensor) -> Exchange: ...
    def absorb(self, problem: Any, state: State, replies: Replies, key: Tensor) -> tuple[State, Info]: ...
    def model(self, problem: Any, state: State) -> Named | None: ...


class Optimizer(Protocol):
    """A local or server optimizer: a pair of pure functions, and the numbers they read at each call.

    `update` is free of Python branches on tensor values, so that it runs for one model and, under vmap, for a cohort.
    """

    def init(self, params: Named) -> State: ...
    def update(self, grads: Named, state: State, params: Named, hyper: Named, **offers: Any) -> tuple[Named, State]: ...


Scope = Literal["linear", "coordinate", "vector"]
Knowledge = Literal["nothing", "own", "colluders", "omniscient", "data", "samples"]


class Rule(NamedTuple):
    """An aggregation rule in the form the engine calls: `apply(updates [n, d], state, **offers)`.

    `scope` is `linear` (a weighted mean of the rows may be handed in place of the rows), `coordinate` (each of the d
    columns is treated alone) or `vector`.
    """

    name: str
    scope: Scope
    needs: frozenset[str]
    admits: Callable[[int], str | None]
    """None if n clients are enough, else what is needed and given."""
    init: Callable[[int], State]
    apply: Callable[..., tuple[Tensor, State, Info]]


class Trial(NamedTuple):
    """A trial function around the server's current point, for rules that score updates by their effect.

    The `N` trial samples are held by the server; `rows`, an int64 tensor, picks some of them, all without it.
    """

    loss: Callable[..., Tensor]
    """`(deltas [k, d], rows=None) -> [k]`, the mean loss at base + delta."""
    grad: Callable[..., Tensor]
    """`(delta [d], rows=None) -> [d]`, the gradient of that loss at base + delta."""
    outputs: Callable[[Tensor], Tensor]
    """`deltas [k, d] -> [k, N, ...]`, what the model at base + delta answers to each trial sample."""
    y: Tensor
    """Labels `[N, ...]`."""

    @property
    def size(self) -> int:
        """N, how many trial samples there are."""
        return self.y.shape[0]


class Attack(NamedTuple):
    """An attack in the form the engine calls; which of the three functions is there follows from `knowledge`.

    `vectors(seen [k, d], b, **offers) -> [b, d]` gives the rows that the b attackers send; what is `seen` is each
    attacker's own row (`own`), all attackers' honest rows (`colluders`), the honest clients' rows (`omniscient`), or
    `nothing` but how many and how long the rows are.
    `labels(labels, classes, key) -> labels` changes what an attacker trains on (`data`), and so does
    `samples(x, y, classes=..., key=..., i=..., b=...) -> (x, y)`, that may change the samples as well (`samples`).
    """

    name: str
    knowledge: Knowledge
    vectors: Callable[..., Tensor] | None
    labels: Callable[..., Tensor] | None
    samples: Callable[..., tuple[Tensor, Tensor]] | None = None
    trigger: Callable[[Tensor], Tensor] | None = None
    """Of a backdoor: a batch of samples with the whole trigger on each."""
    target: int | None = None
    """Of a backdoor: the class that the trigger is to call up."""
    asks: frozenset[str] = frozenset()
    """The offers that it names."""

    @property
    def idle(self) -> bool:
        """Whether it never looks at the attackers' own honest work, so that nobody has to do that work."""
        return self.knowledge in ("nothing", "omniscient") and "own" not in self.asks


Kind = Literal["exact", "unbiased", "contraction", "biased"]


class Codec(NamedTuple):
    """A compressor of vectors in the form the engine calls.

    A code is a dict of tensors of fixed shapes, so `compress`, `restore` and `size` work for one vector and, under
    vmap, for the rows of a cohort; `encode` and `decode` are the same by way of bytes.
    """

    name: str
    kind: Kind
    """`exact`: comes back bit by bit; `unbiased`: E decode(encode(x)) = x; `contraction`: E ‖decode(encode(x)) - x‖² <=
    (1 - δ) ‖x‖²; `biased`: none of them."""
    asks: frozenset[str]
    """The offers that it names."""
    compress: Callable[..., Named]
    """`(x [d], key, **offers) -> code`"""
    restore: Callable[[Named, int], Tensor]
    """`(code, d) -> [d]` float32; of another dtype for a codec that says so."""
    size: Callable[[Named, int], Tensor]
    """`(code, d) ->` the exact length of its bytes, int64."""
    write: Callable[[Named, int], bytes]
    """`(code, d) ->` its bytes."""
    encode: Callable[..., bytes]
    """`(x [d], key, **offers) -> bytes`. Raises FedoptError for anything but a vector of finite floats."""
    decode: Callable[..., Tensor]
    """`(bytes, d, out=None) -> [d]`, in the buffer if one is given. Raises WireError for bytes that `encode` does not
    write; allocates what d asks for alone."""
    error: Callable[[int], float | None]
    """`d ->` the largest E ‖decode(encode(x)) - x‖² / ‖x‖² that the codec promises; None where it promises none."""
    start: Callable[[int], Named]
    """`d ->` what the codec keeps from one vector to the next, at first; nothing for most."""
    after: Callable[[Named, int], Named]
    """`(code, d) ->` what it keeps after that code."""


class Ask(NamedTuple):
    """How many clients the next exchange is for, and what is asked of them beside."""

    number: int
    epochs: int | None = None
    """Local epochs, in place of the strategy's."""
    rows: bool = False
    """Every client's vectors are looked at, even where the rule needs their mean alone."""


class Survey(NamedTuple):
    """A question to clients before anybody is chosen, about the model as it stands; they answer with numbers."""

    program: str
    """One of `fedopt.surveyed`."""
    clients: Tensor
    """Ids, increasing."""
    candidate: Tensor | None = None
    """`params [d]`: asked about this model."""
    by: Literal["selector", "head-count"] = "selector"
    """Who asks, and is told the answers."""


class Participation(NamedTuple):
    """Who takes part and how many, in the form strategies call: pure functions of an explicit state."""

    name: str
    sampling: Literal["uniform", "independent"] | None
    """`uniform`: every set of as many clients is equally likely, anew in each exchange; `independent`: another choice
    that never depends on anybody's data; None: one that may."""
    needs: frozenset[str]
    """The offers that `observe` asks for; see `fedopt.participation`."""
    measures: frozenset[str]
    """Numbers that clients report with what they trained; see `fedopt.surveyed`."""
    surveys: frozenset[str]
    """Programs of the surveys that may come."""
    init: Callable[[Any], State]
    """`(problem) -> state`"""
    ask: Callable[[State, int], Ask]
    """`(state, size of the pool) -> Ask`"""
    choose: Callable[[State, int, Tensor, Tensor], Tensor]
    """`(state, count, pool [p], key) ->` ids `[count]` out of the pool, increasing."""
    survey: Callable[[State, Tensor, Tensor], Survey | None]
    """`(state, pool [p], key) ->` what to ask before the next choice; None: nothing more."""
    heard: Callable[[State, Replies], tuple[State, Info]]
    """What is learnt from the answers to a survey."""
    observe: Callable[..., tuple[State, Info]]
    """`(state, replies, **offers) ->` what is learnt from the answers of those who were chosen."""


Clients = Sequence[int] | Tensor
"""Client ids wherever a person writes them."""


def client_ids(clients: Clients) -> Tensor:
    """Ids as the engine wants them: int64, increasing, each once."""
    ids = torch.as_tensor(clients, dtype=torch.int64).flatten()
    unique: Tensor = torch.unique(ids, sorted=True)
    return unique
