"""A recurrent network that predicts the next character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedopt.models._options import Count, sizes
from fedopt.registry import declare
from fedopt.types import FedoptError

_LSTM = 2
"""Of the kinds of recurrence that oneDNN knows."""


def _each(function: type[torch.autograd.Function], clients: int, in_dims: Sequence[int | None], args: Any) -> Any:
    """The function for each client in turn, as a rule for vmap."""
    rows = [
        function.apply(*(a if dim is None else a.select(dim, k) for a, dim in zip(args, in_dims, strict=True)))
        for k in range(clients)
    ]
    outputs = tuple(torch.stack(values) for values in zip(*rows, strict=True))
    return outputs, (0,) * len(outputs)


class _Fused(torch.autograd.Function):
    """An LSTM layer as one operation of oneDNN, for float32 on a CPU; a cohort runs client by client.

    x [B, L, inward], W_ih [4 H, inward], W_hh [4 H, H], b_ih, b_hh [4 H] -> h [B, L, H], and what the gradient needs.

    Several times faster than a scan, stacked or not, for the weights are read once and not at every position. It has a
    first derivative in reverse mode alone.
    """

    @staticmethod
    def forward(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, ...]:
        first = x.new_zeros(x.shape[0], w_hh.shape[1])
        turned = x.detach().transpose(0, 1).contiguous()
        weights = [weight.detach().contiguous() for weight in (w_ih, w_hh, b_ih, b_hh)]
        with torch.enable_grad():  # without it, the operation does not give what its gradient needs
            h, last, cell, space = torch.ops.aten.mkldnn_rnn_layer(
                turned, *weights, first, first, False, [], _LSTM, w_hh.shape[1], 1, True, False, False, True
            )
        return h.transpose(0, 1).contiguous(), last, cell, space

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Any:
        return _FusedGradient.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Tensor) -> Any:
        return _each(_Fused, info.batch_size, in_dims, args)


class _FirstOnly(torch.autograd.Function):
    """A gradient that has no derivative; a function of its own, so that nobody takes what it saved for constants."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise FedoptError(
            "char_lstm has first derivatives only; a method that needs second derivatives needs another model"
        )


class _FusedGradient(_FirstOnly):
    """The gradients of x, W_ih, W_hh, b_ih and b_hh."""

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor,
        b_hh: Tensor,
        h: Tensor,
        last: Tensor,
        cell: Tensor,
        space: Tensor,
    ) -> tuple[Tensor, ...]:
        first = x.new_zeros(x.shape[0], w_hh.shape[1])
        turned, outputs, by_output = (value.transpose(0, 1).contiguous() for value in (x, h, grad))
        weights = [weight.contiguous() for weight in (w_ih, w_hh, b_ih, b_hh)]
        memory = (first, first, outputs, last.contiguous(), cell.contiguous(), by_output, None, None)
        kind: tuple[Any, ...] = (False, _LSTM, w_hh.shape[1], 1, True, True, False, [], False)
        found = torch.ops.aten.mkldnn_rnn_layer_backward(turned, *weights, *memory, *kind, space.contiguous())
        return found[0].transpose(0, 1).contiguous(), *found[1:5]

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Tensor) -> Any:
        return _each(_FusedGradient, info.batch_size, in_dims, args)


