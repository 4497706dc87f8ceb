"""Secure sums: exact, whoever drops out as far as the threshold allows, and masked words tell nothing."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable, Collection, Iterable
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fedopt import keys
from fedopt.registry import ConfigError
from fedopt.secure_sum import (
    Deal,
    Given,
    Held,
    Party,
    TooFew,
    ciphers,
    deal,
    fixed_point,
    given,
    joined,
    letters,
    masked,
    party,
    received,
    shares,
    total,
)
from fedopt.types import FedoptError, WireError

ALL = (1 << 64) - 1
BITS = 32


def federation(n: int, threshold: int) -> list[Party]:
    own = [ciphers.pair() for _ in range(n)]
    return [joined(one, [each.public for each in own], threshold) for one in own]


def fixed_parties(n: int, threshold: int, seed: int) -> list[Party]:
    """As `joined` would make them, with keys that follow from the seed."""

    def key(i: int, j: int) -> bytes:
        return hashlib.sha256(f"{seed} {min(i, j)} {max(i, j)}".encode()).digest()

    return [Party(i, threshold, tuple(key(i, j) for j in range(n))) for i in range(n)]


def vectors(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [keys.normal(keys.fold(keys.root(seed), i), d, dtype=dtype) for i in range(n)]


class Seen(NamedTuple):
    """All that comes to the server in an exchange."""

    deals: dict[int, Deal]
    held: dict[int, Held]
    words: dict[int, Tensor]
    masked: dict[int, Tensor]
    given: dict[int, Given]


def exchange(
    parties: list[Party],
    xs: list[Tensor],
    k: int = 0,
    undealt: Collection[int] = (),
    unsent: Collection[int] = (),
    silent: Collection[int] = (),
) -> Seen:
    """Rounds 1 to 3: who drops out before the deal, before the vector and before giving shares. Moves parties on."""
    n = len(parties)
    seen = Seen({}, {}, {}, {}, {})
    for i in range(n):
        if i not in undealt:
            seen.deals[i], parties[i] = deal(parties[i], k)
    for i in seen.deals:
        seen.held[i] = received(parties[i], k, letters(seen.deals, i))
        seen.words[i] = fixed_point.encode(xs[i], fraction_bits=BITS, parties=n)
        if i not in unsent:
            seen.masked[i], seen.held[i] = masked(parties[i], seen.held[i], seen.words[i])
    for i in seen.masked:
        if i not in silent:
            seen.given[i], seen.held[i] = given(seen.held[i], seen.masked, seen.deals.keys() - seen.masked.keys())
    return seen


def plain_sum(xs: Iterable[Tensor]) -> list[float]:
    """Each number rounded to a multiple of 2^-32 and added up as a fraction."""
    return [
        float(sum(Fraction(round(Fraction(v) * 2**BITS), 2**BITS) for v in row))
        for row in zip(*(x.tolist() for x in xs), strict=True)
    ]


def decoded(words: Tensor) -> list[float]:
    return fixed_point.decode(words, fraction_bits=BITS).tolist()


@drawn(st.lists(st.floats(-(2.0**20), 2.0**20), min_size=1, max_size=8), st.integers(0, 40))
def test_a_word_is_the_number_rounded_to_fixed_point(numbers: list[float], bits: int) -> None:
    words = fixed_point.encode(torch.tensor(numbers, dtype=torch.float64), fraction_bits=bits, parties=4)
    assert words.dtype == torch.int64
    assert words.tolist() == [round(Fraction(v) * 2**bits) for v in numbers]  # halves to even, as Python does


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_floats_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    x = (keys.uniform(keys.root(1), 400) - 0.5).to(dtype)
    x = x[x.abs() > 2.0**-20]  # 24 bits then end before 2^-44
    back = fixed_point.decode(fixed_point.encode(x, fraction_bits=44, parties=9), fraction_bits=44)
    assert torch.equal(back.to(dtype), x) and torch.equal(back, x.to(torch.float64))


@drawn(st.integers(-(2**63), 2**63 - 1), st.integers(0, 62))
def test_decoding_is_exact_or_rounded_once(word: int, bits: int) -> None:
    got = fixed_point.decode(torch.tensor([word]), fraction_bits=bits)
    assert float(got) == float(Fraction(word, 2**bits))
    assert abs(word) > 2**53 or Fraction(float(got)) == Fraction(word, 2**bits)


def test_the_largest_numbers_that_fit_are_taken_and_the_next_ones_refused() -> None:
    parties, bits = 3, 10
    room = (2**63 - 1) // parties
    last = math.nextafter(float(room), 0.0)  # of the floats, the largest below
    x = torch.tensor([last, -last], dtype=torch.float64) / 2**bits
    words = fixed_point.encode(x, fraction_bits=bits, parties=parties)
    assert words.tolist() == [int(last), -int(last)] and parties * int(last) < 2**63
    over = torch.tensor([math.nextafter(float(room), math.inf)], dtype=torch.float64) / 2**bits
    for sign in (1, -1):
        with pytest.raises(
            ConfigError, match=r"^vfl\.bits: 3 numbers .* 10 bits .* below 2\^63.*; lower it to 9 or less"
        ):
            fixed_point.encode(sign * over, fraction_bits=bits, parties=parties, where="vfl.bits")
    fixed_point.encode(over, fraction_bits=9, parties=parties)
    for huge in (1e19, 1e300):
        with pytest.raises(ConfigError, match="no number of bits is small enough, so scale the vectors"):
            fixed_point.encode(torch.tensor([huge], dtype=torch.float64), fraction_bits=bits, parties=parties)


def test_what_is_no_finite_float_is_refused() -> None:
    for wrong, name in ((math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")):
        with pytest.raises(FedoptError, match=f"1 of 3 are not, the first is {name} at position 1"):
            fixed_point.encode(torch.tensor([0.0, wrong, 1.0]), fraction_bits=BITS, parties=2)
    with pytest.raises(FedoptError, match=r"encodes floats, a tensor of torch\.int64 was given"):
        fixed_point.encode(torch.tensor([1]), fraction_bits=BITS, parties=2)
    for bits in (-1, 63):
        for use in (
            lambda bits: fixed_point.encode(torch.zeros(1), fraction_bits=bits, parties=2, where="x.f"),
            lambda bits: fixed_point.decode(torch.zeros(1, dtype=torch.int64), fraction_bits=bits, where="x.f"),
        ):
            with pytest.raises(ConfigError, match=rf"^x\.f: 0 to 62 bits .* {bits} was given"):
                use(bits)


def test_no_numbers_are_no_words() -> None:
    assert fixed_point.encode(torch.zeros(0), fraction_bits=BITS, parties=2).tolist() == []


def chacha_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439, section 2.3."""

    def little(text: bytes) -> list[int]:
        return [int.from_bytes(text[i : i + 4], "little") for i in range(0, len(text), 4)]

    start = [*little(b"expand 32-byte k"), *little(key), counter, *little(nonce)]
    s = list(start)

    def add_xor_turn(a: int, b: int, c: int, by: int) -> None:
        s[a] = (s[a] + s[b]) & 0xFFFFFFFF
        s[c] ^= s[a]
        s[c] = (s[c] << by | s[c] >> (32 - by)) & 0xFFFFFFFF

    columns = [(i, 4 + i, 8 + i, 12 + i) for i in range(4)]
    diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
    for _ in range(10):
        for a, b, c, d in columns + diagonals:
            add_xor_turn(a, b, d, 16)
            add_xor_turn(c, d, b, 12)
            add_xor_turn(a, b, d, 8)
            add_xor_turn(c, d, b, 7)
    return b"".join(((x + y) & 0xFFFFFFFF).to_bytes(4, "little") for x, y in zip(s, start, strict=True))


