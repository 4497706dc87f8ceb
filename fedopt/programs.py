"""Client programs that strategies share: local training, a full gradient, evaluation.

Each is built from parts that a strategy passes in: a correction of the gradient, another start, further vectors at
the end. Strategies reuse them by calling these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from fedopt import keys
from fedopt.capture import Capture, Factors, layered
from fedopt.data import Split, draw
from fedopt.flat import FlatSpec
from fedopt.optimizers import Grouped, Values, advance, asks, groups_of
from fedopt.problem import Problem
from fedopt.registry import ConfigError
from fedopt.types import Batch, Client, ClientProgram, Exchange, Named, Optimizer, Programs, Uplink

Correction = Callable[[Client, Named, Named], Named]
"""(client, params, gradient) -> gradient: what FedProx, SCAFFOLD and their kin change."""

HYPER = "optimizer."
"""Prefix of the optimizer's numbers among the values sent down."""

KEPT = "optimizer."
"""Prefix of the optimizer's state in a client's memory, where it is kept between exchanges."""

SHARED = "optimizer_state"
"""The vector of the optimizer's state, where it travels."""


class Training(NamedTuple):
    """Carry of local training."""

    params: Named
    buffers: Named
    optimizer: Any
    steps: Tensor
    """Batches so far, int64."""
    loss: Tensor
    """Sum over samples of the losses met on the way."""
    seen: Tensor
    """Samples met on the way."""
    extra: dict[str, Any]
    """What the strategy adds up along the path."""


def sgd_step(
    problem: Problem, client: Client, params: Named, buffers: Named, batch: Batch, count: Tensor
) -> tuple[Named, Tensor, Named]:
    """Gradient, loss and new buffers of the objective on a batch; dropout is keyed by the client and its step."""
    gradient = grad_and_value(problem.objective, has_aux=True)
    grads, (loss, buffers) = gradient(params, buffers, batch, keys.fold(client.key, "step", count))
    return grads, loss, buffers


def grouped_step(
    problem: Problem,
    client: Client,
    params: Named,
    buffers: Named,
    batch: Batch,
    count: Tensor,
    weights: Callable[[Tensor], Tensor],
    groups: int,
) -> tuple[Grouped, Named]:
    """The batch with a weight for each class, and new buffers; see `sgd_step`."""
    mask = batch["mask"].to(problem.dtype)
    samples = mask.sum()
    of_class = weights(samples)

    def weighted(params: Named, buffers: Named) -> tuple[Tensor, tuple[Tensor, Named]]:
        outputs, buffers = problem.network.train(params, buffers, batch["x"], keys.fold(client.key, "step", count))
        each = problem.per_sample(outputs, batch["y"]) * mask
        return (of_class.to(each.dtype)[batch["y"]] * each).sum(), (each.detach(), buffers)

    grads, (_, (each, buffers)) = grad_and_value(weighted, has_aux=True)(params, buffers)
    losses = torch.zeros(groups, dtype=each.dtype, device=each.device).index_add(0, batch["y"], each)
    return Grouped(grads, losses.sum() / samples.clamp(min=1.0), losses, samples), buffers


def by_class(problem: Problem, optimizer: Optimizer) -> int:
    """How many groups of samples the optimizer weights, 0 if it weights none.

    Raises ConfigError where they are not the classes of the data.
    """
    groups = groups_of(optimizer)
    if groups is None:
        return 0
    data = problem.data
    if data.task != "classification" or data.splits["train"].y.dim() != 1:
        raise ConfigError(
            "optimizer.name",
            f"'{type(optimizer).__name__}' weights classes of samples, and in these data a sample has no class",
        )
    if groups != data.classes:
        raise ConfigError(
            "optimizer.groups", f"one for each of the {data.classes} classes is needed; {groups} were given"
        )
    return groups


