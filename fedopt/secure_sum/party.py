"""A party's half: it joins, and in every exchange it deals, masks and gives."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedopt.registry import ConfigError
from fedopt.secure_sum import ciphers, shares
from fedopt.types import FedoptError, WireError

LETTER = 2 * shares.SECRET + ciphers.SEALED
"""Bytes of a sealed letter: a share of each of the dealer's two secrets."""


class TooFew(FedoptError):
    """Fewer parties are left than the threshold asks for; the exchange has no sum."""


@dataclass(frozen=True)
class Party:
    """A party between exchanges."""

    number: int
    """Its place in the roster."""
    threshold: int
    """t."""
    keys: tuple[bytes, ...] = field(repr=False)
    """What it agreed on with each party of the roster; at its own place, what no one else has."""
    exchange: int = 0
    """The smallest number that no exchange had so far."""


class Deal(NamedTuple):
    """What a party says before an exchange; all of it may lie at the server."""

    exchange: int
    letters: tuple[bytes, ...]
    """Sealed for each party of the roster: a share of the secret of the own mask, and one of the key to `seeds`."""
    seeds: bytes
    """Sealed under a key that was split: the seeds of this exchange that the party has with each other one."""
    check: bytes
    """What the secret of the own mask has to give, so that wrong shares are found out."""


@dataclass(frozen=True)
class Held:
    """What a party has in hand of one exchange."""

    number: int
    threshold: int
    exchange: int
    shares: Mapping[int, tuple[bytes, bytes]] = field(repr=False)
    """By dealer: of the secret of its own mask, and of the key to its seeds."""
    masked: bool = False
    """A vector went out."""
    told: tuple[frozenset[int], frozenset[int]] | None = None
    """For whom shares were given, of either kind."""


class Given(NamedTuple):
    """The shares that a party gives when the vectors are in, of one kind for each party."""

    exchange: int
    own: Mapping[int, bytes]
    """Of the own mask of those who answered."""
    pairs: Mapping[int, bytes]
    """Of the key to the seeds of those who did not."""


def joined(
    keys: ciphers.Pair, roster: Sequence[bytes], threshold: int, *, where: str = "secure_sum.threshold"
) -> Party:
    """A party that has agreed on a key with each of the others (round 0).

    keys: made for this roster by `ciphers.pair()`; never used for another one, nor a second time after a restart.
    roster: everybody's public key, n of 32 bytes, in the same order at every party.
    threshold: t, 2 ... n.
    where: config path of t, for messages.

    The roster and t go into every key, so one new key in it makes all of them new, and numbers of exchanges may start
    anew.

    Raises ConfigError for a threshold out of range; WireError for a roster that is none or lacks this party.
    """
    n = len(roster)
    if not 2 <= threshold <= n:
        raise ConfigError(
            where,
            f"2 to {n} of {n} parties may be needed for a sum, {threshold} was given; with 1, a single party could"
            " unmask another one's vector",
        )
    if any(len(public) != ciphers.KEY for public in roster) or len(set(roster)) != n:
        raise WireError(f"a roster holds different public keys of {ciphers.KEY} bytes each; this one does not")
    if keys.public not in roster:
        raise WireError(f"the roster of {n} parties lacks this party's public key, so it was made for others")
    number = roster.index(keys.public)
    salt = hashlib.sha256(b"".join(roster) + threshold.to_bytes(8, "little")).digest()
    found = []
    for other, public in enumerate(roster):
        if other == number:
            found.append(secrets.token_bytes(ciphers.KEY))
            continue
        try:
            secret = ciphers.agreed(keys.private, public)
        except ValueError as error:
            raise WireError(f"the public key of party {other} is none that keys can be agreed on with") from error
        found.append(ciphers.derived(secret, "pair", min(number, other), max(number, other), salt=salt))
    return Party(number, threshold, tuple(found))


def deal(party: Party, exchange: int) -> tuple[Deal, Party]:
    """What a party says before an exchange, and the party that said it (round 1).

    Of the two secrets, 16 bytes each, t shares are enough. They are derived from a key that nobody else has and from
    the number of the exchange, so those of one exchange tell nothing of another's.

    exchange: larger than all before; a number that comes twice would mask two vectors alike.

    Raises FedoptError for one that is not.
    """
    if exchange < party.exchange:
        raise FedoptError(
            f"party {party.number}: exchange {exchange} was dealt or passed over before, the next is {party.exchange};"
            " the same number again would mask two vectors alike. After a restart, join with new keys"
        )
    me, n = party.number, len(party.keys)
    own = own_secret(party, exchange)
    key = ciphers.derived(party.keys[me], "key to seeds", exchange)[: shares.SECRET]
    halves = zip(shares.split(own, n, party.threshold), shares.split(key, n, party.threshold), strict=True)
    letters = tuple(
        ciphers.seal(_letter_key(party, exchange, me, to), one + other) for to, (one, other) in enumerate(halves)
    )
    seeds = b"".join(pair_seed(party, exchange, other) for other in range(n) if other != me)
    sealed = ciphers.seal(ciphers.derived(key, "seeds"), seeds)
    return Deal(exchange, letters, sealed, ciphers.derived(own, "check")), replace(party, exchange=exchange + 1)


