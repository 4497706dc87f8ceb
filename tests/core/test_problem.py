"""The network as a function, the masked objective, the trial function."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad

from fedopt import keys
from fedopt.data import Federation, Shards, Split
from fedopt.engine.cohort import assemble, walk
from fedopt.problem import LOSSES, Network, Problem, cross_entropy, layout, logistic, saturated, squares
from fedopt.registry import ConfigError
from fedopt.types import Batches, Exchange


def federation(trial: bool = True) -> Federation:
    torch.manual_seed(0)
    split = Split(torch.randn(11, 4, dtype=torch.float64), torch.randint(3, (11,)))
    return Federation({}, {"trial": split} if trial else {}, ("a", "b", "c"), ())


def problem(module: nn.Module | None = None, trial: bool = True) -> Problem:
    torch.manual_seed(1)
    module = module or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    network, initial = Network.of(module.double())
    return Problem(network, federation(trial), cross_entropy, initial, evaluation_batch=4)


def test_the_objective_is_the_mean_over_real_samples() -> None:
    p = problem()
    params, buffers = p.unpack(p.initial)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    mask = torch.tensor([True, True, True, False, False])
    loss, _ = p.objective(params, buffers, {"x": x, "y": y, "mask": mask}, keys.root(0))
    plain = nn.functional.cross_entropy(p.network.inference(x[:3]), y[:3])
    torch.testing.assert_close(loss, plain)
    whole = {"x": x[:3], "y": y[:3], "mask": torch.ones(3, dtype=torch.bool)}
    padded = grad(lambda q: p.objective(q, buffers, {"x": x, "y": y, "mask": mask}, keys.root(0))[0])(params)
    cut = grad(lambda q: p.objective(q, buffers, whole, keys.root(0))[0])(params)
    for name in params:
        torch.testing.assert_close(padded[name], cut[name])


def test_a_batch_of_padding_alone_gives_zero_and_no_nan() -> None:
    p = problem()
    params, buffers = p.unpack(p.initial)
    batch = {"x": torch.zeros(2, 4).double(), "y": torch.zeros(2).long(), "mask": torch.zeros(2, dtype=torch.bool)}
    assert float(p.objective(params, buffers, batch, keys.root(0))[0]) == 0.0


def test_trial_loss_and_gradient() -> None:
    p = problem()
    trial = p.trial(p.initial)
    split = p.data.server["trial"]
    deltas = 0.1 * torch.randn(3, p.d, dtype=torch.float64)
    losses = trial.loss(deltas)
    for delta, loss in zip(deltas, losses, strict=True):
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        nn.utils.vector_to_parameters(p.initial["params"] + delta, module.parameters())
        plain = nn.functional.cross_entropy(module(split.x), split.y)
        torch.testing.assert_close(loss, plain.detach())
        plain.backward()
        wanted = torch.cat([q.grad.flatten() for q in module.parameters() if q.grad is not None])
        torch.testing.assert_close(trial.grad(delta), wanted)


def test_a_saturated_trial_counts_powers_of_the_probabilities() -> None:
    for q in (0.25, 1.0):
        p = problem()._replace(trial_saturation=q)
        trial = p.trial(p.initial)
        split = p.data.server["trial"]
        deltas = torch.randn(3, p.d, dtype=torch.float64)
        right = trial.outputs(deltas).softmax(dim=-1)[:, torch.arange(11), split.y]
        torch.testing.assert_close(trial.loss(deltas), ((1.0 - right**q) / q).mean(dim=1))
        step = torch.zeros(p.d, dtype=torch.float64)
        step[7] = 1e-6
        up, down = trial.loss(torch.stack([deltas[0] + step, deltas[0] - step]))
        assert float(trial.grad(deltas[0])[7]) == pytest.approx(float(up - down) / 2e-6, rel=1e-6, abs=1e-9)


def test_saturation_bounds_a_sample_and_0_is_the_loss() -> None:
    losses = torch.tensor([0.0, 1e-7, 0.3, 2.0, 900.0], dtype=torch.float64)
    assert torch.equal(saturated(losses, 0.0), losses)
    torch.testing.assert_close(saturated(losses, 1e-9)[:4], losses[:4], rtol=1e-8, atol=0)
    found = saturated(losses, 0.5)
    assert bool((found.diff() > 0).all()) and float(found.max()) <= 2.0
    assert float(saturated(torch.tensor(1e-6), 0.5)) == pytest.approx(1e-6, rel=1e-5), "no digits lost in float32"


def test_candidates_at_once_and_in_turn_are_the_same() -> None:
    p = problem()
    trial = p.trial(p.initial)
    deltas = 0.1 * torch.randn(4, p.d, dtype=torch.float64)
    one_by_one = torch.stack([trial.loss(row[None])[0] for row in deltas])
    torch.testing.assert_close(trial.loss(deltas), one_by_one)
    assert trial.outputs(deltas).shape == (4, 11, 3)
    rows = torch.tensor([3, 3, 8])
    torch.testing.assert_close(
        trial.loss(deltas, rows), torch.stack([trial.loss(row[None], rows)[0] for row in deltas])
    )


def test_a_trial_without_a_trial_set_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.trial_samples"):
        problem(trial=False).trial(problem().initial)


def test_buffers_are_returned_and_the_module_is_untouched() -> None:
    p = problem(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    params, buffers = p.unpack(p.initial)
    before = {name: value.clone() for name, value in p.network.training.state_dict().items()}
    _, after = p.network.train(params, buffers, torch.randn(6, 4, dtype=torch.float64), keys.root(0))
    assert not torch.equal(after["1.running_mean"], buffers["1.running_mean"])
    assert torch.equal(p.initial["buffers"], p.network.buffer_spec.flatten(buffers))
    for name, value in p.network.training.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_matching_parameters_are_trainable() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    network, initial = Network.of(module, ("1.*",))
    assert network.spec.names == ("1.weight", "1.bias") and initial["params"].numel() == 18
    assert set(network.fixed) == {"0.weight", "0.bias"}
    with pytest.raises(ConfigError, match=r"model\.trainable: no parameter matches '2\.\*'"):
        Network.of(module, ("2.*",))


def test_losses() -> None:
    out = torch.randn(6, 3, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    wanted = torch.stack([-torch.log(torch.exp(out[i, y[i]]) / torch.exp(out[i]).sum()) for i in range(6)])
    torch.testing.assert_close(cross_entropy(out, y), wanted)
    z, target = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 1])
    wanted = torch.stack([torch.log(1 + torch.exp(-(2 * target[i] - 1) * z[i, 0])) for i in range(6)])
    torch.testing.assert_close(logistic(z, target), wanted)
    torch.testing.assert_close(squares(z, out[:, 0]), 0.5 * (z[:, 0] - out[:, 0]) ** 2)
    sequence, next_ = torch.randn(2, 4, 3, dtype=torch.float64), torch.randint(3, (2, 4))
    wanted = torch.stack([cross_entropy(sequence[i], next_[i]).mean() for i in range(2)])
    torch.testing.assert_close(cross_entropy(sequence, next_), wanted)
    assert torch.equal(LOSSES["value"](z, target), z[:, 0])
    assert set(LOSSES) == {"cross_entropy", "squares", "logistic", "value"}


class _Images(nn.Module):
    """A convolution whose outputs are made rows in one of several ways."""

    def __init__(self, rows: str) -> None:
        super().__init__()
        self.conv, self.head, self.rows = nn.Conv2d(3, 2, 3), nn.Linear(2 * 4 * 4, 3), rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(x))
        if self.rows == "flatten":
            return self.head(x.flatten(1))
        if self.rows == "view":
            return self.head(x.view(x.shape[0], -1))
        return self.head(torch.as_strided(x, (x.shape[0], 32), (32, 1)))


def _images(module: nn.Module) -> Problem:
    torch.manual_seed(0)
    train = Shards(torch.randn(5, 3, 6, 6), torch.arange(5), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 3, 5]))
    network, initial = Network.of(module)
    return Problem(network, Federation({"train": train}, {}, ("a", "b", "c"), ()), cross_entropy, initial)


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (_Images("flatten"), torch.channels_last),
        (_Images("view"), torch.contiguous_format),
        (_Images("strides"), torch.contiguous_format),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), torch.contiguous_format),
    ],
)
def test_images_lie_channels_last_where_the_network_computes_the_same(
    module: nn.Module, wanted: torch.memory_format
) -> None:
    p = _images(module)
    before = torch.get_rng_state()
    assert layout(p) == wanted
    assert torch.equal(torch.get_rng_state(), before)
    p = p._replace(layout=layout(p))
    exchange = Exchange("train", torch.tensor([0]), dict(p.initial), batches=Batches(size=2))
    batches = walk(p, exchange, assemble(p, exchange, {}, keys.root(0)))
    assert batches is not None
    x = batches.single(0)["x"]
    assert x.is_contiguous(memory_format=wanted) and x.shape == (2, 3, 6, 6)