def layers_of(
    problem: Problem, optimizer: Optimizer
) -> Callable[[Client, Named, Named, Batch, Tensor], tuple[Named, Tensor, Named, dict[str, Factors]]] | None:
    """As `sgd_step`, with the factors of the gradients of linear layers; None for an optimizer that needs none."""
    if "factors" not in asks(optimizer):
        return None
    capture, shards = Capture(problem.network.training), problem.data.splits["train"]
    params, buffers = problem.unpack(problem.initial)
    x = shards.x[shards.index[:1]]
    with torch.no_grad():
        _, shapes = capture(lambda module: problem.network.train(params, buffers, x, keys.root(0), module), None)
    whole = {name: tuple(shape.shape[1:]) for name, shape in shapes.items()}

    def step(
        client: Client, params: Named, buffers: Named, batch: Batch, count: Tensor
    ) -> tuple[Named, Tensor, Named, dict[str, Factors]]:
        key = keys.fold(client.key, "step", count)
        return layered(
            capture,
            lambda module, params: problem.objective(params, buffers, batch, key, module),
            params,
            batch["mask"],
            whole,
        )

    return step


def hyper(down: Named, prefix: str = HYPER) -> Named:
    """The optimizer's numbers among what was sent down."""
    return {name.removeprefix(prefix): value for name, value in down.items() if name.startswith(prefix)}


def kept_state(optimizer: Optimizer, problem: Problem) -> Named:
    """First values of the memory in which a client keeps its optimizer's state."""
    params, _ = problem.unpack(problem.initial)
    leaves = pytree.tree_leaves(optimizer.init(params))
    return {f"{KEPT}{i}": leaf for i, leaf in enumerate(leaves)}


def state_spec(optimizer: Optimizer, problem: Problem) -> FlatSpec:
    """The optimizer's state as one vector, leaf by leaf."""
    return FlatSpec.of(kept_state(optimizer, problem), problem.dtype)


def first_state(optimizer: Optimizer, problem: Problem) -> Tensor:
    """The state before the first step, as that vector."""
    return state_spec(optimizer, problem).flatten(kept_state(optimizer, problem))