def stream(seed: bytes, d: int) -> list[int]:
    """d words modulo 2^64."""
    text = b"".join(chacha_block(seed, i, bytes(12)) for i in range(-(-d // 8)))
    return [int.from_bytes(text[8 * i : 8 * i + 8], "little") for i in range(d)]


def hkdf(secret: bytes, about: str, salt: bytes = bytes(32)) -> bytes:
    """RFC 5869 with SHA-256 and 32 bytes, which are one block."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, about.encode() + b"\x01", "sha256")


def montgomery(private: bytes, public: bytes) -> bytes:
    """X25519 of RFC 7748, section 5, by affine formulas of the curve y^2 = x^3 + 486662 x^2 + x, on x alone."""
    p = 2**255 - 19
    scalar = (int.from_bytes(private, "little") & ~(7 | 1 << 255)) | 1 << 254
    x = int.from_bytes(public, "little") & ((1 << 255) - 1)
    near, far = (1, 0), (x, 1)  # X : Z of m P and (m + 1) P
    for i in reversed(range(255)):
        bit = scalar >> i & 1
        if bit:
            near, far = far, near
        (a, b), (c, d) = near, far
        sums = ((a - b) * (c + d), (a + b) * (c - d))
        far = ((sums[0] + sums[1]) ** 2 % p, x * (sums[0] - sums[1]) ** 2 % p)
        plus, minus = (a + b) ** 2, (a - b) ** 2
        near = (plus * minus % p, (plus - minus) * (minus + 121666 * (plus - minus)) % p)
        if bit:
            near, far = far, near
    return (near[0] * pow(near[1], -1, p) % p).to_bytes(32, "little")


def test_the_loops_give_the_numbers_of_the_standards() -> None:
    block = chacha_block(bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000"))  # RFC 8439, 2.3.2
    assert block[:16].hex() == "10f1e7e4d13b5915500fdd1fa32071c4" and block[-4:].hex() == "a2503c4e"
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")  # RFC 7748, 6.1
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    public, secret = montgomery(bob, (9).to_bytes(32, "little")), montgomery(bob, alice)
    assert public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert secret.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


@pytest.mark.parametrize("d", [0, 1, 7, 8, 9, 100])
def test_words_are_the_keystream(d: int) -> None:
    seed = hashlib.sha256(b"seed").digest()
    assert [w & ALL for w in ciphers.words(seed, d).tolist()] == stream(seed, d)


def test_derived_keys_are_hkdf() -> None:
    assert ciphers.derived(b"secret", "mask", 3, 4) == hkdf(b"secret", "fedopt secure sum mask 3 4")
    assert ciphers.derived(b"secret", "mask", salt=b"salt") == hkdf(b"secret", "fedopt secure sum mask", b"salt")
    told = [ciphers.derived(b"secret", *about) for about in (("a",), ("b",), ("a", 1), ("a", 1, 1), ("a", 11))]
    assert len(set(told)) == len(told)


def test_agreement_is_x25519() -> None:
    one, other = ciphers.pair(), ciphers.pair()
    wanted = montgomery(one.private, other.public)
    assert ciphers.agreed(one.private, other.public) == ciphers.agreed(other.private, one.public) == wanted


def test_a_sealed_text_opens_with_its_key_alone_and_unchanged() -> None:
    key, text = bytes(range(32)), b"sixteen bytes ..."
    sealed = ciphers.seal(key, text)
    assert len(sealed) == len(text) + ciphers.SEALED and text not in sealed
    assert ciphers.unseal(key, sealed) == text
    assert ciphers.seal(key, text) != sealed
    assert ciphers.unseal(bytes(32), sealed) is None
    for i in range(len(sealed)):
        assert ciphers.unseal(key, sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]) is None
        assert ciphers.unseal(key, sealed[:i]) is None


def times(a: int, b: int) -> int:
    """In GF(2^128) by x^128 + x^7 + x^2 + x + 1."""
    product = 0
    for i in range(128):
        if b >> i & 1:
            product ^= a << i
    for i in reversed(range(128, 256)):
        if product >> i & 1:
            product ^= (1 << 128 | 0x87) << (i - 128)
    return product


def inverse(a: int) -> int:
    """a^(2^128 - 2)"""
    found = 1
    for _ in range(127):
        a = times(a, a)
        found = times(found, a)
    return found


def lagrange(points: dict[int, int]) -> int:
    """At 0, the value of the polynomial through these points."""
    value = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = times(y, times(other, inverse(x ^ other)))
        value ^= y
    return value


@pytest.mark.parametrize(("n", "t"), [(2, 2), (3, 2), (5, 3), (5, 5)])
def test_any_t_shares_give_the_secret(n: int, t: int) -> None:
    secret = hashlib.sha256(b"s").digest()[: shares.SECRET]
    cut = shares.split(secret, n, t)
    assert len(cut) == n and all(len(share) == shares.SECRET for share in cut)
    for some in combinations(range(n), t):
        assert shares.join({i: cut[i] for i in some}) == secret
        by_hand = lagrange({i + 1: int.from_bytes(cut[i], "big") for i in some})
        assert by_hand.to_bytes(16, "big") == secret
    assert shares.split(secret, n, t) != cut
    for some in combinations(range(n), t - 1):
        assert shares.join({i: cut[i] for i in some}) != secret


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_sum_is_exact_in_fixed_point(n: int, dtype: torch.dtype) -> None:
    parties, threshold = federation(n, n // 2 + 1), n // 2 + 1
    for k in (0, 1, 7):
        xs = vectors(n, 20, seed=k, dtype=dtype)
        seen = exchange(parties, xs, k)
        got = total(seen.deals, seen.masked, seen.given, threshold)
        assert got.tolist() == [sum(row) for row in zip(*(w.tolist() for w in seen.words.values()), strict=True)]
        assert decoded(got) == plain_sum(xs)


def by_hand(u: int, parties: list[Party], members: Iterable[int], k: int, words: Tensor) -> list[int]:
    """y_u, each mask from its key word by word."""
    mask = f"fedopt secure sum mask {k}"
    own = hkdf(parties[u].keys[u], f"fedopt secure sum own {k}")[:16]
    y = list(words.tolist())
    for i, word in enumerate(stream(hkdf(own, "fedopt secure sum mask"), len(y))):
        y[i] += word
    for v in members:
        if v != u:
            for i, word in enumerate(stream(hkdf(parties[u].keys[v], mask), len(y))):
                y[i] += word if v > u else -word
    return [w & ALL for w in y]


def test_masks_are_those_of_the_formula_and_pairs_cancel() -> None:
    n, k = 4, 5
    parties = federation(n, 3)
    seen = exchange(parties, vectors(n, 11), k, undealt=[1])
    for u in (0, 2, 3):
        assert [w & ALL for w in seen.masked[u].tolist()] == by_hand(u, parties, (0, 2, 3), k, seen.words[u])
    left = sum(y - w for y, w in zip(seen.masked.values(), seen.words.values(), strict=True))
    own = sum(ciphers.words(party.own_mask(party.own_secret(parties[u], k)), 11) for u in (0, 2, 3))
    assert torch.equal(torch.as_tensor(left), torch.as_tensor(own))


def test_keys_of_a_pair_are_agreed_on_over_the_whole_roster() -> None:
    own = [ciphers.pair() for _ in range(3)]
    roster = [one.public for one in own]
    parties = [joined(one, roster, 2) for one in own]
    for i, j in combinations(range(3), 2):
        salt = hashlib.sha256(b"".join(roster) + (2).to_bytes(8, "little")).digest()
        wanted = hkdf(montgomery(own[i].private, own[j].public), f"fedopt secure sum pair {i} {j}", salt)
        assert parties[i].keys[j] == parties[j].keys[i] == wanted
    # party 2 comes back with a new key
    back = [*own[:2], ciphers.pair()]
    again = [joined(one, [each.public for each in back], 2) for one in back]
    assert again[0].keys[1] == again[1].keys[0] != parties[0].keys[1]
    assert joined(own[0], roster, 3).keys[1] != parties[0].keys[1]


CASES = [
    (n, t, *cut)
    for n, t in ((3, 2), (5, 3), (6, 2), (10, 6))
    for cut in {
        (n - t, 0, 0), (0, n - t, 0), (0, 0, n - t), (1, max(0, n - t - 1), 0), (0, 1, n - t - 1), (n - t - 1, 0, 1),
    }
]  # fmt: skip


@pytest.mark.parametrize(("n", "t", "undealt", "unsent", "silent"), sorted(CASES))
def test_up_to_n_minus_t_may_drop_out(n: int, t: int, undealt: int, unsent: int, silent: int) -> None:
    gone = keys.permutation(keys.fold(keys.root(n), t, undealt, unsent, silent), n).tolist()
    first, second, third = gone[:undealt], gone[undealt : undealt + unsent], gone[undealt + unsent :][:silent]
    parties, xs = federation(n, t), vectors(n, 9)
    seen = exchange(parties, xs, 0, first, second, third)
    assert len(seen.given) == t
    heard = [i for i in range(n) if i not in (*first, *second)]
    got = total(seen.deals, seen.masked, seen.given, t)
    assert decoded(got) == plain_sum(xs[i] for i in heard)
    # everybody is back in the next exchange, with the same keys
    seen = exchange(parties, xs, 1)
    assert decoded(total(seen.deals, seen.masked, seen.given, t)) == plain_sum(xs)


@pytest.mark.parametrize(("n", "t"), [(2, 2), (3, 2), (5, 3), (10, 6)])
def test_one_more_is_refused_wherever_it_drops_out(n: int, t: int) -> None:
    xs, many = vectors(n, 4), list(range(n - t + 1))
    with pytest.raises(TooFew, match=f"{t} parties are needed for the sum of exchange 3, {t - 1} dealt shares"):
        exchange(federation(n, t), xs, 3, undealt=many)
    # parties do not give shares, and the server does not add up
    with pytest.raises(TooFew, match=f"{t} parties .* exchange 3, {t - 1} answered"):
        exchange(federation(n, t), xs, 3, unsent=many)
    whole = exchange(federation(n, t), xs, 3)
    left = {i: whole.masked[i] for i in range(n) if i not in many}
    with pytest.raises(TooFew, match=f"{t} parties .* exchange 3, {t - 1} answered"):
        total(whole.deals, left, whole.given, t)
    seen = exchange(federation(n, t), xs, 3, silent=many)
    with pytest.raises(TooFew, match=f"{t} parties .* exchange 3, {t - 1} gave shares"):
        total(seen.deals, seen.masked, seen.given, t)


def chi_squared(words: Tensor) -> list[float]:
    """p-values of uniformity: of all bytes, of the highest four bits, and of each of the eight bytes, highest first."""
    raw = np.asarray(words.numpy(), dtype=">i8").view(np.uint8).reshape(-1, 8)
    parts = [(raw.ravel(), 256), (raw[:, 0] >> 4, 16), *((raw[:, i], 256) for i in range(8))]
    return [float(stats.chisquare(np.bincount(part, minlength=size)).pvalue) for part, size in parts]


@pytest.mark.parametrize("seed", range(5))
def test_masked_words_are_uniform_and_plain_ones_are_not(seed: int) -> None:
    d = 20_000
    xs = [*vectors(2, d, seed), torch.zeros(d)]
    seen = exchange(fixed_parties(3, 2, seed), xs)
    for u in range(3):
        assert min(chi_squared(seen.masked[u])) > 1e-4
        assert max(chi_squared(seen.words[u])[:4]) < 1e-12  # low bytes of random numbers are uniform


@pytest.mark.parametrize("seed", range(3))
def test_two_exchanges_have_unrelated_masks(seed: int) -> None:
    d = 20_000
    parties, xs = fixed_parties(3, 2, seed), vectors(3, d, seed)
    one, other = (exchange(parties, xs, k) for k in (0, 1))
    for u in range(3):
        assert torch.equal(one.words[u], other.words[u])
        assert min(chi_squared(one.masked[u] - other.masked[u])) > 1e-4
    seeds = {party.pair_seed(parties[i], k, j) for k in range(20) for i, j in combinations(range(3), 2)}
    secrets = {party.own_secret(parties[i], k) for k in range(20) for i in range(3)}
    assert len(seeds) == len(secrets) == 60


@pytest.mark.parametrize("seed", range(3))
def test_a_dropped_party_gives_away_its_seeds_of_this_exchange_and_no_vector(seed: int) -> None:
    d, n, t = 20_000, 4, 3
    parties, xs = fixed_parties(n, t, seed), vectors(n, d, seed)
    before = exchange(parties, xs, 0)
    seen = exchange(parties, xs, 1, unsent=[2])
    late, _ = masked(parties[2], seen.held[2], seen.words[2])
    key = shares.join({giver: one.pairs[2] for giver, one in seen.given.items()})
    told = ciphers.unseal(ciphers.derived(key, "seeds"), seen.deals[2].seeds)
    assert told == b"".join(party.pair_seed(parties[v], 1, 2) for v in (0, 1, 3))

    def stripped(y: Tensor) -> Tensor:
        for i, v in enumerate((0, 1, 3)):
            y = y - party.sign(2, v) * ciphers.words(told[32 * i : 32 * i + 32], d)
        return y

    # its vector comes after all: what is left of the masks is its own one
    own = ciphers.words(party.own_mask(party.own_secret(parties[2], 1)), d)
    assert torch.equal(stripped(late) - own, seen.words[2])
    assert min(chi_squared(stripped(late))) > 1e-4
    # of the exchange before, the server knows its own mask, and the seeds do not fit
    secret = shares.join({giver: before.given[giver].own[2] for giver in range(t)})
    known = before.masked[2] - ciphers.words(party.own_mask(secret), d)
    assert min(chi_squared(stripped(known))) > 1e-4


def test_nothing_secret_is_shown() -> None:
    own = ciphers.pair()
    one, other = federation(2, 2)
    seen = exchange([one, other], vectors(2, 3))
    assert repr(own.private) not in repr(own) and own.private.hex() not in repr(own)
    assert not any(repr(key) in repr(one) for key in one.keys)
    assert not any(repr(share) in repr(seen.held[0]) for both in seen.held[0].shares.values() for share in both)


def changed(text: bytes, at: int) -> bytes:
    return text[:at] + bytes([text[at] ^ 0x40]) + text[at + 1 :]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mine, others: changed(mine, 0),
        lambda mine, others: changed(mine, 20),
        lambda mine, others: changed(mine, len(mine) - 1),
        lambda mine, others: mine[:-1],
        lambda mine, others: b"",
        lambda mine, others: others,
    ],
    ids=["nonce", "share", "tag", "cut", "empty", "for another party"],
)
def test_a_tampered_share_is_refused(wrong: Callable[[bytes, bytes], bytes]) -> None:
    parties = federation(3, 2)
    deals = {i: deal(parties[i], 4)[0] for i in range(3)}
    post = letters(deals, 0)
    received(parties[0], 4, post)
    post[1] = wrong(post[1], deals[1].letters[2])
    with pytest.raises(WireError, match="the shares of party 1 for party 0 in exchange 4 cannot be opened"):
        received(parties[0], 4, post)


def test_letters_are_for_one_exchange_and_one_sender() -> None:
    parties = federation(3, 2)
    deals = {i: deal(parties[i], 4)[0] for i in range(3)}
    post = letters(deals, 0)
    with pytest.raises(WireError, match="party 0 for party 0 in exchange 5 cannot be opened"):
        received(parties[0], 5, post)
    with pytest.raises(WireError, match="party 1 for party 0 in exchange 4 cannot be opened"):
        received(parties[0], 4, {**post, 1: post[2]})
    with pytest.raises(WireError, match="party 1 for party 0 in exchange 4 cannot be opened"):
        received(parties[0], 4, {**post, 1: deals[0].letters[1]})  # its own, sent back
    with pytest.raises(WireError, match="party 7 for party 0 in exchange 4 cannot be opened"):
        received(parties[0], 4, {**post, 7: post[2]})
    with pytest.raises(WireError, match="party 0 is no member of exchange 4: its own letter is not there"):
        received(parties[0], 4, {1: post[1], 2: post[2]})
    short = deal(parties[1], 4)[0]._replace(letters=(post[1],))
    with pytest.raises(WireError, match="party 1 dealt shares for 1 parties, none for party 2"):
        letters({1: short}, 2)


def test_what_a_dealer_sealed_has_its_length_too() -> None:
    parties, xs = federation(3, 2), vectors(3, 4)
    seen = exchange(parties, xs, 4, unsent=[2])
    own = parties[2]
    key = ciphers.derived(own.keys[0], "letter", 4, 0)
    assert ciphers.unseal(key, seen.deals[2].letters[0]) == b"".join(seen.held[0].shares[2])
    post = {**letters(seen.deals, 0), 2: ciphers.seal(key, bytes(31))}
    with pytest.raises(WireError, match="the shares of party 2 for party 0 in exchange 4 cannot be opened"):
        received(parties[0], 4, post)
    key = ciphers.derived(ciphers.derived(own.keys[2], "key to seeds", 4)[:16], "seeds")
    assert len(ciphers.unseal(key, seen.deals[2].seeds) or b"") == 64
    short = seen.deals[2]._replace(seeds=ciphers.seal(key, bytes(63)))
    with pytest.raises(WireError, match="parties 0, 1 do not give the seeds of party 2 in exchange 4"):
        total({**seen.deals, 2: short}, seen.masked, seen.given, 2)


def test_shares_of_both_kinds_are_never_given() -> None:
    seen = exchange(federation(3, 2), vectors(3, 4), silent=[0])
    held = seen.held[0]
    with pytest.raises(FedoptError, match="asked for both kinds for party 1 in exchange 0"):
        given(held, [0, 1, 2], [1])
    told, after = given(held, [0, 1], [2])
    assert told.own.keys() == {0, 1} and told.pairs.keys() == {2}
    assert given(after, [1, 0], [2])[0] == told  # who asks again is told the same
    with pytest.raises(FedoptError, match="has given the other kind of share for party 2 in exchange 0"):
        given(after, [0, 1, 2], [])
    with pytest.raises(FedoptError, match="has given the other kind of share for party 0, 2 in exchange 0"):
        given(after, [1, 2], [0])
    for answered, dropped in (([0, 1], []), ([0, 1, 2], [3])):
        with pytest.raises(
            FedoptError, match="whose members are 0, 1, 2; it gives them for all of these and no others"
        ):
            given(held, answered, dropped)


def test_masks_serve_once() -> None:
    parties = federation(2, 2)
    first = deal(parties[0], 3)
    with pytest.raises(FedoptError, match="party 0: exchange 3 was dealt or passed over before, the next is 4"):
        deal(first[1], 3)
    with pytest.raises(FedoptError, match="exchange 2 was dealt or passed over"):
        deal(first[1], 2)
    held = received(parties[0], 3, {0: first[0].letters[0], 1: deal(parties[1], 3)[0].letters[0]})
    words = torch.arange(3)
    _, sent = masked(parties[0], held, words)
    with pytest.raises(FedoptError, match="party 0 has sent a vector in exchange 3; a second one under the same masks"):
        masked(parties[0], sent, words)
    for wrong in (torch.zeros(3), torch.zeros(1, 3, dtype=torch.int64)):
        with pytest.raises(FedoptError, match=r"words to mask are int64 \[d\]"):
            masked(parties[0], held, wrong)


def test_who_cannot_join() -> None:
    own = [ciphers.pair() for _ in range(3)]
    roster = [one.public for one in own]
    for threshold in (1, 0, 4):
        with pytest.raises(ConfigError, match=rf"^vfl\.t: 2 to 3 of 3 parties .* {threshold} was given"):
            joined(own[0], roster, threshold, where="vfl.t")
    with pytest.raises(WireError, match="roster of 3 parties lacks this party's public key"):
        joined(ciphers.pair(), roster, 2)
    for wrong in ([roster[0], roster[1], roster[1]], [roster[0], roster[1], b"short"]):
        with pytest.raises(WireError, match="different public keys of 32 bytes each"):
            joined(own[0], wrong, 2)
    with pytest.raises(WireError, match="public key of party 2 is none that keys can be agreed on with"):
        joined(own[0], [roster[0], roster[1], bytes(32)], 2)


def test_the_server_finds_wrong_shares_and_goes_on_without_them() -> None:
    parties, xs = federation(5, 3), vectors(5, 4)
    seen = exchange(parties, xs, unsent=[4])
    want = plain_sum(xs[:4])
    right = seen.given[1]
    for wrong, message in (
        (
            right._replace(own={**right.own, 2: changed(right.own[2], 3)}),
            "parties 0, 1, 2 do not give the own mask of party 2",
        ),
        (right._replace(pairs={4: changed(right.pairs[4], 3)}), "parties 0, 1, 2 do not give the seeds of party 4"),
        (right._replace(pairs={4: b""}), "party 1 gave shares that are not 16 bytes long"),
        (right._replace(pairs={}), "party 1 gave shares for other parties than it was asked for"),
        (right._replace(own={}), "party 1 gave shares for other parties than it was asked for"),
        (right._replace(exchange=9), r"of one exchange are needed, these are of exchanges \[0, 9\]"),
    ):
        with pytest.raises(WireError, match=message):
            total(seen.deals, seen.masked, {**seen.given, 1: wrong}, 3)
        rest = {i: one for i, one in seen.given.items() if i != 1}
        assert decoded(total(seen.deals, seen.masked, rest, 3)) == want


def test_the_server_refuses_what_does_not_fit() -> None:
    seen = exchange(federation(3, 2), vectors(3, 4))
    for wrong in (torch.zeros(5, dtype=torch.int64), torch.zeros(4), torch.zeros(1, 4, dtype=torch.int64)):
        with pytest.raises(WireError, match=r"party 2 sent .*, party 0 sent \[4\]: a sum needs int64 \[d\]"):
            total(seen.deals, {**seen.masked, 2: wrong}, seen.given, 2)
    with pytest.raises(WireError, match=r"party 0 sent torch\.int64 \[1, 4\]"):
        total(seen.deals, {i: words[None] for i, words in seen.masked.items()}, seen.given, 2)
    with pytest.raises(WireError, match="party 7 has dealt no shares, so it is no member"):
        total(seen.deals, {**seen.masked, 7: seen.masked[0]}, seen.given, 2)
    with pytest.raises(WireError, match="party 7 has dealt no shares, so it is no member"):
        total(seen.deals, seen.masked, {**seen.given, 7: seen.given[0]}, 2)
    short = seen.deals[1]._replace(letters=seen.deals[1].letters[:2])
    with pytest.raises(WireError, match="party 1 dealt shares for 2 parties, none for party 2"):
        total({**seen.deals, 1: short}, seen.masked, seen.given, 2)