class _Recurrence(torch.autograd.Function):
    """The recurrent half of an LSTM layer as a scan, with its gradient written out.

        z_t = u_t + W h_{t-1}                          [B, 4 H], split into i, f, g, o
        c_t = σ(f_t) c_{t-1} + σ(i_t) tanh(g_t)        h_t = σ(o_t) tanh(c_t)

    u [B, L, 4 H], W [4 H, H] -> h [B, L, H], and what the gradient needs: c [B, L, H], the gates [B, L, 4 H].

    Autograd would form the gradient of W position by position; here it is one product over all positions, and only
    what has to wait for the position behind is done in turn. It has a first derivative in reverse mode alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = weight.shape[1]
        turned = weight.T
        c = torch.zeros_like(u[:, 0, :hidden])
        z = u[:, 0]
        outputs: list[Tensor] = []
        cells, gates = [], []
        for position in range(u.shape[1]):
            if position > 0:
                z = u[:, position] + outputs[-1] @ turned
            opened, candidate = torch.sigmoid(z), torch.tanh(z[:, 2 * hidden : 3 * hidden])
            i, f, o = (opened[:, k * hidden : (k + 1) * hidden] for k in (0, 1, 3))
            c = f * c + i * candidate
            outputs.append(o * torch.tanh(c))
            cells.append(c)
            gates.append(torch.cat([i, f, candidate, o], dim=1))
        return torch.stack(outputs, dim=1), torch.stack(cells, dim=1), torch.stack(gates, dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[1], *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return _RecurrenceGradient.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call, no-any-return]


class _RecurrenceGradient(_FirstOnly):
    """The gradients of u and W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, h: Tensor, c: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        length = h.shape[1]
        i, f, g, o = gates.chunk(4, dim=-1)
        squashed = torch.tanh(c)
        before = torch.cat([torch.zeros_like(c[:, :1]), c[:, :-1]], dim=1)
        into_cell = o * (1 - squashed * squashed)
        # by dc: the derivatives of c in i, f, g; by dh: that of h in o
        by_cell = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)], dim=2)
        by_output = squashed * o * (1 - o)
        dh, dc = grad[:, length - 1], torch.zeros_like(c[:, 0])
        found: list[Tensor] = []
        for position in range(length - 1, -1, -1):
            if found:
                dh = grad[:, position] + found[-1] @ weight
                dc = dc * f[:, position + 1]
            dc = dc + dh * into_cell[:, position]
            of_cell = (dc[:, None] * by_cell[:, position]).flatten(1)
            found.append(torch.cat([of_cell, dh * by_output[:, position]], dim=1))
        du = torch.stack(found[::-1], dim=1)
        earlier = torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
        return du, du.flatten(0, 1).T @ earlier.flatten(0, 1)


class LSTM(nn.Module):
    """One layer of `torch.nn.LSTM` (same parameters, batch first) that stacks under vmap.

    x [B, L, inward] -> h [B, L, hidden]
    """

    def __init__(self, inward: int, hidden: int) -> None:
        super().__init__()
        bound = hidden**-0.5
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inward))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(4 * hidden))
        self.bias_hh = nn.Parameter(torch.empty(4 * hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            fused: Tensor = _Fused.apply(x, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)[0]  # type: ignore[no-untyped-call]
            return fused
        # the inputs of all positions in one product; only the recurrent half has to wait for the position before
        inputs = F.linear(x, self.weight_ih, self.bias_ih + self.bias_hh)
        h: Tensor = _Recurrence.apply(inputs, self.weight_hh)[0]  # type: ignore[no-untyped-call]
        return h


@declare(reference="McMahan et al. 2017, Communication-Efficient Learning, section 3 (the Shakespeare LSTM)")
class char_lstm(nn.Module):
    """Embedding, LSTM layers and a linear head: logits for the character after each position.

    tokens [B, L] -> logits [B, L, classes], or [B, classes] with `last`

    inputs: [length]. embedding: size of a character's vector. hidden: units of each of the `layers` LSTM layers.
    last: only the character after the last position is predicted.
    """

    def __init__(
        self,
        *,
        inputs: tuple[int, ...],
        classes: int,
        vocabulary: int,
        embedding: Count = 8,
        hidden: Count = 256,
        layers: Count = 2,
        last: bool = False,
    ) -> None:
        super().__init__()
        sizes(inputs, "length")
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(LSTM(embedding if layer == 0 else hidden, hidden) for layer in range(layers))
        self.head = nn.Linear(hidden, classes)
        self.last = last

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x[:, -1] if self.last else x)
        return logits