def training(
    problem: Problem,
    optimizer: Optimizer,
    *,
    correct: Correction | None = None,
    keep_state: bool = False,
    share_state: bool = False,
    model_of: Callable[[Client], Named] = lambda client: client.down,
    extra: Callable[[Client], dict[str, Any]] = lambda client: {},
    along: Callable[[Client, Training, Named, Batch], dict[str, Any]] = lambda client, carry, grads, batch: {},
    finish: Callable[[Client, Training, Uplink], Uplink] = lambda client, carry, uplink: uplink,
) -> ClientProgram:
    """Local training: x_0 = the model sent, x_{k+1} = optimizer(x_k, correct(∇ f_i(x_k; batch_k))), delta = x_K - x_0.

    The uplink holds `delta [d]`, `buffers [b]` if any, the metrics `loss` (mean over the samples met) and `steps`, and
    the client's number of samples as its weight.

    correct: changes the stochastic gradient before the optimizer sees it.
    keep_state: the optimizer's state stays with the client between exchanges; otherwise it starts anew.
    share_state: it comes with the model and goes back with the answer, both as the vector `optimizer_state`.
    model_of: where the client starts from; the model sent by default.
    extra, along: named tensors of the strategy's own, their first values and their next ones at every batch, from the
        uncorrected gradient.
    finish: the strategy's last word on the uplink.
    """
    groups, layers = by_class(problem, optimizer), layers_of(problem, optimizer)
    shared = state_spec(optimizer, problem) if share_state else FlatSpec.of({}, problem.dtype)

    def start(client: Client) -> Training:
        params, buffers = problem.unpack(model_of(client))
        state = optimizer.init(params)
        if keep_state or share_state:
            leaves, tree = pytree.tree_flatten(state)
            held = client.memory if keep_state else shared.unflatten(client.down[SHARED])
            state = pytree.tree_unflatten([held[f"{KEPT}{i}"].to(x.dtype) for i, x in enumerate(leaves)], tree)
        zero = client.key.new_zeros((), dtype=problem.dtype)
        return Training(params, buffers, state, client.key.new_zeros(()), zero, zero, extra(client))

    def step(client: Client, carry: Training, batch: Batch) -> Training:
        seen: list[tuple[Named, Named]] = []

        def oracle(point: Named) -> tuple[Named, Tensor]:
            grads, loss, buffers = sgd_step(problem, client, point, carry.buffers, batch, carry.steps)
            seen.append((grads, buffers))
            return grads if correct is None else correct(client, point, grads), loss

        def weighted(point: Named, weights: Callable[[Tensor], Tensor]) -> Grouped:
            found, buffers = grouped_step(problem, client, point, carry.buffers, batch, carry.steps, weights, groups)
            seen.append((found.grads, buffers))
            return found if correct is None else found._replace(grads=correct(client, point, found.grads))

        def told(point: Named) -> tuple[Named, Tensor, dict[str, Factors]]:
            assert layers is not None
            grads, loss, buffers, factors = layers(client, point, carry.buffers, batch, carry.steps)
            seen.append((grads, buffers))
            return grads if correct is None else correct(client, point, grads), loss, factors

        def value(point: Named) -> Tensor:
            loss, _ = problem.objective(point, carry.buffers, batch, keys.fold(client.key, "step", carry.steps))
            return loss

        params, state, _, loss = advance(
            optimizer,
            oracle,
            carry.optimizer,
            carry.params,
            hyper(client.down),
            weighted if groups else None,
            told if layers else None,
            None if correct is not None else Values(value, keys.fold(client.key, "directions", carry.steps)),
        )
        grads, buffers = seen[0] if seen else ({}, carry.buffers)
        added = along(client, carry, grads, batch)
        samples = batch["mask"].to(problem.dtype).sum()
        return Training(
            params,
            buffers,
            state,
            carry.steps + 1,
            carry.loss + loss.detach() * samples,
            carry.seen + samples,
            {**carry.extra, **added},
        )

    def end(client: Client, carry: Training) -> Uplink:
        delta = problem.network.spec.flatten(carry.params) - model_of(client)["params"]
        vectors = {"delta": delta}
        if carry.buffers:
            vectors["buffers"] = problem.network.buffer_spec.flatten(carry.buffers)
        leaves = pytree.tree_leaves(carry.optimizer) if keep_state or share_state else []
        if share_state:
            vectors[SHARED] = shared.flatten({f"{KEPT}{i}": leaf for i, leaf in enumerate(leaves)})
        uplink = Uplink(
            vectors=vectors,
            metrics={"loss": carry.loss / carry.seen.clamp(min=1.0), "steps": carry.steps},
            memory={f"{KEPT}{i}": leaf for i, leaf in enumerate(leaves)} if keep_state else {},
            weight=client.samples.to(problem.dtype),
        )
        return finish(client, carry, uplink)

    return ClientProgram(start, step, end)


class Gradient(NamedTuple):
    """Carry of a full gradient."""

    total: Named
    buffers: Named
    loss: Tensor
    seen: Tensor
    steps: Tensor


def gradient(problem: Problem) -> ClientProgram:
    """The gradient of the client's mean loss at the model sent, over all batches; `delta [d]` = -∇ f_i(x).

    The sign makes the answer a descent direction, as the delta of local training is.
    """

    def start(client: Client) -> Gradient:
        params, buffers = problem.unpack(client.down)
        zero = client.key.new_zeros((), dtype=problem.dtype)
        zeros = {n: torch.zeros_like(p) for n, p in params.items()}
        return Gradient(zeros, buffers, zero, zero, client.key.new_zeros(()))

    def step(client: Client, carry: Gradient, batch: Batch) -> Gradient:
        params, _ = problem.unpack(client.down)
        grads, loss, buffers = sgd_step(problem, client, params, carry.buffers, batch, carry.steps)
        samples = batch["mask"].to(problem.dtype).sum()
        total = {n: t + grads[n] * samples for n, t in carry.total.items()}
        return Gradient(total, buffers, carry.loss + loss.detach() * samples, carry.seen + samples, carry.steps + 1)

    def finish(client: Client, carry: Gradient) -> Uplink:
        seen = carry.seen.clamp(min=1.0)
        vectors = {"delta": -problem.network.spec.flatten(carry.total) / seen}
        if carry.buffers:
            vectors["buffers"] = problem.network.buffer_spec.flatten(carry.buffers)
        metrics = {"loss": carry.loss / seen, "steps": carry.steps}
        return Uplink(vectors, metrics, {}, client.samples.to(problem.dtype))

    return ClientProgram(start, step, finish)


