"""The problem that a federation solves: a network, a loss, everybody's data.

`Network` is an `nn.Module` as a pure function of named tensors; `Problem` is what strategies and client programs see.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedopt import keys
from fedopt.data import Federation, Split
from fedopt.flat import FlatSpec
from fedopt.registry import ConfigError, nearest
from fedopt.types import Batch, FedoptError, Named, Trial

PerSample = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """-log softmax(outputs)[y]; outputs [B, ..., C], y [B, ...] int64; mean over all but the first dimension."""
    flat = outputs.reshape(-1, outputs.shape[-1])
    # torch's own log-softmax is slow on rows of a few classes: a cohort's loss and gradient take a quarter this way
    each = torch.logsumexp(flat, dim=1) - flat.gather(1, y.reshape(-1, 1))[:, 0]
    return each.reshape(y.shape[0], -1).mean(dim=1)


def squares(outputs: Tensor, y: Tensor) -> Tensor:
    """(outputs - y)² / 2; outputs [B, 1] or [B], y [B]; the loss of least squares."""
    return 0.5 * (outputs.reshape(y.shape[0], -1) - y.reshape(y.shape[0], -1)).square().sum(dim=1)


def logistic(outputs: Tensor, y: Tensor) -> Tensor:
    """log(1 + exp(-s z)) with s = 2 y - 1; one output z per sample, y in {0, 1}."""
    return nn.functional.softplus(-(2.0 * y.to(outputs.dtype) - 1.0) * outputs.reshape(y.shape[0]))


def value(outputs: Tensor, y: Tensor) -> Tensor:
    """The output itself; for models that compute what is to be minimised."""
    return outputs.reshape(outputs.shape[0], -1).sum(dim=1)


LOSSES: dict[str, PerSample] = {
    "cross_entropy": cross_entropy,
    "squares": squares,
    "logistic": logistic,
    "value": value,
}

LIKELIHOODS = ("cross_entropy", "logistic")
"""Losses that are -log of the probability of the right answer."""


def saturated(loss: Tensor, q: float) -> Tensor:
    """(1 - exp(-q loss)) / q, at most 1/q a sample; the loss itself at q = 0.

    Of a loss -log p it is (1 - p^q) / q, between the loss (q -> 0) and the probability of a wrong answer (q = 1):
    Zhang, Sabuncu 2018, 'Generalized Cross Entropy Loss', arXiv 1805.07836, equation 6.
    """
    return -torch.expm1(-q * loss) / q if q else loss


class Network(NamedTuple):
    """A module as a function of (trainable tensors, floating buffers, fixed tensors, dropout keys)."""

    spec: FlatSpec
    buffer_spec: FlatSpec
    fixed: Named
    """Frozen parameters, and integer buffers: never sent."""
    dropout: tuple[str, ...]
    """Names of the buffers that hold the counter keys of keyed dropout."""
    training: nn.Module
    inference: nn.Module

    @classmethod
    def of(cls, module: nn.Module, trainable: tuple[str, ...] = ("*",)) -> tuple[Network, Named]:
        """The functional form of a module, and its present values (`params [d]`, `buffers [b]` if there are any).

        trainable: shell patterns over parameter names; the others keep their values and are never sent.
        """
        named = dict(module.named_parameters())
        for pattern in trainable:
            if not fnmatch.filter(named, pattern):
                raise ConfigError(
                    "model.trainable",
                    f"no parameter matches '{pattern}'.{nearest(pattern, named)} Parameters: {', '.join(named)}",
                )
        learnt = {n: p.detach() for n, p in named.items() if any(fnmatch.fnmatchcase(n, t) for t in trainable)}
        if len({p.dtype for p in learnt.values()}) > 1:
            raise FedoptError("all trainable parameters need one dtype; convert the module with .float() or .double()")
        fixed = {n: p.detach().clone() for n, p in named.items() if n not in learnt}
        floating, dropout = {}, []
        for name, buffer in module.named_buffers():
            if name.rpartition(".")[2] == "dropout_key":
                dropout.append(name)
            elif buffer.is_floating_point():
                floating[name] = buffer.detach()
            else:
                fixed[name] = buffer.detach().clone()
        spec, buffer_spec = FlatSpec.of(learnt), FlatSpec.of(floating)
        values = {"params": spec.flatten(learnt).clone()}
        if floating:
            values["buffers"] = buffer_spec.flatten(floating).clone()
        network = cls(
            spec,
            buffer_spec,
            fixed,
            tuple(dropout),
            copy.deepcopy(module).train().requires_grad_(False),
            copy.deepcopy(module).eval().requires_grad_(False),
        )
        return network, values

    def train(
        self, params: Named, buffers: Named, x: Tensor, key: Tensor, module: nn.Module | None = None
    ) -> tuple[Tensor, Named]:
        """Outputs in training mode, and the buffers as the forward pass leaves them; dropout is a function of key.

        module: a copy of the network in training mode, that says more of what goes on in it.
        """
        # BatchNorm writes its running statistics in place, so it gets copies
        buffers = {n: b.clone() for n, b in buffers.items()}
        fixed = {n: (t if t.is_floating_point() else t.clone()) for n, t in self.fixed.items()}
        masks = {n: keys.fold(key, "dropout", i) for i, n in enumerate(self.dropout)}
        outputs = functional_call(module or self.training, {**params, **fixed, **buffers, **masks}, (x,))
        return outputs, buffers

    def infer(self, params: Named, buffers: Named, x: Tensor) -> Tensor:
        """Outputs in evaluation mode."""
        outputs: Tensor = functional_call(self.inference, {**params, **self.fixed, **buffers}, (x,))
        return outputs


class Problem(NamedTuple):
    """What strategies and client programs see of an experiment."""

    network: Network
    data: Federation
    per_sample: PerSample
    initial: Named
    """First values of the model: `params [d]`, and `buffers [b]` where the model has any."""
    evaluation_batch: int = 1024
    layout: torch.memory_format = torch.contiguous_format
    """How images of one client are laid out on the CPU; see `layout`."""
    there: Tensor | None = None
    """Ids of the clients who can be chosen now, increasing; None: everybody."""
    trial_saturation: float = 0.0
    """q of the trial function's `saturated` loss."""

    @property
    def clients(self) -> int:
        return self.data.clients

    @property
    def pool(self) -> Tensor:
        """Ids of the clients who can be chosen now `[p]`."""
        return torch.arange(self.clients) if self.there is None else self.there

    @property
    def d(self) -> int:
        """Length of the model's flat vector."""
        return self.network.spec.numel

    @property
    def dtype(self) -> torch.dtype:
        return self.network.spec.dtype

    def to(self, device: torch.device | str) -> Problem:
        """The same problem with its data and its fixed tensors on a device; who holds what stays on the CPU."""
        if torch.device(device) == torch.device("cpu"):
            return self
        data = self.data._replace(
            splits={
                name: held._replace(x=held.x.to(device), index=held.index.to(device), y=held.y.to(device))
                for name, held in self.data.splits.items()
            },
            server={name: Split(held.x.to(device), held.y.to(device)) for name, held in self.data.server.items()},
        )
        network = self.network._replace(
            fixed={name: value.to(device) for name, value in self.network.fixed.items()},
            training=copy.deepcopy(self.network.training).to(device),
            inference=copy.deepcopy(self.network.inference).to(device),
        )
        return self._replace(
            network=network, data=data, initial={name: value.to(device) for name, value in self.initial.items()}
        )

    def unpack(self, model: Named) -> tuple[Named, Named]:
        """`{params [d], buffers [b]}` -> named parameters, named buffers."""
        params = self.network.spec.unflatten(model["params"])
        return params, self.network.buffer_spec.unflatten(model["buffers"]) if "buffers" in model else {}

    def objective(
        self, params: Named, buffers: Named, batch: Batch, key: Tensor, module: nn.Module | None = None
    ) -> tuple[Tensor, Named]:
        """Mean loss over the real samples of a batch, in training mode, and the new buffers; see `Network.train`."""
        outputs, buffers = self.network.train(params, buffers, batch["x"], key, module)
        mask = batch["mask"].to(outputs.dtype)
        each = self.per_sample(outputs, batch["y"])
        return (each * mask).sum() / mask.sum().clamp(min=1.0), buffers

    def outputs(self, model: Named, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """(outputs, y) over a split, in evaluation mode, a batch at a time."""
        params, buffers = self.unpack(model)
        with torch.no_grad():
            for x, y in zip(split.x.split(self.evaluation_batch), split.y.split(self.evaluation_batch), strict=True):
                yield self.network.infer(params, buffers, x), y

    def server_split(self, name: str) -> Split:
        """Samples that the server holds. Raises ConfigError where it holds none of that name."""
        if name not in self.data.server:
            raise ConfigError(
                f"data.{name}_samples", f"a {name} set is needed and none is held out; set it to 500, say"
            )
        return self.data.server[name]

    def trial(self, base: Named) -> Trial:
        """The trial function around `base`: the mean saturated loss on the server's trial split, by a delta.

        Layers in evaluation mode, but batch normalisation takes the statistics of the trial batch: those that were
        averaged at the server belong to no candidate.
        """
        split = self.server_split("trial")
        network = self.network
        _, buffers = self.unpack(base)
        own_statistics = any(isinstance(part, _Norm) for part in network.inference.modules())
        module = _with_batch_statistics(network.inference) if own_statistics else network.inference
        kept = {name for name, _ in module.named_buffers()}
        rest = {n: t for n, t in {**network.fixed, **buffers}.items() if n in kept or n not in _buffer_names(network)}

        def outputs_of(delta: Tensor, x: Tensor) -> Tensor:
            params = network.spec.unflatten(base["params"] + delta)
            outputs: Tensor = functional_call(module, {**params, **rest}, (x,))
            return outputs

        def loss_of(delta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return saturated(self.per_sample(outputs_of(delta, x), y), self.trial_saturation).sum()

        def chunks(rows: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
            x, y = (split.x, split.y) if rows is None else (split.x[rows], split.y[rows])
            return zip(x.split(self.evaluation_batch), y.split(self.evaluation_batch), strict=True)

        def over_batches(function: Callable[..., Tensor], delta: Tensor, rows: Tensor | None) -> Tensor:
            total = sum((function(delta, x, y) for x, y in chunks(rows)), start=delta.new_zeros(()))
            return total / (split.y.shape[0] if rows is None else rows.numel())

        def loss(deltas: Tensor, rows: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                return over_batches(_candidates(loss_of, deltas), deltas, rows)

        def outputs(deltas: Tensor) -> Tensor:
            with torch.no_grad():
                every = _candidates(outputs_of, deltas)
                return torch.cat([every(deltas, x) for x, _ in chunks(None)], dim=1)

        return Trial(loss, lambda delta, rows=None: over_batches(grad(loss_of), delta, rows), outputs, split.y)


_Norm = nn.modules.batchnorm._BatchNorm


def _with_batch_statistics(module: nn.Module) -> nn.Module:
    """A copy whose batch normalisation keeps no running statistics, so that it takes those of the batch."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if isinstance(part, _Norm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


def _buffer_names(network: Network) -> set[str]:
    return {name for name, _ in network.inference.named_buffers()}


def layout(problem: Problem) -> torch.memory_format:
    """Channels last, where the network has 2-d convolutions and computes the same with such a batch.

    Pooling and convolutions on a CPU are faster that way; but a module may rely on the order in memory (`view`).
    """
    shards = problem.data.splits["train"]
    x, y = shards.x[shards.index[:2]], shards.y[:2]
    convolutions = any(isinstance(part, nn.Conv2d) for part in problem.network.training.modules())
    if not (convolutions and x.dim() == 4 and x.is_floating_point() and x.device.type == "cpu"):
        return torch.contiguous_format
    params, buffers = problem.unpack(problem.initial)

    def gradient(x: Tensor) -> Tensor:
        batch = {"x": x, "y": y, "mask": torch.ones(y.shape[0], dtype=torch.bool)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            grads, _ = grad(problem.objective, has_aux=True)(params, buffers, batch, keys.root(0))
        return problem.network.spec.flatten(grads)

    wanted = gradient(x)
    try:
        found = gradient(x.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    near = torch.linalg.vector_norm(found - wanted) <= 1e-3 * torch.linalg.vector_norm(wanted)
    return torch.channels_last if bool(near) else torch.contiguous_format


def _candidates(function: Callable[..., Tensor], deltas: Tensor) -> Callable[..., Tensor]:
    """A function of one delta and samples as a function of the rows of `deltas [k, d]`.

    A CPU takes them one after another: stacked layers with weights of their own for each candidate cost it more.
    """
    if deltas.device.type == "cpu":
        return lambda rows, *samples: torch.stack([function(row, *samples) for row in rows])
    return lambda rows, *samples: vmap(function, in_dims=(0, *(None for _ in samples)))(rows, *samples)
