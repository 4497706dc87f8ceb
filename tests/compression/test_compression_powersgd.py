"""PowerSGD against a loop, its limits, and what it keeps from one vector to the next."""

from __future__ import annotations

import math
import random
import struct

import pytest
import torch
from torch import Tensor

from fedopt import keys
from fedopt.compression import build
from fedopt.registry import ConfigError
from fedopt.types import Codec, FedoptError, Named

KEY = keys.root(0)
Matrix = list[list[float]]


def product(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def transposed(a: Matrix) -> Matrix:
    return [[row[j] for row in a] for j in range(len(a[0]))]


def orthonormal(p: Matrix) -> Matrix:
    """Gram and Schmidt, column by column."""
    found: Matrix = []
    for column in transposed(p):
        for other in found:
            along = sum(a * b for a, b in zip(other, column, strict=True))
            column = [b - along * a for a, b in zip(other, column, strict=True)]
        length = math.sqrt(sum(value * value for value in column))
        found.append([value / length for value in column])
    return transposed(found)


def loop(m: Matrix, q: Matrix) -> tuple[Matrix, Matrix]:
    """C(M) and the next Q."""
    p = orthonormal(product(m, q))
    q = product(transposed(m), p)
    return product(p, transposed(q)), q


def cut(values: list[float], columns: int) -> Matrix:
    return [values[i : i + columns] for i in range(0, len(values), columns)]


def powersgd(*shapes: tuple[int, ...], **options: object) -> Codec:
    return build("powersgd", {**options, **({"shapes": shapes} if shapes else {})})


def after(codec: Codec, rounds: list[Tensor]) -> Tensor:
    """What comes back in the last of these rounds."""
    kept = codec.start(rounds[0].numel())
    for x in rounds:
        code = codec.compress(x, KEY, kept=kept)
        restored, kept = codec.restore(code, x.numel()), codec.after(code, x.numel())
    return restored


def test_equals_the_loop_over_rounds_on_random_draws() -> None:
    draw = random.Random(0)
    for _ in range(100):
        rank = draw.randint(1, 2)
        rows, columns, loose = draw.randint(5, 8), draw.randint(5, 8), draw.randint(1, 4)
        codec = powersgd((loose,), (rows, columns), rank=rank)
        d = loose + rows * columns
        kept = codec.start(d)
        q = cut(kept["q1"].tolist(), rank)
        for _ in range(2):
            x = [draw.gauss(0, 1) for _ in range(d)]
            code = codec.compress(torch.tensor(x), KEY, kept=kept)
            wanted, q = loop(cut(x[loose:], columns), q)
            got = codec.restore(code, d)
            assert got[:loose].tolist() == torch.tensor(x[:loose]).tolist()
            torch.testing.assert_close(got[loose:].reshape(rows, columns), torch.tensor(wanted), rtol=0.0, atol=2e-5)
            kept = codec.after(code, d)
            torch.testing.assert_close(kept["q1"].reshape(columns, rank), torch.tensor(q), rtol=0.0, atol=5e-5)


def test_the_payload_byte_by_byte() -> None:
    # the whole tensor first, then P and Q: M has one entry, so P points at its row and Q is it at its column
    codec = powersgd((2,), (3, 3), rank=1)
    x = torch.zeros(11)
    x[:2] = torch.tensor([1.0, -2.0])
    x[2 + 3 * 1 + 2] = 5.0
    kept = codec.start(11)
    side = math.copysign(1.0, float(kept["q1"][2]))
    payload = codec.encode(x, KEY, kept=kept)
    assert payload == struct.pack("<2f", 1.0, -2.0) + struct.pack("<6f", 0.0, side, 0.0, 0.0, 0.0, side * 5.0)
    torch.testing.assert_close(codec.decode(payload, 11), x, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("lower", [0, 1])
def test_matrices_of_low_rank_come_back(rank: int, lower: int) -> None:
    inner = max(rank - lower, 1)
    m = keys.normal(keys.root(1), 20, inner) @ keys.normal(keys.root(2), inner, 30)
    got = after(powersgd((20, 30), rank=rank), [m.flatten()])
    torch.testing.assert_close(got.reshape(20, 30), m, rtol=0.0, atol=3e-5 * float(m.abs().max()))


def decaying(rows: int, columns: int, ratio: float = 0.6) -> Tensor:
    left = torch.linalg.qr(keys.normal(keys.root(3), rows, columns)).Q
    right = torch.linalg.qr(keys.normal(keys.root(4), columns, columns)).Q
    found: Tensor = left @ torch.diag(ratio ** torch.arange(float(columns))) @ right.T
    return found


@pytest.mark.parametrize("rank", [1, 3])
def test_the_same_matrix_again_and_again_comes_to_the_best_of_its_rank(rank: int) -> None:
    m = decaying(20, 12)
    u, s, v = torch.linalg.svd(m, full_matrices=False)
    best = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
    warm, cold = powersgd((20, 12), rank=rank), powersgd((20, 12), rank=rank, warm=False)
    got = after(warm, [m.flatten()] * 40).reshape(20, 12)
    torch.testing.assert_close(got, best, rtol=0.0, atol=1e-4)
    least = float((best - m).norm())
    assert float((after(warm, [m.flatten()]).reshape(20, 12) - m).norm()) > 1.02 * least
    assert float((after(cold, [m.flatten()] * 40).reshape(20, 12) - m).norm()) > 1.02 * least


def test_it_is_a_projection_and_so_never_adds_to_the_error() -> None:
    codec = powersgd((9, 11), rank=2)
    for seed in range(50):
        x = keys.normal(keys.root(seed), 99) ** 3
        code = codec.compress(x, KEY, kept=codec.start(99))
        got = codec.restore(code, 99)
        assert float((got - x).norm()) <= float(x.norm()) * (1 + 1e-6)
        p = code["p0"].reshape(9, 2)
        torch.testing.assert_close(p.T @ p, torch.eye(2), rtol=0.0, atol=1e-5)
        torch.testing.assert_close(p @ (p.T @ x.reshape(9, 11)), got.reshape(9, 11), rtol=0.0, atol=1e-4)


def test_what_is_kept_is_the_last_factor() -> None:
    codec = powersgd((8, 9), (4,), (9, 8), rank=1)
    x = keys.normal(KEY, 148)
    first = codec.start(148)
    assert {name: value.numel() for name, value in first.items()} == {"q0": 9, "q2": 8}
    assert all(torch.equal(value, codec.start(148)[name]) for name, value in first.items())
    code = codec.compress(x, KEY, kept=first)
    second = codec.after(code, 148)
    assert set(second) == set(first)
    assert all(torch.equal(second[name], code[name]) for name in second)
    assert codec.encode(x, KEY, kept=second) != codec.encode(x, KEY, kept=first)
    assert codec.encode(x, keys.root(1), kept=first) == codec.encode(x, KEY, kept=first)
    with pytest.raises(FedoptError, match="powersgd needs kept, which is not on offer here"):
        codec.encode(x, KEY)


def test_without_a_warm_start_the_key_alone_counts() -> None:
    codec = powersgd((9, 9), rank=1, warm=False)
    x = keys.normal(KEY, 81)
    first = codec.start(81)
    other: Named = {name: value + 1.0 for name, value in first.items()}
    assert codec.encode(x, KEY, kept=first) == codec.encode(x, KEY, kept=other)
    assert codec.encode(x, KEY, kept=first) != codec.encode(x, keys.root(1), kept=first)


def test_vectors_and_small_matrices_are_sent_whole() -> None:
    # 2 (3 + 6) = 18 numbers are as many as there are, 2 (4 + 5) = 18 are two fewer
    shapes = ((7,), (3, 6), (), (4, 5))
    codec = powersgd(*shapes, rank=2)
    x = keys.normal(KEY, 46)
    payload = codec.encode(x, KEY, kept=codec.start(46))
    assert len(payload) == 4 * (7 + 18 + 1 + 18)
    got = codec.decode(payload, 46)
    assert torch.equal(got[:26], x[:26])
    assert not torch.equal(got[26:], x[26:])


def test_a_tensor_of_more_dimensions_is_a_matrix_with_the_first_as_its_rows() -> None:
    x = keys.normal(KEY, 6 * 2 * 5)
    one, other = powersgd((6, 2, 5), rank=2), powersgd((6, 10), rank=2)
    assert one.encode(x, KEY, kept=one.start(60)) == other.encode(x, KEY, kept=other.start(60))
    assert len(one.encode(x, KEY, kept=one.start(60))) == 4 * 2 * (6 + 10)


@pytest.mark.parametrize(("d", "rows", "columns"), [(100, 10, 10), (110, 10, 11), (103, 10, 11)])
def test_without_shapes_the_vector_is_one_nearly_square_matrix(d: int, rows: int, columns: int) -> None:
    codec, x = powersgd(rank=2), keys.normal(KEY, d)
    code = codec.compress(x, KEY, kept=codec.start(d))
    assert (code["p0"].numel(), code["q0"].numel()) == (2 * rows, 2 * columns)
    filled = torch.cat([x, torch.zeros(rows * columns - d)])
    explicit = powersgd((rows, columns), rank=2)
    wanted = explicit.restore(explicit.compress(filled, KEY, kept=codec.start(d)), rows * columns)
    torch.testing.assert_close(codec.restore(code, d), wanted[:d], rtol=0.0, atol=1e-6)


def test_the_shapes_are_those_of_the_model_where_no_option_gives_others() -> None:
    def size(codec: Codec) -> int:
        return len(codec.encode(torch.ones(60), KEY, kept=codec.start(60)))

    assert size(build("powersgd", {"rank": 1}, shapes=((6, 10),))) == 4 * 16
    assert size(build("powersgd", {"rank": 1}, shapes=((5, 10), (10,)))) == 4 * (15 + 10)
    assert size(build("powersgd", {"rank": 1, "shapes": [[6, 10]]}, shapes=((60,),))) == 4 * 16
    assert size(build("powersgd", {"rank": 1}, shapes=((60,),))) == 4 * 60


def test_a_matrix_of_zeros_comes_back_as_such() -> None:
    assert torch.equal(after(powersgd((9, 9)), [torch.zeros(81)]), torch.zeros(81))


def test_after_a_round_of_zeros_it_still_finds_matrices() -> None:
    m = keys.normal(keys.root(1), 9, 1) @ keys.normal(keys.root(2), 1, 9)
    got = after(powersgd((9, 9), rank=1), [torch.zeros(81), m.flatten(), m.flatten()])
    torch.testing.assert_close(got.reshape(9, 9), m, rtol=0.0, atol=1e-5)


def test_after_a_round_of_a_lower_rank_it_still_has_its_own() -> None:
    low = keys.normal(keys.root(1), 20, 1) @ keys.normal(keys.root(2), 1, 20)
    full = keys.normal(keys.root(3), 20, 2) @ keys.normal(keys.root(4), 2, 20)
    got = after(powersgd((20, 20), rank=2), [low.flatten()] + [full.flatten()] * 3)
    torch.testing.assert_close(got.reshape(20, 20), full, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("scale", [2.0**-90, 2.0**-20, 2.0**20, 2.0**90])
def test_it_does_not_depend_on_the_unit(scale: float) -> None:
    m = decaying(20, 12).flatten()
    codec = powersgd((20, 12), rank=2)
    torch.testing.assert_close(after(codec, [scale * m]), scale * after(codec, [m]), rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"compression\.rank: should be greater than or equal to 1"),
        ({"rnk": 2}, r"compression\.rnk: unknown option\. Did you mean 'rank'\?"),
        ({"shapes": [3, 4]}, r"compression\.shapes: "),
        ({"warm": "yes"}, r"compression\.warm: should be a valid boolean; 'yes' was given"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("powersgd", options)