def at_server(problem: Problem, programs: Programs, exchange: Exchange, split: Split, key: Tensor) -> Uplink:
    """What the server itself answers to an exchange when `split` is its own data: an update to compare others with.

    It starts from the first values of the clients' memory each time and keeps nothing.
    """
    size, held = exchange.batches, torch.tensor([split.y.shape[0]])
    client = Client(exchange.down, {}, programs.memory, keys.fold(key, "server"), held[0])
    program = programs.work[exchange.program]
    with torch.no_grad():
        carry = program.start(client)
        if size is not None:
            word = keys.fold(client.key, "batches")[None]
            positions, mask = draw(held, word, size.size, size.epochs, size.steps, size.shuffle)
            for rows, real in zip(positions[0], mask[0], strict=True):
                x = split.x[rows[real]].contiguous(memory_format=problem.layout)
                ones = torch.ones(x.shape[0], dtype=torch.bool)
                carry = program.step(client, carry, {"x": x, "y": split.y[rows[real]], "mask": ones})
        return program.finish(client, carry)


class Scores(NamedTuple):
    """Carry of an evaluation."""

    loss: Tensor
    right: Tensor
    seen: Tensor


def evaluation(problem: Problem, model_of: Callable[[Client], Named] = lambda client: client.down) -> ClientProgram:
    """Mean loss, and share of right answers for classification, of a model on the client's own data; no vectors.

    model_of: which model the client evaluates; the one sent by default, its personal one in personalised methods.
    """

    def start(client: Client) -> Scores:
        zero = client.key.new_zeros((), dtype=problem.dtype)
        return Scores(zero, zero, zero)

    def step(client: Client, carry: Scores, batch: Batch) -> Scores:
        params, buffers = problem.unpack(model_of(client))
        outputs = problem.network.infer(params, buffers, batch["x"])
        mask = batch["mask"].to(problem.dtype)
        loss = (problem.per_sample(outputs, batch["y"]) * mask).sum()
        return Scores(
            carry.loss + loss,
            carry.right + (right_share(problem, outputs, batch["y"]) * mask).sum(),
            carry.seen + mask.sum(),
        )

    def finish(client: Client, carry: Scores) -> Uplink:
        seen = carry.seen.clamp(min=1.0)
        return Uplink({}, {"loss": carry.loss / seen, "score": carry.right / seen}, {}, carry.seen)

    return ClientProgram(start, step, finish)


def predictions(problem: Problem, outputs: Tensor) -> Tensor:
    """Predicted classes: the largest of several outputs, or the sign of a single one."""
    if problem.data.task != "classification":
        return torch.full(outputs.shape[:-1], -1, dtype=torch.int64)
    return (outputs[..., 0] > 0).to(torch.int64) if outputs.shape[-1] == 1 else outputs.argmax(dim=-1)


def right_share(problem: Problem, outputs: Tensor, y: Tensor) -> Tensor:
    """Per sample `[B]`, the share of its labels that are predicted (one label, or one per position)."""
    right = (predictions(problem, outputs) == y.to(torch.int64)).to(problem.dtype)
    return right.reshape(y.shape[0], -1).mean(dim=1)