def received(party: Party, exchange: int, letters: Mapping[int, bytes]) -> Held:
    """What a party has in hand when the letters to it are there (round 1); their senders are the exchange's members.

    letters: by sender, its own among them; everybody has to be sent those of the same senders.

    Raises WireError, with the sender, for a letter that was changed or is not for this party and exchange; TooFew for
    fewer members than the threshold.
    """
    if len(letters) < party.threshold:
        raise TooFew(too_few("dealt shares", len(letters), party.threshold, exchange))
    if party.number not in letters:
        raise WireError(f"party {party.number} is no member of exchange {exchange}: its own letter is not there")
    found = {}
    for sender, sealed in sorted(letters.items()):
        text = None
        if 0 <= sender < len(party.keys) and len(sealed) == LETTER:
            text = ciphers.unseal(_letter_key(party, exchange, sender, party.number), sealed)
        if text is None:
            raise WireError(
                f"the shares of party {sender} for party {party.number} in exchange {exchange} cannot be opened: they"
                " were changed on their way, or are another's or of another exchange"
            )
        found[sender] = (text[: shares.SECRET], text[shares.SECRET :])
    return Held(party.number, party.threshold, exchange, found)


def masked(party: Party, held: Held, words: Tensor) -> tuple[Tensor, Held]:
    """The words under the party's masks, and what it has in hand then (round 2).

        y_u = w_u + PRG(b_u) + Σ_{v > u} PRG(s_uv) - Σ_{v < u} PRG(s_uv)    modulo 2^64, v over the other members

    Without b_u and the s_uv, y_u is uniform whatever w_u is.

    words: w_u, int64 `[d]`, as `fixed_point.encode` makes them; y_u is the same.

    Raises FedoptError for other tensors and for a second vector.
    """
    if words.dtype != torch.int64 or words.dim() != 1:
        raise FedoptError(f"words to mask are int64 [d]; {words.dtype} {list(words.shape)} was given")
    if held.masked:
        raise FedoptError(
            f"party {held.number} has sent a vector in exchange {held.exchange}; a second one under the same masks"
            " would give away the difference of the two"
        )
    d = words.numel()
    total = words + ciphers.words(own_mask(own_secret(party, held.exchange)), d)
    for other in held.shares:
        if other != party.number:
            total += sign(party.number, other) * ciphers.words(pair_seed(party, held.exchange, other), d)
    return total, replace(held, masked=True)


def given(held: Held, answered: Collection[int], dropped: Collection[int]) -> tuple[Given, Held]:
    """The shares that the server needs, and what the party has in hand then (round 3).

    answered, dropped: the members whose vectors are at the server, and the others. Only one kind of share is given for
        each member, once for all: whoever asks again is given the same, or nothing.

    Raises FedoptError where the two are not all members, each once, or are other ones than the first time; TooFew where
    fewer than the threshold answered.
    """
    here, gone, members = frozenset(answered), frozenset(dropped), frozenset(held.shares)
    if both := here & gone:
        raise FedoptError(
            f"party {held.number} gives one kind of share for each party, and was asked for both kinds for party"
            f" {_listed(both)} in exchange {held.exchange}: together they would unmask its vector"
        )
    if here | gone != members:
        raise FedoptError(
            f"party {held.number} was asked for shares for {_listed(here | gone)} in exchange {held.exchange}, whose"
            f" members are {_listed(members)}; it gives them for all of these and no others"
        )
    if held.told not in (None, (here, gone)):
        changed = held.told[0] ^ here
        raise FedoptError(
            f"party {held.number} has given the other kind of share for party {_listed(changed)} in exchange"
            f" {held.exchange}: together they would unmask its vector"
        )
    if len(here) < held.threshold:
        raise TooFew(too_few("answered", len(here), held.threshold, held.exchange))
    own = {member: held.shares[member][0] for member in sorted(here)}
    pairs = {member: held.shares[member][1] for member in sorted(gone)}
    return Given(held.exchange, own, pairs), replace(held, told=(here, gone))


def own_secret(party: Party, exchange: int) -> bytes:
    """From which the party's own mask b_u of an exchange follows."""
    return ciphers.derived(party.keys[party.number], "own", exchange)[: shares.SECRET]


def own_mask(secret: bytes) -> bytes:
    """b_u, the seed of the own mask."""
    return ciphers.derived(secret, "mask")


def pair_seed(party: Party, exchange: int, other: int) -> bytes:
    """s_uv, the seed of the mask that two parties share in an exchange."""
    return ciphers.derived(party.keys[other], "mask", exchange)


def sign(number: int, other: int) -> int:
    """Of two parties, the one with the smaller number adds the mask that the other one takes away."""
    return 1 if number < other else -1


def _letter_key(party: Party, exchange: int, sender: int, receiver: int) -> bytes:
    other = receiver if sender == party.number else sender
    return ciphers.derived(party.keys[other], "letter", exchange, receiver)


def too_few(what: str, count: int, threshold: int, exchange: int) -> str:
    """What is said where the threshold is not reached."""
    return (
        f"{threshold} parties are needed for the sum of exchange {exchange}, {count} {what}; wait for more, or take a"
        " smaller threshold the next time"
    )


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"
