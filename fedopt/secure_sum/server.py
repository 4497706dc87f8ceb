"""The server's half: it passes letters on, and adds up."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fedopt.secure_sum import ciphers, shares
from fedopt.secure_sum.party import Deal, Given, TooFew, own_mask, sign, too_few
from fedopt.types import WireError


def letters(deals: Mapping[int, Deal], receiver: int) -> dict[int, bytes]:
    """What to send to a party once all deals are in: the letter of each dealer to it, by dealer.

    Raises WireError, with the dealer, where there is none.
    """
    for dealer, said in deals.items():
        if receiver >= len(said.letters):
            raise WireError(f"party {dealer} dealt shares for {len(said.letters)} parties, none for party {receiver}")
    return {dealer: said.letters[receiver] for dealer, said in deals.items()}


def total(
    deals: Mapping[int, Deal], masked: Mapping[int, Tensor], given: Mapping[int, Given], threshold: int
) -> Tensor:
    """Σ_u w_u modulo 2^64 over those who answered, int64 `[d]` (round 3).

        Σ_u w_u = Σ_u y_u - Σ_u PRG(b_u) - Σ_u Σ_v ±PRG(s_uv)    u over those who answered, v over those who did not

    The pairs among those who answered cancel.

    deals: by party, of all members; the same ones whose letters were passed on.
    masked: y_u `[d]` by party, of the members who answered.
    given: by party, what it gave for just these; the shares of t parties are used.
    threshold: t.

    Raises TooFew where fewer than t answered or gave; WireError, with the party, for what does not fit the others: it
    can be left out of `given` and the sum be tried again.
    """
    answered, dropped = sorted(masked), sorted(deals.keys() - masked.keys())
    exchange = _exchange(deals, masked, given)
    for what, count in (("answered", len(masked)), ("gave shares", len(given))):
        if count < threshold:
            raise TooFew(too_few(what, count, threshold, exchange))
    for giver, one in given.items():
        _check_given(giver, one, answered, dropped)
    givers = sorted(given)[:threshold]
    d = _length(masked)
    found = torch.zeros(d, dtype=torch.int64)
    for member in answered:
        secret = shares.join({giver: given[giver].own[member] for giver in givers})
        if ciphers.derived(secret, "check") != deals[member].check:
            raise _wrong(givers, "own mask", member, exchange)
        found += masked[member]
        found -= ciphers.words(own_mask(secret), d)
    for member in dropped:
        key = shares.join({giver: given[giver].pairs[member] for giver in givers})
        text = ciphers.unseal(ciphers.derived(key, "seeds"), deals[member].seeds)
        if text is None or len(text) != (len(deals[member].letters) - 1) * ciphers.KEY:
            raise _wrong(givers, "seeds", member, exchange)
        for other in answered:
            start = (other - (other > member)) * ciphers.KEY  # a party has no seed with itself
            found -= sign(other, member) * ciphers.words(text[start : start + ciphers.KEY], d)
    return found


def _exchange(deals: Mapping[int, Deal], masked: Mapping[int, Tensor], given: Mapping[int, Given]) -> int:
    """The number that all have in common."""
    strangers = (masked.keys() | given.keys()) - deals.keys()
    if strangers:
        raise WireError(f"party {min(strangers)} has dealt no shares, so it is no member of this exchange")
    numbers = {said.exchange for said in deals.values()} | {one.exchange for one in given.values()}
    if len(numbers) != 1:
        raise WireError(f"deals and shares of one exchange are needed, these are of exchanges {sorted(numbers)}")
    for party, said in deals.items():
        if len(said.letters) <= max(deals):
            raise WireError(f"party {party} dealt shares for {len(said.letters)} parties, none for party {max(deals)}")
    return numbers.pop()


def _check_given(giver: int, one: Given, answered: Collection[int], dropped: Collection[int]) -> None:
    if sorted(one.own) != answered or sorted(one.pairs) != dropped:
        raise WireError(f"party {giver} gave shares for other parties than it was asked for")
    if any(len(share) != shares.SECRET for share in (*one.own.values(), *one.pairs.values())):
        raise WireError(f"party {giver} gave shares that are not {shares.SECRET} bytes long")


def _length(masked: Mapping[int, Tensor]) -> int:
    """How many words all of them sent."""
    first = min(masked)
    for party, words in masked.items():
        if words.dtype != torch.int64 or words.dim() != 1 or words.shape != masked[first].shape:
            raise WireError(
                f"party {party} sent {words.dtype} {list(words.shape)}, party {first} sent"
                f" {list(masked[first].shape)}: a sum needs int64 [d] with the same d"
            )
    return masked[first].numel()


def _wrong(givers: Collection[int], what: str, member: int, exchange: int) -> WireError:
    return WireError(
        f"the shares of parties {', '.join(map(str, givers))} do not give the {what} of party {member} in exchange"
        f" {exchange}: one of them is wrong"
    )
