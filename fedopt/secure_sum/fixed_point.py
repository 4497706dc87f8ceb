"""Numbers as integers modulo 2^64, whose sum is exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedopt.registry import ConfigError
from fedopt.types import FedoptError

FRACTION_BITS = 62
"""More would leave no integer beside the sign."""


def encode(x: Tensor, *, fraction_bits: int, parties: int, where: str = "secure_sum.fraction_bits") -> Tensor:
    """Words of fixed point: w = round(2^f x), halves to even, int64 in two's complement, so modulo 2^64.

    x: floats of any shape; w has the same. |x - 2^-f w| <= 2^-(f+1), and there is no error where x is a multiple of
        2^-f. Products by 2^f are exact in float64.
    fraction_bits: f, 0 ... 62.
    parties: n, how many such vectors are added at the most. n |w| < 2^63 for every entry, so that a sum never wraps.
    where: config path of f, for messages.

    Raises FedoptError for anything but finite floats; ConfigError where f is out of range or n |w| is too large.
    """
    _check_bits(fraction_bits, where)
    if not x.is_floating_point():
        raise FedoptError(f"a secure sum encodes floats, a tensor of {x.dtype} was given")
    wrong = (~torch.isfinite(x)).flatten().nonzero().flatten()
    if wrong.numel():
        first = int(wrong[0])
        raise FedoptError(
            f"a secure sum needs finite numbers; {wrong.numel()} of {x.numel()} are not, the first is"
            f" {float(x.flatten()[first])} at position {first}"
        )
    exact = x.detach().to(torch.float64)
    words = torch.round(exact * 2.0**fraction_bits)
    room = (2**63 - 1) // parties
    # Python compares a float and an integer exactly; an overflow to infinity is larger than any
    if words.numel() and float(words.abs().max()) > room:
        largest = float(exact.abs().max())
        fits = [f for f in range(fraction_bits) if math.ldexp(largest, f) + 0.5 <= room]
        mend = f"lower it to {fits[-1]} or less" if fits else "no number of bits is small enough, so scale the vectors"
        raise ConfigError(
            where,
            f"{parties} numbers as large as {largest:.6g} with {fraction_bits} bits behind the point have to stay below"
            f" 2^63, and {parties} * {largest:.6g} * 2^{fraction_bits} does not; {mend}",
        )
    return words.to(torch.int64)


def decode(words: Tensor, *, fraction_bits: int, where: str = "secure_sum.fraction_bits") -> Tensor:
    """The number x = 2^-f w of each word, float64: exact for |w| <= 2^53, else rounded once, halves to even.

    words: int64 of any shape, one vector's or the sum of several.
    """
    _check_bits(fraction_bits, where)
    return words.to(torch.float64) * 2.0**-fraction_bits


def _check_bits(fraction_bits: int, where: str) -> None:
    if not 0 <= fraction_bits <= FRACTION_BITS:
        raise ConfigError(where, f"0 to {FRACTION_BITS} bits behind the point are possible, {fraction_bits} was given")
