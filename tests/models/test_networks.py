"""What is known of single networks: parameter counts, oracles, the data that they refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedopt import keys
from fedopt.models import build, stackable
from fedopt.models.char_lstm import char_lstm
from fedopt.models.transformer import transformer
from fedopt.registry import ConfigError
from fedopt.types import FedoptError, Named


def made(name: str, inputs: tuple[int, ...], classes: int = 10, vocabulary: int | None = None, **options: Any) -> Any:
    return build(
        name,
        options,
        inputs=inputs,
        classes=classes,
        vocabulary=vocabulary,
        key=keys.root(0),
        dtype=torch.float64,
    )


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "numel"),
    [
        (lambda: made("logistic", (1, 28, 28)), 7_850),
        (lambda: made("mlp", (64,), hidden=[32, 16]), 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        (lambda: made("cnn", (3, 32, 32)), 1_626_442),
        (lambda: made("lenet5", (1, 28, 28)), 61_706),
        (lambda: made("lenet5", (1, 32, 32)), 61_706),
        (lambda: made("resnet8", (3, 32, 32)), 78_042),
        (lambda: made("resnet18", (3, 32, 32)), 11_173_962),
        (lambda: made("resnet18", (3, 32, 32), norm="batch"), 11_173_962),
        # embedding 80 x 8, then 4 (8 + 256) 256 + 2 biases, 4 (256 + 256) 256 + 2 biases, head 256 x 80
        (lambda: made("char_lstm", (80,), classes=80, vocabulary=80), 640 + 272_384 + 526_336 + 20_560),
    ],
)
def test_parameter_counts(module: Any, numel: int) -> None:
    assert size(module()) == numel


def test_resnet1d_halves_the_signal_five_times() -> None:
    module = made("resnet1d", (12, 320), classes=4, width=4)
    seen: list[tuple[int, ...]] = []
    module.stages.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape)))
    assert module(torch.randn(2, 12, 320, dtype=torch.float64)).shape == (2, 4)
    assert seen == [(2, 32, 10)]


def test_resnet1d_joins_mean_and_maximum_over_time() -> None:
    module = made("resnet1d", (2, 128), classes=3, width=4)
    features: list[Tensor] = []
    module.stages.register_forward_hook(lambda _module, _inputs, output: features.append(output.detach()))
    logits = module(torch.randn(2, 2, 128, dtype=torch.float64))
    for b, logit in enumerate(logits):
        rows = [row.tolist() for row in features[0][b]]
        pooled = torch.tensor([*(sum(row) / len(row) for row in rows), *(max(row) for row in rows)])
        want = module.head.weight @ pooled.double() + module.head.bias
        torch.testing.assert_close(logit, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["scan", "fused"])
@pytest.mark.parametrize(("layers", "last"), [(1, False), (2, False), (2, True)])
def test_char_lstm_equals_the_lstm_of_torch(layers: int, last: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours: Any = char_lstm(inputs=(7,), classes=5, vocabulary=6, embedding=3, hidden=4, layers=layers, last=last).to(
        dtype
    )
    theirs = nn.LSTM(3, 4, num_layers=layers, batch_first=True).to(dtype)
    for layer in range(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(ours.layers[layer], name).data.copy_(getattr(theirs, f"{name}_l{layer}").data)
    tokens = torch.randint(0, 6, (3, 7))
    hidden, _ = theirs(ours.embedding(tokens))
    want = ours.head(hidden[:, -1] if last else hidden)
    got = ours(tokens)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(got, want, **near)
    weights = [ours.embedding.weight, *ours.layers[0].parameters()]
    one = torch.autograd.grad(got.square().sum(), weights)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    two = torch.autograd.grad(want.square().sum(), [ours.embedding.weight, *(getattr(theirs, n) for n in names)])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["scan", "fused"])
@pytest.mark.parametrize("shared", [True, False], ids=["one model", "a model each"])
def test_char_lstm_gives_a_cohort_what_it_gives_each(dtype: torch.dtype, shared: bool) -> None:
    torch.manual_seed(0)
    module = char_lstm(inputs=(6,), classes=5, vocabulary=5, embedding=3, hidden=4, layers=1).to(dtype)
    params = {name: value.detach() for name, value in module.named_parameters()}
    tokens = torch.randint(0, 5, (3, 2, 6))
    several = params if shared else {k: torch.stack([v, 2 * v, -v]) for k, v in params.items()}

    def gradient(p: Named, x: Tensor) -> Named:
        return grad(lambda q: torch.func.functional_call(module, q, (x,)).square().sum())(p)

    together = vmap(gradient, in_dims=(None if shared else 0, 0))(several, tokens)
    for client in range(3):
        alone = gradient(params if shared else {k: v[client] for k, v in several.items()}, tokens[client])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][client], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["scan", "fused"])
def test_char_lstm_says_that_it_has_no_second_derivative(dtype: torch.dtype) -> None:
    module = char_lstm(inputs=(6,), classes=5, vocabulary=5, embedding=3, hidden=4, layers=1).to(dtype)
    loss = module(torch.randint(0, 5, (2, 6))).square().sum()
    first = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
    with pytest.raises(FedoptError, match="first derivatives only"):
        sum(g.sum() for g in first).backward()  # type: ignore[union-attr]


def test_attention_equals_the_one_of_torch() -> None:
    torch.manual_seed(0)
    network: Any = transformer(inputs=(6,), classes=2, vocabulary=9, dim=8, depth=1, heads=2).double()
    ours = network.blocks[0].attention
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.in_proj_weight.data.copy_(ours.qkv.weight.data)
    assert ours.qkv.bias is None and theirs.in_proj_bias.abs().max() == 0
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    real = torch.arange(6)[None, :] < torch.tensor([6, 4, 1])[:, None]
    want, _ = theirs(x, x, x, key_padding_mask=~real)
    torch.testing.assert_close(ours(x, real[:, None, :]), want, rtol=0, atol=1e-10)


def test_padding_has_no_say_in_the_transformer() -> None:
    module = made("transformer", (8,), classes=2, vocabulary=9, dim=8, heads=2)
    text = torch.randint(1, 9, (3, 5))
    padded = torch.cat([text, torch.zeros(3, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(module(padded), module(text), rtol=0, atol=1e-12)


def test_a_text_of_nothing_but_padding_gives_numbers() -> None:
    module = made("transformer", (4,), classes=2, vocabulary=9, dim=8, heads=2)
    logits = module(torch.zeros(2, 4, dtype=torch.int64))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_word_order_matters_to_the_transformer() -> None:
    module = made("transformer", (4,), classes=2, vocabulary=9, dim=8, heads=2)
    one, other = module(torch.tensor([[1, 2, 3, 4]])), module(torch.tensor([[4, 3, 2, 1]]))
    assert (one - other).abs().max() > 1e-6


def test_a_causal_block_equals_the_one_of_torch() -> None:
    torch.manual_seed(0)
    network: Any = made("causal_transformer", (6,), classes=5, vocabulary=9, dim=8, depth=1, heads=2)
    ours = network.blocks[0]
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    theirs.self_attn.in_proj_weight.data.copy_(ours.attention.qkv.weight.data)
    for mine, other in (
        (ours.attention.out, theirs.self_attn.out_proj), (ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2),
        (ours.mlp[0], theirs.linear1), (ours.mlp[2], theirs.linear2),
    ):  # fmt: skip
        other.load_state_dict(mine.state_dict())
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    want = theirs(x, src_mask=nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64))
    torch.testing.assert_close(ours(x, torch.ones(1, 6, 6, dtype=torch.bool).tril()), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options"), [("char_lstm", {"embedding": 3, "hidden": 4}), ("causal_transformer", {"dim": 8, "heads": 2})]
)
def test_the_past_alone_decides_the_next_character(name: str, options: dict[str, Any]) -> None:
    module = made(name, (6,), classes=5, vocabulary=5, **options)
    tokens = torch.randint(0, 5, (1, 6))
    changed = tokens.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 5
    one, other = module(tokens), module(changed)
    assert torch.equal(one[:, :3], other[:, :3]) and not torch.equal(one[:, 3:], other[:, 3:])


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "resnet1d"])
def test_batch_norm_has_buffers_and_does_not_stack(name: str) -> None:
    inputs = (1, 64) if name == "resnet1d" else (1, 8, 8)
    grouped, batched = (made(name, inputs, width=4, norm=norm) for norm in ("group", "batch"))
    assert not list(grouped.buffers()) and stackable(grouped) is None
    assert any("running_mean" in n for n, _ in batched.named_buffers())
    reason = stackable(batched)
    assert reason is not None and "BatchNorm" in reason and "'norm'" in reason
    x = torch.randn(4, *inputs, dtype=torch.float64)
    assert batched(x).shape == (4, 10)


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.LSTM(2, 2), "LSTM"),
        (nn.Sequential(nn.GRU(2, 2)), "GRU"),
        (nn.Sequential(nn.RNN(2, 2)), "RNN"),
        (nn.Sequential(nn.BatchNorm1d(2)), "BatchNorm1d"),
        (nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True)), "running statistics"),
        (nn.Sequential(nn.Dropout2d(0.1)), "Dropout2d"),
        (nn.MultiheadAttention(2, 1, dropout=0.1), "dropout inside"),
    ],
)
def test_what_does_not_stack_says_why(module: nn.Module, word: str) -> None:
    reason = stackable(module)
    assert reason is not None and word in reason


@pytest.mark.parametrize(
    "module",
    [nn.InstanceNorm1d(2), nn.GroupNorm(1, 2), nn.Dropout(0.0), nn.MultiheadAttention(2, 1), nn.LSTMCell(2, 2)],
)
def test_what_stacks_has_no_reason(module: nn.Module) -> None:
    assert stackable(module) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: made("lenet5", (1, 8, 8)),
            "model: 'lenet5' cannot be built: samples of shape [channels, height, width] with height and width of at"
            " least 12 are needed (inputs of shape [1, 8, 8], 10 classes and vocabulary None were given)",
        ),
        (lambda: made("cnn", (64,)), "samples of shape [channels, height, width] with height and width of at least 6"),
        (lambda: made("resnet1d", (3, 32, 32)), "samples of shape [leads, length] are needed"),
        (lambda: made("resnet18", (64,)), "(inputs of shape [64],"),
        (lambda: made("resnet18", (3, 8, 8), width=5), "groups = 2 divides is needed; a layer of 5 channels was given"),
        (lambda: made("cnn1d", (1, 64), width=6), "width = 6 was given"),
        (lambda: made("transformer", (5,), vocabulary=4, dim=6, heads=4), "heads = 4 divides is needed; dim = 6"),
        (lambda: made("char_lstm", (5,)), "model.name: 'char_lstm' reads token ids; the data has no vocabulary"),
        (lambda: made("char_lstm", (5, 5), vocabulary=4), "samples of shape [length] are needed"),
        (lambda: made("mlp", (5,), hiden=[3]), "model.hiden: unknown option. Did you mean 'hidden'?"),
        (lambda: made("mlp", (5,), hidden=[0]), "model.hidden: should be greater than or equal to 1"),
        (lambda: made("mlp", (5,), activation="rel"), "model.activation: should be 'relu', 'tanh'"),
        (lambda: made("cnn", (1, 8, 8), dropout=[0.0, 1.0]), "model.dropout: should be less than 1"),
        (lambda: made("resnt18", (3, 8, 8)), "model.name: no models component 'resnt18'. Did you mean 'resnet18'?"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


class Foreign(nn.Module):
    """A network of another package, which asks for no more than it needs."""

    def __init__(self, *, classes: int, units: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(units), nn.Dropout(0.5), nn.Linear(units, classes))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def test_a_network_from_an_import_path_gets_the_offers_that_it_names() -> None:
    module = made(f"{__name__}:Foreign", (3,), units=5)
    assert module.body[2].weight.shape == (10, 5)
    assert type(module.body[1]).__name__ == "KeyedDropout"


def test_a_quadratic_function() -> None:
    module = build("quadratic", {}, inputs=(4, 5), classes=1, vocabulary=None, key=keys.root(0), dtype=torch.float64)
    x, w = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    (start,) = module.parameters()
    assert torch.equal(start, torch.zeros(4, dtype=torch.float64))
    outputs = torch.func.functional_call(module, {"w": w}, (x,))
    wanted = torch.stack([0.5 * w @ one[:, :4] @ w - one[:, 4] @ w for one in x])
    torch.testing.assert_close(outputs[:, 0], wanted, rtol=0, atol=1e-12)
    for inputs, classes in (((4, 4), 1), ((20,), 1), ((4, 5), 2)):
        with pytest.raises(ConfigError, match=r"samples of shape \[d, d \+ 1\] and no classes are needed"):
            build(
                "quadratic", {}, inputs=inputs, classes=classes, vocabulary=None, key=keys.root(0), dtype=torch.float64
            )
